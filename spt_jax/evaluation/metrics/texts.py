"""Scores of free text, which is compared with the target, with answers, or with a name."""

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from spt_jax.data.example import Example

Texts = Sequence[str]
Examples = Sequence[Example]
Words = Sequence[str] | None  # the label words of a task, or None for free text
Scores = dict[str, float]  # by name, from 0 to 100
Metric = Callable[[Texts, Examples, Words], Scores]

_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_DETERMINERS = frozenset(
    "a an few her his each every many much my our some that the their these this those which whose "
    "your".split()
)


def normalize(text: str) -> str:
    """Replace runs of white space by single spaces and remove those at the ends."""
    return " ".join(text.split())


def exact_match(predictions: Texts, targets: Sequence[str]) -> float:
    """Return the percentage of predictions that equal their target. Case counts."""
    hits = sum(normalize(p) == normalize(t) for p, t in zip(predictions, targets, strict=True))
    return 100 * hits / len(targets)


def invalid_share(predictions: Texts, label_words: Sequence[str]) -> float:
    """Return the percentage of predictions that are not a label word."""
    words = {normalize(word) for word in label_words}
    return 100 * sum(normalize(p) not in words for p in predictions) / len(predictions)


def squad(predictions: Texts, examples: Examples, label_words: Words) -> Scores:
    """Return exact match and F1 of words by the rules of SQuAD 1.1.

    Each is the best over all answers. Case, ASCII punctuation and articles do not count.
    """
    pairs = [
        (_squad_words(prediction), [_squad_words(answer) for answer in answers_of(example)])
        for prediction, example in zip(predictions, examples, strict=True)
    ]
    exact = [max(words == answer for answer in answers) for words, answers in pairs]
    overlap = [max(_overlap(words, answer) for answer in answers) for words, answers in pairs]
    return {"exact_match": 100 * float(np.mean(exact)), "f1": 100 * float(np.mean(overlap))}


def squad_by_group(predictions: Texts, examples: Examples, label_words: Words) -> Scores:
    """Return `squad` of the first example of each group: ReCoRD repeats a query for each answer."""
    first: dict[str, int] = {}
    for number, example in enumerate(examples):
        first.setdefault(example.group, number)
    kept = list(first.values())
    return squad([predictions[i] for i in kept], [examples[i] for i in kept], label_words)


def wsc(predictions: Texts, examples: Examples, label_words: Words) -> Scores:
    """Return the accuracy of WSC.

    A prediction names the candidate if the words of one are among the words of the other. Case and
    determiners do not count, and an apostrophe in only one of them (Bob, Bob's hat) makes them
    different. Naming the candidate is right if the label is 1. An empty prediction is wrong.
    """
    right = []
    for prediction, example in zip(predictions, examples, strict=True):
        guess, candidate = _without_determiners(prediction), _without_determiners(example.targets)
        words, candidate_words = {*guess.split(" ")}, {*candidate.split(" ")}
        named = ("'" in guess) == ("'" in candidate) and (
            words <= candidate_words or candidate_words <= words
        )
        right.append(bool(guess) and int(named) == example.label)
    return {"accuracy": 100 * float(np.mean(right))}


def answers_of(example: Example) -> tuple[str, ...]:
    """Return the texts that an example may be answered with."""
    return example.answers or (example.targets,)


def _squad_words(text: str) -> list[str]:
    return _ARTICLES.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split()


def _overlap(prediction: Sequence[str], answer: Sequence[str]) -> float:
    """Return F1 of two bags of words, or 0 if they have no word in common."""
    common = (Counter(prediction) & Counter(answer)).total()
    return 2 * common / (len(prediction) + len(answer)) if common else 0.0


def _without_determiners(text: str) -> str:
    words = text.strip().lower().split(" ")
    return " ".join(word for word in words if word not in _DETERMINERS)
