"""Pretraining tasks about whole passages: denoising, continuation, docstrings, books, order.

Span corruption and prefix LM are T5's (Raffel et al. 2020, section 3.1; Lester et al. 2021, section
3.2). No task asks which package a docstring is from, because the built-in task `library` does.
"""

from collections.abc import Callable

import numpy as np

from spt_jax.pretraining.draws import TRIES, Draw, Row, Unfit
from spt_jax.tokenizers.base import Tokenizer

KINDS = ("function", "class", "method", "module", "story")


def corrupt_spans(
    ids: list[int], rng: np.random.Generator, tokenizer: Tokenizer, *, density=0.15, mean_span=3.0
) -> tuple[list[int], list[int]]:
    """Apply T5's span corruption.

    Returns:
        The inputs, in which a sentinel replaces each span, and the targets, in which each sentinel
        is followed by its span. Sentinels count up from `<extra_id_0>`, the last id of the
        vocabulary.
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
    """Ask for the spans that sentinels replaced in a full window of text."""
    # Sentinels replace 15% of the tokens by a third as many, so 110% of the room fill it.
    ids = _stream(draw, int(draw.room * 1.1))
    return Row(*corrupt_spans(ids, draw.rng, draw.passages.tokenizer))


def lm(draw: Draw) -> Row:
    """Ask for what follows a prefix, which is a full window in 70% of the rows."""
    prefix = draw.room if draw.flip(0.7) else int(draw.rng.integers(draw.room // 6, draw.room))
    ids = _stream(draw, prefix + draw.longest)
    return Row(ids[:prefix], ids[prefix:])


def name(draw: Draw) -> Row:
    """Ask for the name of what a docstring documents, in lower-case words."""
    index = _any_docstring(draw)
    body, answer = _docstring(draw, index), draw.passages.names[index]
    if len(body) < 6 or not 0 < len(answer) <= draw.longest:
        raise Unfit
    return Row(body, answer)


def kind(draw: Draw) -> Row:
    """Ask whether a text documents a function, class, ..., or is a story: an index into `KINDS`."""
    passages = draw.passages
    if passages.docstrings == 0:
        raise Unfit
    kind = draw.below(len(KINDS))
    if KINDS[kind] == "story":
        if passages.docstring_sentences == len(passages.sentences):
            raise Unfit
        return Row(passages.ids(*draw._replace(docstring_share=0.0).passage()), kind)
    for _ in range(TRIES):
        index = _any_docstring(draw)
        if passages.kinds[index] == KINDS[kind]:
            return Row(_docstring(draw, index), kind)
    raise Unfit


def summary(draw: Draw) -> Row:
    """Ask for the first words of a docstring's first sentence, given what follows the sentence."""
    passages = draw.passages
    index = _any_docstring(draw)
    start, end = passages.document_starts[index : index + 2].tolist()
    later = passages.sentences[passages.sentences.searchsorted(start, side="right") :]
    if not len(later) or later[0] >= end:
        raise Unfit
    second = int(later[0])
    body = passages.ids(second, passages.cut(second, draw.room))
    return Row(body, passages.ids(start, min(second, passages.cut(start, draw.longest))))


def next_part(draw: Draw) -> Row:
    """Ask which of two parts, a (0) or b (1), follows a passage."""
    passages = draw.passages
    (start, _), (_, end) = _halves(draw)
    length = (end - start) // 3
    first = passages.cut(start, length)
    second = passages.cut(first, length)
    if first - start < 4 or second - first < 4:
        raise Unfit
    wrong = _elsewhere(draw, start, second - first)
    options = [passages.ids(first, second), wrong]
    answer = int(draw.flip())
    if answer:
        options.reverse()
    return Row(passages.ids(start, first) + _a_and_b(draw, *options), answer)


def order(draw: Draw) -> Row:
    """Ask whether two neighbouring parts are in the right order (0) or swapped (1)."""
    parts = [draw.passages.ids(*span) for span in _halves(draw)]
    swapped = draw.flip()
    if swapped:
        parts.reverse()
    return Row(_a_and_b(draw, *parts), int(swapped))


def together(draw: Draw) -> Row:
    """Ask whether two parts are neighbours (0) or not (1)."""
    spans = _halves(draw)
    first, second = (draw.passages.ids(*span) for span in spans)
    apart = draw.flip()
    if apart:
        second = _elsewhere(draw, spans[0][0], len(second))
    return Row(_a_and_b(draw, first, second), int(apart))


