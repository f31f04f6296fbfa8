"""Near-duplicate texts, found by the word sequences they share.

A text is the set of its shingles, every run of four words. Two texts are alike when half of the
shorter one's shingles are in the other, so a copy inside a longer text counts too. Only words
matter: case, punctuation and line breaks do not.
"""

import hashlib
import re
import sys
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence

SHINGLE = 4  # words
ALIKE = 0.5  # share of the shorter text's shingles that both have


def words(text: str) -> list[str]:
    """The words of a text in lower case; an underscore separates words as a space does."""
    return re.findall(r"[^\W_]+", text.lower())


def word_digest(text: str) -> bytes:
    """sha256 of the words alone, so that a text that is reflowed keeps it."""
    return hashlib.sha256(" ".join(words(text)).encode()).digest()


class ShingleIndex:
    """Texts that can be asked for the ones like another text.

    Args:
        either_way: A text is alike where it is held by an indexed one, too; otherwise only where
            it holds half of an indexed one.
    """

    def __init__(self, *, either_way: bool = True):
        self._either_way = either_way
        self._holders: dict[int, list[int]] = {}
        self._sizes: dict[int, int] = {}

    def add(self, number: int, text: str) -> None:
        """Adds a text under a number of the caller's."""
        shingles = set(_shingles(text))
        self._sizes[number] = len(shingles)
        for shingle in shingles:
            self._holders.setdefault(shingle, []).append(number)

    def alike(self, text: str) -> list[int]:
        """Numbers of the texts in the index that are like this one."""
        shingles = set(_shingles(text))
        shared = Counter(n for shingle in shingles for n in self._holders.get(shingle, ()))
        least = len(shingles) if self._either_way else sys.maxsize
        return [n for n, count in shared.items() if count >= ALIKE * min(self._sizes[n], least)]


def near_duplicates(texts: Sequence[str], labels: Sequence[str]) -> set[int]:
    """Indices to drop: of texts alike all but the first, and the first too where labels differ.

    A text that two labels share says nothing about either.

    Args:
        texts: In the order in which they are kept.
        labels: One for each text.
    """
    index = ShingleIndex()
    dropped = set()
    for number, (text, label) in enumerate(zip(texts, labels, strict=True)):
        for other in index.alike(text):
            dropped.add(number)
            if labels[other] != label:
                dropped.add(other)
        if number not in dropped:
            index.add(number, text)
    return dropped


def _shingles(text: str) -> Iterator[int]:
    found = words(text)
    for start in range(max(1, len(found) - SHINGLE + 1)):
        yield zlib.crc32(" ".join(found[start : start + SHINGLE]).encode())
