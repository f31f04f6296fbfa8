"""Pretraining tasks about words: find, count, name, fill in or tell apart the words of a passage.

Every answer is a word of the passage, a word taken out of it, or a label that the passage decides.
The tasks ask about plain words only (see `passages`), whose token ids do not depend on their place.
"""

from collections.abc import Callable

import numpy as np

from spt_jax.pretraining.draws import SHORT_ARGUMENT, Draw, Row, Unfit
from spt_jax.pretraining.wordlists import CHOICES, MOODS

COUNTS = ("none", "one", "two", "three", "many")
GROUPS = (2, 4)  # least and most groups of keywords in the instruction of `assign`
GROUP = 10  # tokens kept free for each group
_LEFT = 10  # tokens kept for the word that a passage is drawn around, and for what follows it


def copy(draw: Draw) -> Row:
    """Ask for the first words."""
    start, end = draw.passage(0.15 + 0.85 * draw.rng.random())
    answer = draw.passages.ids(start, min(end, draw.passages.cut(start, min(8, draw.longest))))
    return Row(draw.passages.ids(start, end), answer)


def edge(which: int) -> Callable[[Draw], Row]:
    """Return the task that asks for the first (0) or last (-1) word."""

    def make(draw: Draw) -> Row:
        start, end, words = draw.words()
        if which < 0:
            end = draw.passages.word_end(words[-1])
        else:
            start = int(draw.passages.word_starts[words[0]])
        return Row(draw.passages.ids(start, end), draw.passages.word(words[which]))

    return make


def neighbour(step: int) -> Callable[[Draw], Row]:
    """Return the task that asks for the word after (1) or before (-1) the argument."""

    def make(draw: Draw) -> Row:
        start, end, words = draw.words(8)
        numbers = draw.passages.word_ids[words]
        at = int(draw.rng.integers(1, len(words) - 1))
        if np.count_nonzero(numbers == numbers[at]) > 1:
            raise Unfit
        body = draw.passages.ids(start, end)
        return Row(body, draw.passages.word(words[at + step]), (draw.passages.word(words[at]),))

    return make


def contains(draw: Draw) -> Row:
    """Ask whether the argument is a word of the passage (0) or not (1)."""
    start, end, words = draw.words()
    present = draw.flip()
    word = draw.pick(words)
    if not present:
        # The absent word is from another passage, because a random one would be a rarer word.
        numbers = draw.passages.word_ids[words]
        for others in draw.others(1):
            word = draw.pick(others)
            if draw.passages.word_ids[word] not in numbers:
                break
        else:
            raise Unfit
    return Row(draw.passages.ids(start, end), int(not present), (draw.passages.word(word),))


def count(draw: Draw) -> Row:
    """Ask how often the argument occurs. The answer is an index into `COUNTS`."""
    start, end, words = draw.words()
    wanted = draw.below(len(COUNTS))
    numbers = draw.passages.word_ids[words]
    if wanted == 0:
        word = draw.any_word()
        if draw.passages.word_ids[word] in numbers:
            raise Unfit
    else:
        _, first, counts = np.unique(numbers, return_index=True, return_counts=True)
        fitting = np.flatnonzero(counts == wanted if wanted < 4 else counts >= 4)
        if not len(fitting):
            raise Unfit
        word = int(words[first[draw.pick(fitting)]])
    return Row(draw.passages.ids(start, end), wanted, (draw.passages.word(word),))


def topic(draw: Draw) -> Row:
    """Ask for the word of the highest tf-idf."""
    start, end, words = draw.words()
    return Row(draw.passages.ids(start, end), draw.passages.word(_keyword(draw, words)))


def pick(draw: Draw) -> Row:
    """Ask which of four keywords belongs to the passage. Half of the passages do not contain it."""
    start, end, words = draw.words()
    ids = draw.passages.word_ids
    best = _keyword(draw, words)
    numbers = set(ids[words].tolist())
    options = [draw.passages.word(best)]
    for others in draw.others():
        try:
            keyword = _keyword(draw, others)
        except Unfit:
            continue
        if ids[keyword] not in numbers:
            numbers.add(int(ids[keyword]))
            options.append(draw.passages.word(keyword))
        if len(options) == 4:
            break
    if len(options) < 4 or max(map(len, options)) > SHORT_ARGUMENT:
        raise Unfit
    answer = options[0]
    body = draw.passages.ids(start, end)
    if draw.flip():
        same = words[ids[words] == ids[best]]
        for begin in (draw.passages.word_starts[same] - start).tolist()[::-1]:
            body[begin : begin + len(answer)] = draw.sentinel()
    return Row(body, answer, tuple(options[i] for i in draw.rng.permutation(4)))


