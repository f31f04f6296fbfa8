"""ROUGE of summaries, with the numbers of T5's own evaluation.

This is written here because `rouge-score`, the package of the reference, has had no release since
2022 and imports nltk for a stemmer and a sentence splitter that T5's evaluation does not use; the
tests compare the two. T5's evaluation takes the middle of bootstrap samples. Here a score is the
mean, because that is the same from one call to the next.
"""

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

from spt_jax.evaluation.metrics.texts import Examples, Scores, Texts, Words, answers_of

_WORD = re.compile("[a-z0-9]+")  # any other character separates words, also a letter such as é
_NAMES = ("rouge1", "rouge2", "rougeLsum")


def rouge(predictions: Texts, examples: Examples, label_words: Words) -> Scores:
    """Return the F1 of words, of pairs of words, and of common subsequences (Lin 2004).

    Each is the best over all answers, and the mean over the rows. Case does not count, and words
    are not stemmed. `rougeLsum` takes a text apart into sentences at line breaks and at " . ".
    """
    rows = []
    for prediction, example in zip(predictions, examples, strict=True):
        written = _sentences(prediction)
        rows.append(np.max([_score(written, _sentences(a)) for a in answers_of(example)], axis=0))
    return dict(zip(_NAMES, (100 * np.mean(rows, axis=0)).tolist(), strict=True))


def _sentences(text: str) -> list[list[str]]:
    """Return the words of each sentence."""
    return [_WORD.findall(line.lower()) for line in text.replace(" . ", " .\n").split("\n")]


def _score(written: Sequence[list[str]], answer: Sequence[list[str]]) -> tuple[float, float, float]:
    """Return F1, from 0 to 1, by each of `_NAMES`."""
    words = [[word for sentence in text for word in sentence] for text in (written, answer)]
    pairs = [[*zip(text, text[1:], strict=False)] for text in words]
    counts = [Counter(text) for text in words]
    lengths = sum(map(len, words))
    return (
        _f1((counts[0] & counts[1]).total(), lengths),
        _f1((Counter(pairs[0]) & Counter(pairs[1])).total(), sum(map(len, pairs))),
        _f1(_summary_hits(written, answer, counts[0]), lengths),
    )


def _f1(hits: int, items: int) -> float:
    """Return F1 of two lists that have `items` items together and `hits` of them in common."""
    return 2 * hits / items if items else 0.0


def _summary_hits(
    written: Sequence[list[str]], answer: Sequence[list[str]], counts: Counter[str]
) -> int:
    """Count the words of the answer that are in a common subsequence (Lin 2004, section 3.2).

    A word of a sentence of the answer counts once, if it is in the longest common subsequence with
    any sentence that was written. It counts at most as often as it was written, as in ROUGE 1.5.5.

    Args:
        written: Words of each sentence of the prediction.
        answer: Words of each sentence of the answer.
        counts: How often the prediction has each word.
    """
    hits: Counter[str] = Counter()
    for sentence in answer:
        places = set().union(*(_common_places(sentence, other) for other in written))
        hits.update(sentence[place] for place in places)
    return (hits & counts).total()


def _common_places(sentence: Sequence[str], other: Sequence[str]) -> list[int]:
    """Return the places in `sentence` of a longest common subsequence with `other`.

    Of several such subsequences this is the one that the reference finds, from the ends: it skips a
    word of `other` only where that is better than to skip a word of `sentence`.
    """
    if not set(sentence) & set(other):
        return []
    number = {word: number for number, word in enumerate(other)}
    numbers = np.array([number[word] for word in other])
    lengths = np.zeros((len(sentence) + 1, len(other) + 1), np.int32)  # of the first i and j words
    for i, word in enumerate(sentence):
        longer = np.maximum(lengths[i, 1:], lengths[i, :-1] + (numbers == number.get(word, -1)))
        np.maximum.accumulate(longer, out=lengths[i + 1, 1:])
    places, i, j = [], len(sentence), len(other)
    while i and j:
        if sentence[i - 1] == other[j - 1]:
            i, j = i - 1, j - 1
            places.append(i)
        elif lengths[i, j - 1] > lengths[i - 1, j]:
            j -= 1
        else:
            i -= 1
    return places
