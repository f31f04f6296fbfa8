"""Pretraining tasks about words: find, count, name, fill in or tell apart the words of a passage.

Every answer is a word of the passage, a word taken out of it, or a label that the passage decides.
They ask about plain words (see `passages`), so the ids of an answer do not depend on its place.
"""

from collections.abc import Callable

import numpy as np

from spt_jax.pretraining.draws import SHORT_ARGUMENT, TRIES, Draw, Row
from spt_jax.pretraining.wordlists import CHOICES, MOODS

COUNTS = ("none", "one", "two", "three", "many")
GROUPS = (2, 4)  # least and most groups of keywords in the instruction of `assign`
GROUP = 10  # tokens kept free for each of them
_LEFT = 10  # tokens kept for the word that a passage was drawn around and for what follows it


def copy(draw: Draw) -> Row | None:
    """The first words."""
    start, end = draw.passage(0.15 + 0.85 * draw.rng.random())
    answer = draw.passages.ids(start, min(end, draw.passages.cut(start, min(8, draw.longest))))
    return Row(draw.passages.ids(start, end), answer)


def edge(which: int) -> Callable[[Draw], Row | None]:
    """The first (0) or last (-1) word."""

    def make(draw: Draw) -> Row | None:
        found = _words(draw)
        if found is None:
            return None
        start, end, words = found
        if which < 0:
            end = int(draw.passages.word_starts[words[-1]] + draw.passages.word_lengths[words[-1]])
        else:
            start = int(draw.passages.word_starts[words[0]])
        return Row(draw.passages.ids(start, end), draw.passages.word(words[which]))

    return make


def neighbour(step: int) -> Callable[[Draw], Row | None]:
    """The word behind (1) or before (-1) the argument."""

    def make(draw: Draw) -> Row | None:
        found = _words(draw, 8)
        if found is None:
            return None
        start, end, words = found
        numbers = draw.passages.word_ids[words]
        at = int(draw.rng.integers(1, len(words) - 1))
        if np.count_nonzero(numbers == numbers[at]) > 1:
            return None
        body = draw.passages.ids(start, end)
        return Row(body, draw.passages.word(words[at + step]), (draw.passages.word(words[at]),))

    return make


def contains(draw: Draw) -> Row | None:
    """Is the argument a word of the passage (0) or not (1)?"""
    found = _words(draw)
    if found is None:
        return None
    start, end, words = found
    present = draw.flip()
    word = draw.pick(words)
    if not present:
        # An absent word is drawn from another passage, so that it may be as frequent a word.
        numbers = draw.passages.word_ids[words]
        for _ in range(TRIES):
            other = _words(draw, 1)
            if other is not None:
                word = draw.pick(other[2])
                if draw.passages.word_ids[word] not in numbers:
                    break
        else:
            return None
    return Row(draw.passages.ids(start, end), int(not present), (draw.passages.word(word),))


def count(draw: Draw) -> Row | None:
    """How often the argument occurs, as an index into `COUNTS`."""
    found = _words(draw)
    if found is None:
        return None
    start, end, words = found
    wanted = int(draw.rng.integers(len(COUNTS)))
    numbers = draw.passages.word_ids[words]
    if wanted == 0:
        word = int(draw.rng.integers(len(draw.passages.word_ids)))
        if draw.passages.word_ids[word] in numbers:
            return None
    else:
        values, first, counts = np.unique(numbers, return_index=True, return_counts=True)
        fitting = np.flatnonzero(counts == wanted if wanted < 4 else counts >= 4)
        if not len(fitting):
            return None
        word = int(words[first[draw.pick(fitting)]])
    return Row(draw.passages.ids(start, end), wanted, (draw.passages.word(word),))


def topic(draw: Draw) -> Row | None:
    """The word of the highest tf-idf."""
    found = _words(draw)
    if found is None:
        return None
    start, end, words = found
    best = _keyword(draw, words)
    return None if best is None else Row(draw.passages.ids(start, end), draw.passages.word(best))


