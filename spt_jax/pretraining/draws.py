"""What every pretraining task is made with: a random source of passages, and the row it returns.

A task is a function from a `Draw` to a `Row`, or to None where the passage that it drew does not
serve; then it is asked again. All that is random comes from the one generator of the draw.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from spt_jax.pretraining.passages import Passages

ARGUMENT = 7  # tokens kept free for each word named by an instruction
SHORT_ARGUMENT = 3  # where an instruction names four
TRIES = 50  # passages that a task draws to find a second one


class Row(NamedTuple):
    """What a task makes of a passage: ids of the text, and the answer as ids or label number.

    `arguments` fill the gaps of the instruction.
    """

    body: list[int]
    answer: list[int] | int
    arguments: tuple[list[int], ...] = ()


class Draw(NamedTuple):
    """What a task draws from: `room` tokens for its body, `longest` for its answer."""

    passages: Passages
    rng: np.random.Generator
    room: int
    longest: int
    docstring_share: float

    def passage(self, share: float = 1.0) -> tuple[int, int]:
        """Start and end of a random passage that fills this share of the room."""
        start = self.passages.start(self.rng, self.docstring_share)
        return start, self.passages.cut(start, int(self.room * share))

    def flip(self, probability: float = 0.5) -> bool:
        """True with this probability."""
        return bool(self.rng.random() < probability)

    def pick(self, items: Sequence | np.ndarray):
        """One of some items."""
        return items[int(self.rng.integers(len(items)))]

    def encode(self, text: str) -> list[int]:
        """Ids of a text."""
        return self.passages.tokenizer.encode(text)
