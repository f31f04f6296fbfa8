"""Scores of predicted texts, from 0 to 100."""

from collections.abc import Sequence


def normalize(text: str) -> str:
    """Text with runs of white space as single spaces, none at the ends."""
    return " ".join(text.split())


def exact_match(predictions: Sequence[str], targets: Sequence[str]) -> float:
    """Percentage of predictions equal to their target; case counts."""
    hits = sum(normalize(p) == normalize(t) for p, t in zip(predictions, targets, strict=True))
    return 100 * hits / len(targets)


def invalid_share(predictions: Sequence[str], label_words: Sequence[str]) -> float:
    """Percentage of predictions that are no label word (wrong in `exact_match`)."""
    words = {normalize(word) for word in label_words}
    return 100 * sum(normalize(p) not in words for p in predictions) / len(predictions)