def pick(draw: Draw) -> Row | None:
    """Which of four keywords is this passage's? It is itself taken out of half the passages."""
    found = _words(draw)
    if found is None:
        return None
    start, end, words = found
    best = _keyword(draw, words)
    if best is None:
        return None
    numbers = {int(i) for i in draw.passages.word_ids[words]}
    options = [draw.passages.word(best)]
    for _ in range(TRIES):
        other = _words(draw)
        keyword = None if other is None else _keyword(draw, other[2])
        if keyword is not None and int(draw.passages.word_ids[keyword]) not in numbers:
            numbers.add(int(draw.passages.word_ids[keyword]))
            options.append(draw.passages.word(keyword))
        if len(options) == 4:
            break
    if len(options) < 4 or max(map(len, options)) > SHORT_ARGUMENT:
        return None
    answer = options[0]
    body = draw.passages.ids(start, end)
    if draw.flip():
        sentinel = [draw.passages.tokenizer.sentinel(0)]
        same = words[draw.passages.word_ids[words] == draw.passages.word_ids[best]]
        for begin in (draw.passages.word_starts[same] - start).tolist()[::-1]:
            body[begin : begin + len(answer)] = sentinel
    shuffled = [options[i] for i in draw.rng.permutation(4)]
    return Row(body, answer, tuple(shuffled))


def assign(draw: Draw) -> Row | None:
    """What to say to a passage, by the keywords that are its own.

    The input names groups of keywords and, for each, any word to say: "for ship sail say red for
    array shape say moon text: ...". A soft prompt has to hold the same kind of table for a
    classification. The keywords of the right group are in the passage, or in what follows it.
    """
    passages = draw.passages
    groups = int(draw.rng.integers(GROUPS[0], GROUPS[1] + 1))
    inner = draw._replace(room=draw.room - GROUP * groups - 2)
    found = _words(inner)
    if found is None:
        return None
    start, end, shown = found
    behind = min(end + inner.room, passages.document(start)[1])
    source = shown if draw.flip() else passages.words(end, behind)
    taken = set(passages.word_ids[shown].tolist())
    right = _keywords(draw, source, set() if source is shown else taken)
    if right is None:
        return None
    keywords = [right]
    of_docstring = float(start < passages.document_starts[passages.docstrings])
    alike = inner._replace(docstring_share=of_docstring) if draw.flip(0.75) else inner
    for _ in range(TRIES):
        taken.update(passages.word_ids[keywords[-1]].tolist())
        other = _words(alike)
        wrong = None if other is None else _keywords(draw, other[2], taken)
        if wrong is not None:
            keywords.append(wrong)
        if len(keywords) == groups:
            break
    else:
        return None
    answers = different_words(draw, groups)
    table: list[int] = []
    for group in draw.rng.permutation(groups).tolist():
        named = [i for word in keywords[group] for i in passages.word(word)]
        table += draw.encode("for") + named + draw.encode("say") + answers[group]
    return Row(table + draw.encode("text:") + passages.ids(start, end), answers[0])


def odd(draw: Draw) -> Row | None:
    """A word of another passage that took the place of one here."""
    found = _words(draw, 8)
    if found is None:
        return None
    start, end, words = found
    other = int(draw.rng.integers(len(draw.passages.word_ids)))
    at = int(draw.pick(words))
    if draw.passages.word_ids[other] in draw.passages.word_ids[words]:
        return None
    answer = draw.passages.word(other)
    return Row(_replace(draw, start, end, at, answer), answer)


def gap(draw: Draw) -> Row | None:
    """The word behind the sentinel; telling words are taken out more often."""
    found = _words(draw)
    if found is None:
        return None
    start, end, words = found
    weights = np.maximum(draw.passages.idf[draw.passages.word_ids[words]], 0.5)
    at = int(draw.rng.choice(words, p=weights / weights.sum()))
    sentinel = [draw.passages.tokenizer.sentinel(0)]
    return Row(_replace(draw, start, end, at, sentinel), draw.passages.word(at))


