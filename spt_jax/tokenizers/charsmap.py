"""Checks the normalization table of a SentencePiece model before it is used.

The table is a trie over the bytes of UTF-8, as a double array of 32-bit units, followed by the
replacements, each ended by a zero byte. The library `tokenizers` does not check it: with a damaged
table it panics at the first text that meets the damage, which may be hours into a run, and it has
no function that finds the damage earlier. So every state that a text can reach is visited here.

    unit   bits 0-7 and 31  label: the byte that leads here; with bit 31 it is a value instead
           bit 8            the state has a value, in the unit at its base
           bits 9-31        offset to the base, where the children lie: base XOR byte
"""

import base64
import binascii
from typing import Any

import numpy as np

_LABEL = np.uint32((1 << 31) | 0xFF)


def check_normalizer(normalizer: Any) -> None:
    """Check every table of a normalizer of a `tokenizer.json`.

    Raises:
        ValueError: A table is damaged.
    """
    if not isinstance(normalizer, dict):
        return
    for inner in normalizer.get("normalizers") or []:
        check_normalizer(inner)
    if normalizer.get("type") == "Precompiled":
        try:
            _check_table(base64.b64decode(normalizer["precompiled_charsmap"], validate=True))
        except binascii.Error as error:
            raise ValueError(f"the normalization table is no base64 ({error})") from None


def _check_table(table: bytes) -> None:
    size = int.from_bytes(table[:4], "little")
    if size % 4 or not 4 <= size <= len(table) - 4:
        raise ValueError(f"the normalization table has {len(table)} bytes, its trie {size}")
    units, texts = np.frombuffer(table[4 : 4 + size], "<u4"), table[4 + size :]
    texts.decode()
    # A value is the place of its text, which starts a character.
    starts = np.frombuffer(texts, np.uint8) & 0xC0 != 0x80
    labels = np.arange(1, 256, dtype=np.int64)
    seen = np.zeros(len(units), bool)
    states = np.array([0])
    while len(states):
        seen[states] = True
        bases = states ^ _offsets(units[states])
        if (bases | 255).max() >= len(units):
            raise ValueError("a state of the normalization table leads out of it")
        children = bases[:, None] ^ labels
        children = children[units[children] & _LABEL == labels]
        valued = children[(units[children] >> 8 & 1).astype(bool)]
        places = valued ^ _offsets(units[valued])
        if len(places) and places.max() >= len(units):
            raise ValueError("a state of the normalization table leads out of it")
        values = (units[places] & 0x7FFFFFFF).astype(np.int64)
        if len(values) and (values.max() >= len(texts) or not starts[values].all()):
            raise ValueError("the normalization table has a value without a text")
        states = np.unique(children[~seen[children]])


def _offsets(units: np.ndarray) -> np.ndarray:
    wide = units.astype(np.int64)
    return (wide >> 10) << ((wide & (1 << 9)) >> 6)
