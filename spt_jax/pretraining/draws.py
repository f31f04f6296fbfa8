"""What a pretraining task gets and returns: a random source of passages, and a row.

A task is a function from a `Draw` to a `Row`. It raises `Unfit` if it cannot make a row of the
passage that it drew, and is then called again. All randomness comes from the generator of the draw.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from spt_jax.pretraining.passages import Passages

ARGUMENT = 7  # tokens kept free for a word that the instruction names
SHORT_ARGUMENT = 3  # tokens kept free for each word of an instruction that names four
TRIES = 50  # passages that a task draws to find a second one


class Unfit(Exception):
    """The task cannot make a row of the passage that it drew."""


class Row(NamedTuple):
    """What a task makes of a passage.

    Args:
        body: Token ids of the text.
        answer: Token ids of the answer, or the number of a label.
        arguments: Token ids of the words that the instruction names.
    """

    body: list[int]
    answer: list[int] | int
    arguments: tuple[list[int], ...] = ()


class Draw(NamedTuple):
    """What a task draws from.

    Args:
        passages: The corpus.
        rng: Source of all randomness.
        room: Tokens that the body may have.
        longest: Tokens that the answer may have.
        docstring_share: Probability that a passage is from a docstring.
    """

    passages: Passages
    rng: np.random.Generator
    room: int
    longest: int
    docstring_share: float

    def start(self) -> int:
        """Return a random position where a passage may start."""
        return self.passages.start(self.rng, self.docstring_share)

    def passage(self, share: float = 1.0) -> tuple[int, int]:
        """Return start and end of a random passage that fills this share of the room."""
        start = self.start()
        return start, self.passages.cut(start, int(self.room * share))

    def words(self, least: int = 6) -> tuple[int, int, np.ndarray]:
        """Return start, end and the plain words, int64[n], of a random passage.

        Raises:
            Unfit: The passage has fewer than `least` plain words.
        """
        start, end = self.passage()
        words = self.passages.words(start, end)
        if len(words) < least:
            raise Unfit
        return start, end, words

    def others(self, least: int = 6) -> Iterator[np.ndarray]:
        """Yield the plain words of up to `TRIES` more passages that have at least so many."""
        for _ in range(TRIES):
            try:
                words = self.words(least)[2]
            except Unfit:
                continue
            yield words

    def any_word(self) -> int:
        """Return the index of a random plain word of the corpus."""
        return self.below(len(self.passages.word_starts))

    def below(self, end: int) -> int:
        """Return a random number from 0 up to `end`."""
        return int(self.rng.integers(end))

    def flip(self, probability: float = 0.5) -> bool:
        """Return True with this probability."""
        return bool(self.rng.random() < probability)

    def pick(self, items: Sequence | np.ndarray):
        """Return a random one of some items."""
        return items[self.below(len(items))]

    def encode(self, text: str) -> list[int]:
        """Return the token ids of a text."""
        return self.passages.tokenizer.encode(text)

    def sentinel(self) -> list[int]:
        """Return the token ids of the first sentinel."""
        return [self.passages.tokenizer.sentinel(0)]
