"""What a caller gets for a text: a completion, or a ranking of label words."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from spt_jax.evaluation.ensemble import vote
from spt_jax.evaluation.metrics import normalize
from spt_jax.serving.batcher import BatchReport


class Completion(NamedTuple):
    """An answer to a text.

    Args:
        text: The answer.
        finish_reason: `stop` after an end marker or a stop text; `length` after the most tokens.
        inputs: Tokens of the input, its end marker counted.
        tokens: Tokens of the answer, likewise.
        pieces: Each token as text, if they were asked for, like the two that follow.
        log_probs: Log-probability of each token under the model.
        offsets: Where the text of each token begins in the answer.
        batch: The batch that the row was in.
    """

    text: str
    finish_reason: Literal["stop", "length"]
    inputs: int
    tokens: int
    pieces: tuple[str, ...]
    log_probs: tuple[float, ...]
    offsets: tuple[int, ...]
    batch: BatchReport


class Label(NamedTuple):
    """A label word, the log-probability that the model writes it, and its share of all labels."""

    label: str
    log_prob: float
    probability: float


class Ranking(NamedTuple):
    """The label words of a prompt for a text.

    Args:
        model: Name of the prompt, of the ensemble, or of the model itself.
        labels: The label words, likeliest first.
        inputs: Tokens of the input, its end marker counted.
        batch: The batch that the row was in.
    """

    model: str
    labels: tuple[Label, ...]
    inputs: int
    batch: BatchReport


def rank(words: Sequence[str], log_probs: np.ndarray) -> tuple[Label, ...]:
    """Return label words with their log-probabilities and their shares of all, likeliest first."""
    shares = np.exp(log_probs.astype(np.float64) - np.max(log_probs))
    shares /= shares.sum()
    order: list[int] = np.argsort(-log_probs, kind="stable").tolist()
    return tuple(Label(words[i], float(log_probs[i]), float(shares[i])) for i in order)


def elect(of_members: Sequence[Sequence[Completion]]) -> list[Completion]:
    """Return the answers that most members give, each as the first of them that gave it."""
    if len(of_members) == 1:
        return list(of_members[0])
    texts = vote([[found.text for found in member] for member in of_members])
    elected = []
    for text, of_text in zip(texts, zip(*of_members, strict=True), strict=True):
        chosen = next(found for found in of_text if normalize(found.text) == text)
        inputs = sum(found.inputs for found in of_text)
        elected.append(chosen._replace(text=text, inputs=inputs))
    return elected