def choice(draw: Draw) -> Row | None:
    """Which of two arguments stood at the sentinel?"""
    words = draw.pick(CHOICES)
    first, second = (int(i) for i in draw.rng.choice(len(words), 2, replace=False))
    places = draw.passages.occurrences(words[first])
    if not len(places):
        return None
    at = int(draw.pick(places))
    start, end = _around(draw, at)
    right, wrong = draw.passages.word(at), draw.encode(words[second])
    options = (right, wrong) if draw.flip() else (wrong, right)
    sentinel = [draw.passages.tokenizer.sentinel(0)]
    return Row(_replace(draw, start, end, at, sentinel), right, options)


def mood(draw: Draw) -> Row | None:
    """Is a word of `MOODS`, often hidden behind a sentinel, a bad (0) or a good (1) one?"""
    mood = int(draw.flip())
    places = draw.passages.occurrences(draw.pick(MOODS[mood]))
    if not len(places):
        return None
    at = int(draw.pick(places))
    start, end = _around(draw, at)
    hidden = [draw.passages.tokenizer.sentinel(0)] if draw.flip(0.6) else draw.passages.word(at)
    return Row(_replace(draw, start, end, at, hidden), mood)


def _words(draw: Draw, least: int = 6) -> tuple[int, int, np.ndarray] | None:
    """Start, end and plain words of a passage that has at least so many."""
    start, end = draw.passage()
    words = draw.passages.words(start, end)
    return (start, end, words) if len(words) >= least else None


def _keyword(draw: Draw, words: np.ndarray) -> int | None:
    """The word of the highest tf-idf among some."""
    numbers = draw.passages.word_ids[words]
    values, first, counts = np.unique(numbers, return_index=True, return_counts=True)
    scores = draw.passages.idf[values] * counts
    best = int(np.argmax(scores))
    return int(words[first[best]]) if scores[best] > 0 else None


def _keywords(draw: Draw, words: np.ndarray, taken: set[int]) -> np.ndarray | None:
    """One or two different keywords among some words, none of them with a taken number."""
    passages = draw.passages
    numbers, first = np.unique(passages.word_ids[words], return_index=True)
    weights = passages.idf[numbers] ** 2 * ~np.isin(numbers, list(taken))
    weights *= passages.word_lengths[words[first]] <= SHORT_ARGUMENT
    wanted = 1 + draw.flip()
    if np.count_nonzero(weights) < wanted:
        return None
    return words[draw.rng.choice(first, wanted, replace=False, p=weights / weights.sum())]


def different_words(draw: Draw, count: int) -> list[list[int]]:
    """So many different short words: of the labels, each as likely, or as frequent as in text."""
    passages, found = draw.passages, []
    while len(found) < count:
        if draw.flip() and len(passages.labels) > count:
            word = [int(draw.pick(passages.labels))]
        else:
            word = passages.word(int(draw.rng.integers(len(passages.word_starts))))
        if len(word) <= SHORT_ARGUMENT and word not in found:
            found.append(word)
    return found


def _around(draw: Draw, word: int) -> tuple[int, int]:
    """A passage around a word: from a sentence start where one is near, at times a short one."""
    passages = draw.passages
    position = int(passages.word_starts[word])
    low, high = passages.document(position)
    room = draw.room if draw.flip(0.6) else draw.room // 3
    earliest = max(low, position - room + _LEFT)
    at = passages.sentences.searchsorted(earliest)
    last = passages.sentences.searchsorted(position, side="right")
    if at < last:
        start = int(passages.sentences[draw.rng.integers(at, last)])
    else:
        start = earliest
        while start < position and not passages.is_word_start[passages.tokens[start]]:
            start += 1
    return start, passages.cut(start, room)


def _replace(draw: Draw, start: int, end: int, word: int, ids: list[int]) -> list[int]:
    """The passage from start to end with other ids in the place of one word."""
    begin = int(draw.passages.word_starts[word])
    after = begin + int(draw.passages.word_lengths[word])
    body = draw.passages.ids(start, begin) + ids + draw.passages.ids(after, end)
    return body[: draw.room]
