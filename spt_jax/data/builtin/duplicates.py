"""Find near-duplicate texts by the word sequences that they share.

A text is compared as the set of its shingles, which are all runs of four words. Two texts are alike
if one contains half of the shingles of the shorter one, so a copy inside a longer text is found,
too. Case, punctuation and line breaks do not matter.
"""

import hashlib
import re
import sys
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence

SHINGLE = 4  # words of a shingle
ALIKE = 0.5  # share of the shorter text's shingles that two similar texts have in common


def words(text: str) -> list[str]:
    """Return the words of a text in lower case. An underscore separates words, as a space does."""
    return re.findall(r"[^\W_]+", text.lower())


def word_digest(text: str) -> bytes:
    """Return the sha256 of the words only, which does not change when a text is reflowed."""
    return hashlib.sha256(" ".join(words(text)).encode()).digest()


class ShingleIndex:
    """An index of texts that finds those similar to a given text.

    Args:
        either_way: Whether an indexed text that contains half of the given one is similar, too.
            Otherwise only an indexed text of which the given one contains half is similar.
    """

    def __init__(self, *, either_way: bool = True):
        self._either_way = either_way
        self._holders: dict[int, list[int]] = {}
        self._sizes: dict[int, int] = {}

    def add(self, number: int, text: str) -> None:
        """Add a text under a number that the caller chooses."""
        shingles = set(_shingles(text))
        self._sizes[number] = len(shingles)
        for shingle in shingles:
            self._holders.setdefault(shingle, []).append(number)

    def alike(self, text: str) -> list[int]:
        """Return the numbers of the indexed texts that are similar to this one."""
        shingles = set(_shingles(text))
        shared = Counter(n for shingle in shingles for n in self._holders.get(shingle, ()))
        least = len(shingles) if self._either_way else sys.maxsize
        return [n for n, count in shared.items() if count >= ALIKE * min(self._sizes[n], least)]


def near_duplicates(texts: Sequence[str], labels: Sequence[str]) -> set[int]:
    """Return the indices of texts to drop.

    Of similar texts only the first is kept. It is dropped, too, if their labels differ, because a
    text with two labels implies neither.

    Args:
        texts: Texts in the order in which they are kept.
        labels: One label for each text.
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
