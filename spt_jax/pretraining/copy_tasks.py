"""Pretraining tasks whose long answers are all found in the input: repeat, look up, mend.

The short tasks need the model to find a place in its input by its content and to copy from there. A
soft prompt, which names its own label words, needs that too. A short answer trains it once a row;
these answers train it at every token.
"""

import numpy as np

from spt_jax.pretraining.draws import SHORT_ARGUMENT, Draw, Row, Unfit
from spt_jax.pretraining.word_tasks import different_words

PAIRS = (3, 12)  # least and most rows of the table of `look_up`, if there is room
WRONG = 0.15  # share of the words that `mend` replaces


def repeat(draw: Draw) -> Row:
    """Ask for the passage from the argument on, which is a word that occurs once."""
    start, end = draw.passage()
    words = draw.passages.words(start, end)
    _, first, counts = np.unique(
        draw.passages.word_ids[words], return_index=True, return_counts=True
    )
    once = first[(counts == 1) & (first < 2 * len(words) / 3)]
    if not len(once):
        raise Unfit
    at = int(words[draw.pick(once)])
    begin = int(draw.passages.word_starts[at])
    answer = draw.passages.ids(begin, min(end, draw.passages.cut(begin, draw.longest)))
    return Row(draw.passages.ids(start, end), answer, (draw.passages.word(at),))


def look_up(draw: Draw) -> Row:
    """Give a table of words and what to say for each, and ask for some of its rows.

    "for ship say red for array say moon text: array ship" is answered "array moon ship red".
    """
    wanted = int(draw.rng.integers(PAIRS[0], PAIRS[1] + 1))
    words = different_words(draw, 2 * wanted)
    pairs = list(zip(words[:wanted], words[wanted:]))
    marker = draw.encode("text:")
    room = draw.room - len(marker)
    table: list[int] = []
    kept = 0
    for key, value in pairs:
        entry = draw.encode("for") + key + draw.encode("say") + value
        if len(table) + len(entry) + (kept + 1) * SHORT_ARGUMENT > room:
            break
        table += entry
        kept += 1
    if kept < 2:
        raise Unfit
    asked: list[int] = []
    answer: list[int] = []
    for index in draw.rng.permutation(kept)[: int(draw.rng.integers(2, kept + 1))].tolist():
        key, value = pairs[index]
        if len(answer) + len(key) + len(value) > draw.longest:
            break
        asked += key
        answer += key + value
    return Row(table + marker + asked, answer)


def mend(draw: Draw) -> Row:
    """Ask for the passage without the random words that replaced some of its words."""
    passages = draw.passages
    start = draw.passage()[0]
    end = passages.cut(start, min(draw.longest, 3 * draw.room // 4))
    words = passages.words(start, end)
    wrong = words[draw.rng.random(len(words)) < WRONG]
    body: list[int] = []
    position = start
    for at in wrong.tolist():
        body += passages.ids(position, int(passages.word_starts[at]))
        body += passages.word(draw.any_word())
        position = passages.word_end(at)
    body += passages.ids(position, end)
    if not len(wrong) or len(body) > draw.room:
        raise Unfit
    return Row(body, passages.ids(start, end))
