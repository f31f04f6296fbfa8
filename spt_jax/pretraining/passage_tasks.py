"""Pretraining tasks about whole passages: denoising, continuation, docstrings, books, order.

Span corruption and prefix LM are T5's (Raffel et al. 2020, section 3.1; Lester et al. 2021, section
3.2). None of the tasks asks which package a docstring is from: that is the built-in task `library`.
"""

from collections.abc import Callable

import numpy as np

from spt_jax.pretraining.draws import TRIES, Draw, Row
from spt_jax.tokenizers.base import Tokenizer

KINDS = ("function", "class", "method", "module", "story")


def corrupt_spans(
    ids: list[int], rng: np.random.Generator, tokenizer: Tokenizer, *, density=0.15, mean_span=3.0
) -> tuple[list[int], list[int]]:
    """Span corruption of T5: (inputs with a sentinel for each span, each sentinel with its span).

    Sentinels count up from `<extra_id_0>`, whose id is the last of the vocabulary.
    """
    noise = min(max(round(len(ids) * density), 1), len(ids) - 1)
    spans = min(max(round(noise / mean_span), 1), len(ids) - noise)
    kept, noised = _partition(rng, len(ids) - noise, spans), _partition(rng, noise, spans)
    inputs: list[int] = []
    targets: list[int] = []
    position = 0
    for number, (keep, drop) in enumerate(zip(kept.tolist(), noised.tolist())):
        sentinel = [tokenizer.sentinel(number)]
        inputs += ids[position : position + keep] + sentinel
        targets += sentinel + ids[position + keep : position + keep + drop]
        position += keep + drop
    return inputs, targets


def span_corruption(draw: Draw) -> Row:
    """Span corruption of a full window of text."""
    length = int(draw.room * 1.1)  # what fills the room after 15% became a third as many sentinels
    inputs, targets = corrupt_spans(_stream(draw, length), draw.rng, draw.passages.tokenizer)
    return Row(inputs, targets)