def same(draw: Draw) -> Row:
    """Ask whether two passages are from the same book (0) or not (1)."""
    passages = draw.passages
    books = np.flatnonzero(passages.books >= 0)
    if not len(books) or passages.books[books[0]] == passages.books[books[-1]]:
        raise Unfit
    index = int(draw.pick(books))
    mates = np.flatnonzero(passages.books == passages.books[index])
    apart = draw.flip()
    other = int(draw.pick(books if apart else mates))
    if apart and passages.books[other] == passages.books[index]:
        raise Unfit
    parts = []
    for document in (index, other):
        low, high = passages.document_starts[document : document + 2]
        first, last = passages.sentences.searchsorted((low, high))
        if first == last:
            raise Unfit
        start = int(passages.sentences[draw.rng.integers(first, last)])
        parts.append(passages.ids(start, passages.cut(start, draw.room // 2 - 2)))
    return Row(_a_and_b(draw, *parts), int(apart))


def scrambled(draw: Draw) -> Row:
    """Ask whether all words are in order (0), or some are swapped with their neighbours (1)."""
    start, end = draw.passage(0.25 + 0.75 * draw.rng.random())
    begins = start + np.flatnonzero(draw.passages.is_word_start[draw.passages.tokens[start:end]])
    words = [draw.passages.ids(*span) for span in zip(begins.tolist(), [*begins[1:].tolist(), end])]
    if len(words) < 6:
        raise Unfit
    scrambled = draw.flip()
    if scrambled:
        for at in draw.rng.choice(len(words) - 1, max(1, len(words) // 5), replace=False):
            words[at], words[at + 1] = words[at + 1], words[at]
    return Row([i for word in words for i in word], int(scrambled))


def of_book(field: str) -> Callable[[Draw], Row]:
    """Return the task that asks for the `titles` or `authors` entry of a passage's book."""

    def make(draw: Draw) -> Row:
        passages = draw.passages
        start, end = draw._replace(docstring_share=0.0).passage()
        answer = getattr(passages, field).get(passages.book(start))
        if not answer:
            raise Unfit
        return Row(passages.ids(start, end), answer)

    return make


def _partition(rng: np.random.Generator, total: int, parts: int) -> np.ndarray:
    """Return random positive lengths that sum to `total`, int64[parts]."""
    cuts = np.sort(rng.choice(total - 1, parts - 1, replace=False)) + 1
    return np.diff(np.concatenate([[0], cuts, [total]]))


def _stream(draw: Draw, length: int) -> list[int]:
    """Return a window of the corpus, across documents as in T5: neighbours share file or book."""
    start = max(0, min(draw.start(), len(draw.passages.tokens) - length))
    return draw.passages.ids(start, start + length)


def _any_docstring(draw: Draw) -> int:
    """Return the number of a random docstring; raise Unfit if there is none."""
    if draw.passages.docstrings == 0:
        raise Unfit
    return draw.below(draw.passages.docstrings)


def _docstring(draw: Draw, index: int) -> list[int]:
    start, end = draw.passages.document_starts[index : index + 2].tolist()
    return draw.passages.ids(start, min(end, start + draw.room))


def _a_and_b(draw: Draw, first: list[int], second: list[int]) -> list[int]:
    return draw.encode("a:") + first + draw.encode("b:") + second


def _inside(draw: Draw, start: int, length: int) -> int:
    """Return a word start up to `length` tokens after `start`, in the same document.

    If only one of two parts began with a sentence, its capital letter would give the answer away.
    """
    end = draw.passages.document(start)[1] - 1
    return draw.passages.next_word(start + draw.below(max(1, min(length, (end - start) // 3))), end)


def _halves(draw: Draw) -> list[tuple[int, int]]:
    """Return start and end of two neighbouring passages of one document.

    They fill the room, less four tokens for markers.

    Raises:
        Unfit: One of them has fewer than 6 tokens.
    """
    length = draw.room // 2 - 2
    start = _inside(draw, draw.start(), length)
    left = draw.passages.document(start)[1] - start
    if left < 3 * length // 2:
        length = left // 2
    found = []
    for _ in range(2):
        end = draw.passages.cut(start, length)
        if end - start < 6:
            raise Unfit
        found.append((start, end))
        start = end
    return found


def _elsewhere(draw: Draw, start: int, length: int) -> list[int]:
    """Return a passage other than the one at `start`.

    Half of those from a document that is long enough are from the same document.
    """
    passages = draw.passages
    low, high = passages.document(start)
    if high - low > 8 * length and draw.flip():
        first, last = passages.sentences.searchsorted((low, high - length))
        near = int(passages.sentences[draw.rng.integers(first, last)]) if last > first else start
        if abs(near - start) > 3 * length:
            near = _inside(draw, near, length)
            return passages.ids(near, passages.cut(near, length))
    of_docstring = float(passages.book(start) < 0)
    other = _inside(draw, passages.start(draw.rng, of_docstring), length)
    return passages.ids(other, passages.cut(other, length))