def assign(draw: Draw) -> Row:
    """Ask what to say to a passage, by the keywords that belong to it.

    The input names groups of keywords and, for each, any word to say: "for ship sail say red for
    array shape say moon text: ...". A soft prompt has to hold the same kind of table for a
    classification. The keywords of the right group are in the passage, or in what follows it.
    """
    passages = draw.passages
    groups = int(draw.rng.integers(GROUPS[0], GROUPS[1] + 1))
    inner = draw._replace(room=draw.room - GROUP * groups - 2)
    start, end, shown = inner.words()
    taken = set(passages.word_ids[shown].tolist())
    if draw.flip():
        keywords = [_keywords(draw, shown, set())]
    else:
        after = passages.words(end, min(end + inner.room, passages.document(start)[1]))
        keywords = [_keywords(draw, after, taken)]
    of_docstring = float(start < passages.document_starts[passages.docstrings])
    alike = inner._replace(docstring_share=of_docstring) if draw.flip(0.75) else inner
    for others in alike.others():
        taken.update(passages.word_ids[keywords[-1]].tolist())
        try:
            keywords.append(_keywords(draw, others, taken))
        except Unfit:
            continue
        if len(keywords) == groups:
            break
    else:
        raise Unfit
    answers = different_words(draw, groups)
    table: list[int] = []
    for group in draw.rng.permutation(groups).tolist():
        named = [i for word in keywords[group] for i in passages.word(word)]
        table += draw.encode("for") + named + draw.encode("say") + answers[group]
    return Row(table + draw.encode("text:") + passages.ids(start, end), answers[0])


def odd(draw: Draw) -> Row:
    """Ask for the word of another passage that replaced one here."""
    start, end, words = draw.words(8)
    other = draw.any_word()
    at = int(draw.pick(words))
    if draw.passages.word_ids[other] in draw.passages.word_ids[words]:
        raise Unfit
    answer = draw.passages.word(other)
    return Row(_replace(draw, start, end, at, answer), answer)


def gap(draw: Draw) -> Row:
    """Ask for the word that a sentinel replaced. Words of a high idf are replaced more often."""
    start, end, words = draw.words()
    weights = np.maximum(draw.passages.idf[draw.passages.word_ids[words]], 0.5)
    at = int(draw.rng.choice(words, p=weights / weights.sum()))
    return Row(_replace(draw, start, end, at, draw.sentinel()), draw.passages.word(at))


def choice(draw: Draw) -> Row:
    """Ask which of two arguments a sentinel replaced."""
    words = draw.pick(CHOICES)
    first, second = draw.rng.choice(len(words), 2, replace=False)
    at = _occurrence(draw, words[first])
    start, end = _around(draw, at)
    right, wrong = draw.passages.word(at), draw.encode(words[second])
    options = (right, wrong) if draw.flip() else (wrong, right)
    return Row(_replace(draw, start, end, at, draw.sentinel()), right, options)


def mood(draw: Draw) -> Row:
    """Ask whether a word of `MOODS`, often replaced by a sentinel, is a bad (0) or good (1) one."""
    mood = int(draw.flip())
    at = _occurrence(draw, draw.pick(MOODS[mood]))
    start, end = _around(draw, at)
    shown = draw.sentinel() if draw.flip(0.6) else draw.passages.word(at)
    return Row(_replace(draw, start, end, at, shown), mood)


def different_words(draw: Draw, count: int) -> list[list[int]]:
    """Return the token ids of `count` different short words.

    Each is with equal probability one of the labels, or a word drawn by its frequency in the text.
    """
    passages, found = draw.passages, []
    while len(found) < count:
        if draw.flip() and len(passages.labels) > count:
            word = [int(draw.pick(passages.labels))]
        else:
            word = passages.word(draw.any_word())
        if len(word) <= SHORT_ARGUMENT and word not in found:
            found.append(word)
    return found


def _keyword(draw: Draw, words: np.ndarray) -> int:
    """Return the word of the highest tf-idf; raise Unfit if none is a keyword."""
    numbers, first, counts = np.unique(
        draw.passages.word_ids[words], return_index=True, return_counts=True
    )
    scores = draw.passages.idf[numbers] * counts
    best = int(np.argmax(scores))
    if scores[best] <= 0:
        raise Unfit
    return int(words[first[best]])


def _keywords(draw: Draw, words: np.ndarray, taken: set[int]) -> np.ndarray:
    """Return one or two different keywords whose numbers are not taken; raise Unfit if too few."""
    passages = draw.passages
    numbers, first = np.unique(passages.word_ids[words], return_index=True)
    weights = passages.idf[numbers] ** 2 * ~np.isin(numbers, list(taken))
    weights *= passages.word_lengths[words[first]] <= SHORT_ARGUMENT
    wanted = 1 + draw.flip()
    if np.count_nonzero(weights) < wanted:
        raise Unfit
    return words[draw.rng.choice(first, wanted, replace=False, p=weights / weights.sum())]


def _occurrence(draw: Draw, text: str) -> int:
    """Return a random place of a word in the corpus; raise Unfit if it does not occur."""
    places = draw.passages.occurrences(text)
    if not len(places):
        raise Unfit
    return int(draw.pick(places))


def _around(draw: Draw, word: int) -> tuple[int, int]:
    """Return start and end of a passage around a word; some passages are short.

    The passage starts with a sentence if one starts near the word.
    """
    passages = draw.passages
    position = int(passages.word_starts[word])
    low, _ = passages.document(position)
    room = draw.room if draw.flip(0.6) else draw.room // 3
    start = max(low, position - room + _LEFT)
    first = passages.sentences.searchsorted(start)
    last = passages.sentences.searchsorted(position, side="right")
    if first < last:
        start = int(passages.sentences[draw.rng.integers(first, last)])
    else:
        start = passages.next_word(start, position)
    return start, passages.cut(start, room)


def _replace(draw: Draw, start: int, end: int, word: int, ids: list[int]) -> list[int]:
    """Return the token ids of a passage in which other ids replace one word."""
    passages = draw.passages
    begin = int(passages.word_starts[word])
    body = passages.ids(start, begin) + ids + passages.ids(passages.word_end(word), end)
    return body[: draw.room]