def lm(draw: Draw) -> Row:
    """What follows a prefix, mostly a full window."""
    prefix = draw.room if draw.flip(0.7) else int(draw.rng.integers(draw.room // 6, draw.room))
    ids = _stream(draw, prefix + draw.longest)
    return Row(ids[:prefix], ids[prefix:])


def name(draw: Draw) -> Row | None:
    """The name of what a docstring documents, in lower-case words."""
    if draw.passages.docstrings == 0:
        return None
    index = int(draw.rng.integers(draw.passages.docstrings))
    body, answer = _docstring(draw, index), draw.passages.names[index]
    return Row(body, answer) if len(body) >= 6 and 0 < len(answer) <= draw.longest else None


def kind(draw: Draw) -> Row | None:
    """What a docstring documents, or a story, as an index into `KINDS`."""
    if draw.passages.docstrings == 0:
        return None
    kind = int(draw.rng.integers(len(KINDS)))
    if KINDS[kind] == "story":
        if draw.passages.docstring_sentences == len(draw.passages.sentences):
            return None
        start = draw.passages.start(draw.rng, 0.0)
        return Row(draw.passages.ids(start, draw.passages.cut(start, draw.room)), kind)
    for _ in range(TRIES):
        index = int(draw.rng.integers(draw.passages.docstrings))
        if draw.passages.kinds[index] == KINDS[kind]:
            return Row(_docstring(draw, index), kind)
    return None


def summary(draw: Draw) -> Row | None:
    """The first words of the first sentence of a docstring, given what follows it."""
    if draw.passages.docstrings == 0:
        return None
    index = int(draw.rng.integers(draw.passages.docstrings))
    start, end = (int(i) for i in draw.passages.document_starts[index : index + 2])
    at = draw.passages.sentences.searchsorted(start, side="right")
    if at == len(draw.passages.sentences) or draw.passages.sentences[at] >= end:
        return None
    second = int(draw.passages.sentences[at])
    body = draw.passages.ids(second, draw.passages.cut(second, draw.room))
    return Row(body, draw.passages.ids(start, min(second, draw.passages.cut(start, draw.longest))))


def next_part(draw: Draw) -> Row | None:
    """Which of two parts, a (0) or b (1), follows a passage?"""
    spans = _halves(draw)
    if spans is None:
        return None
    (start, middle), (_, end) = spans
    length = (end - start) // 3
    first = draw.passages.cut(start, length)
    second = draw.passages.cut(first, length)
    if first - start < 4 or second - first < 4:
        return None
    wrong = _elsewhere(draw, start, second - first)
    options = [draw.passages.ids(first, second), wrong]
    answer = int(draw.flip())
    if answer:
        options.reverse()
    body = draw.passages.ids(start, first)
    return Row(body + draw.encode("a:") + options[0] + draw.encode("b:") + options[1], answer)


def order(draw: Draw) -> Row | None:
    """Are two neighbouring parts in the right order (0) or swapped (1)?"""
    spans = _halves(draw)
    if spans is None:
        return None
    first, second = (draw.passages.ids(*span) for span in spans)
    swapped = draw.flip()
    if swapped:
        first, second = second, first
    return Row(draw.encode("a:") + first + draw.encode("b:") + second, int(swapped))


def together(draw: Draw) -> Row | None:
    """Are two parts neighbours (0) or not (1)?"""
    spans = _halves(draw)
    if spans is None:
        return None
    first, second = (draw.passages.ids(*span) for span in spans)
    apart = draw.flip()
    if apart:
        second = _elsewhere(draw, spans[0][0], len(second))
    return Row(draw.encode("a:") + first + draw.encode("b:") + second, int(apart))


def same(draw: Draw) -> Row | None:
    """Are two passages from the same book (0) or not (1)?"""
    passages = draw.passages
    books = np.flatnonzero(passages.books >= 0)
    if not len(books) or passages.books[books[0]] == passages.books[books[-1]]:
        return None
    index = int(draw.pick(books))
    mates = np.flatnonzero(passages.books == passages.books[index])
    apart = draw.flip()
    other = int(draw.pick(books if apart else mates))
    if apart and passages.books[other] == passages.books[index]:
        return None
    body: list[int] = []
    for marker, document in (("a:", index), ("b:", other)):
        low, high = passages.document_starts[document : document + 2]
        first, last = passages.sentences.searchsorted((low, high))
        if first == last:
            return None
        start = int(passages.sentences[draw.rng.integers(first, last)])
        end = passages.cut(start, draw.room // 2 - 2)
        body += draw.encode(marker) + passages.ids(start, end)
    return Row(body, int(apart))


def scrambled(draw: Draw) -> Row | None:
    """Are all the words in order (0), or some swapped with their neighbours (1)?"""
    start, end = draw.passage(0.25 + 0.75 * draw.rng.random())
    begins = start + np.flatnonzero(draw.passages.is_word_start[draw.passages.tokens[start:end]])
    words = [draw.passages.ids(*span) for span in zip(begins.tolist(), [*begins[1:].tolist(), end])]
    if len(words) < 6:
        return None
    scrambled = draw.flip()
    if scrambled:
        for at in draw.rng.choice(len(words) - 1, max(1, len(words) // 5), replace=False):
            words[at], words[at + 1] = words[at + 1], words[at]
    return Row([i for word in words for i in word], int(scrambled))


def of_book(field: str) -> Callable[[Draw], Row | None]:
    """The `titles` or the `authors` entry of the book that a passage is from."""

    def make(draw: Draw) -> Row | None:
        passages = draw.passages
        start = passages.start(draw.rng, 0.0)
        book = int(passages.books[passages.document_starts.searchsorted(start, side="right") - 1])
        answer = getattr(passages, field).get(book)
        return Row(passages.ids(start, passages.cut(start, draw.room)), answer) if answer else None

    return make


def _partition(rng: np.random.Generator, total: int, parts: int) -> np.ndarray:
    """int64[parts]: random positive lengths that sum to total."""
    cuts = np.sort(rng.choice(total - 1, parts - 1, replace=False)) + 1
    return np.diff(np.concatenate([[0], cuts, [total]]))


def _stream(draw: Draw, length: int) -> list[int]:
    # Across documents, as T5 packs them: neighbours in the corpus are from the same file or book.
    start = draw.passages.start(draw.rng, draw.docstring_share)
    start = max(0, min(start, len(draw.passages.tokens) - length))
    return draw.passages.ids(start, start + length)


def _docstring(draw: Draw, index: int) -> list[int]:
    start, end = draw.passages.document_starts[index : index + 2]
    return draw.passages.ids(int(start), min(int(end), int(start) + draw.room))


def _inside(draw: Draw, start: int, length: int) -> int:
    """A word start up to `length` tokens behind `start`, in its document.

    Were only one of two parts to begin where a sentence does, its first letter would be the answer.
    """
    passages = draw.passages
    end = passages.document(start)[1] - 1
    position = start + int(draw.rng.integers(max(1, min(length, (end - start) // 3))))
    while position < end and not passages.is_word_start[passages.tokens[position]]:
        position += 1
    return position


def _halves(draw: Draw) -> list[tuple[int, int]] | None:
    """Two neighbouring passages of one document that fill the room, less four for markers."""
    length = draw.room // 2 - 2
    start = _inside(draw, draw.passages.start(draw.rng, draw.docstring_share), length)
    end_of_document = draw.passages.document(start)[1]
    if end_of_document - start < 3 * length // 2:
        length = (end_of_document - start) // 2
    found = []
    for _ in range(2):
        end = draw.passages.cut(start, length)
        if end - start < 6:
            return None
        found.append((start, end))
        start = end
    return found


def _elsewhere(draw: Draw, start: int, length: int) -> list[int]:
    """A passage that is not the one at `start`: of the same document where it is long enough."""
    passages = draw.passages
    low, high = passages.document(start)
    if high - low > 8 * length and draw.flip():
        sentences = passages.sentences
        first, last = sentences.searchsorted((low, high - length))
        near = int(sentences[draw.rng.integers(first, last)]) if last > first else start
        if abs(near - start) > 3 * length:
            near = _inside(draw, near, length)
            return passages.ids(near, passages.cut(near, length))
    of_docstring = passages.books[passages.document_starts.searchsorted(low, side="right") - 1] < 0
    other = _inside(draw, passages.start(draw.rng, float(of_docstring)), length)
    return passages.ids(other, passages.cut(other, length))
