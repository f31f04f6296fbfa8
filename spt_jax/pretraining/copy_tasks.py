"""Pretraining tasks whose long answers are all found in the input: repeat, look up, mend.

Finding a place in the input by its content and copying what stands there is what the short tasks
build on, and a soft prompt, which has to name its own label words. A short answer exercises it once
a row, and leaves it to chance when a small model learns it; these answers do so at every token.
"""

import numpy as np

from spt_jax.pretraining.draws import SHORT_ARGUMENT, Draw, Row
from spt_jax.pretraining.word_tasks import different_words

PAIRS = (3, 12)  # least and most rows of the table of `look_up`, as far as there is room
WRONG = 0.15  # share of the words that `mend` replaces


def repeat(draw: Draw) -> Row | None:
    """The passage again from the argument on, a word that it has once."""
    start, end = draw.passage()
    words = draw.passages.words(start, end)
    numbers = draw.passages.word_ids[words]
    values, first, counts = np.unique(numbers, return_index=True, return_counts=True)
    once = first[(counts == 1) & (first < 2 * len(words) / 3)]
    if not len(once):
        return None
    at = int(words[draw.pick(once)])
    begin = int(draw.passages.word_starts[at])
    answer = draw.passages.ids(begin, min(end, draw.passages.cut(begin, draw.longest)))
    return Row(draw.passages.ids(start, end), answer, (draw.passages.word(at),))


def look_up(draw: Draw) -> Row | None:
    """Words and what to say for each, some of which are asked: each of those, and what to say.

    "for ship say red for array say moon text: array ship" is answered "array moon ship red".
    """
    wanted = int(draw.rng.integers(PAIRS[0], PAIRS[1] + 1))
    words = different_words(draw, 2 * wanted)
    pairs = list(zip(words[:wanted], words[wanted:]))
    marks = {mark: draw.encode(mark) for mark in ("for", "say", "text:")}
    room = draw.room - len(marks["text:"])
    table: list[int] = []
    kept = 0
    for key, value in pairs:
        entry = marks["for"] + key + marks["say"] + value
        if len(table) + len(entry) + (kept + 1) * SHORT_ARGUMENT > room:
            break
        table += entry
        kept += 1
    if kept < 2:
        return None
    asked: list[int] = []
    answer: list[int] = []
    for index in draw.rng.permutation(kept)[: int(draw.rng.integers(2, kept + 1))].tolist():
        key, value = pairs[index]
        if len(answer) + len(key) + len(value) > draw.longest:
            break
        asked += key
        answer += key + value
    return Row(table + marks["text:"] + asked, answer)


def mend(draw: Draw) -> Row | None:
    """The passage as it was, before some words made way for others of the corpus."""
    passages = draw.passages
    start, _ = draw.passage()
    end = passages.cut(start, min(draw.longest, 3 * draw.room // 4))
    words = passages.words(start, end)
    wrong = words[draw.rng.random(len(words)) < WRONG]
    if not len(wrong):
        return None
    body: list[int] = []
    position = start
    for at in wrong.tolist():
        begin = int(passages.word_starts[at])
        other = passages.word(int(draw.rng.integers(len(passages.word_starts))))
        body += passages.ids(position, begin) + other
        position = begin + int(passages.word_lengths[at])
    body += passages.ids(position, end)
    return Row(body, passages.ids(start, end)) if len(body) <= draw.room else None
