"""What every tokenizer does, whatever its vocabulary is.

Ids 0, 1 and 2 are padding, end of sequence and unknown. 100 more ids are the sentinels of span
corruption, `<extra_id_0>` to `<extra_id_99>`.

Invariant: encoding never yields id 0, 1 or a sentinel, whatever the text says. The text '</s>' is
four or so ordinary pieces, so it never ends an input. Sentinels are written by `encode_parts`, and
by `encode(template, sentinels=True)` for a text that its user wrote.
"""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

import tokenizers

SENTINELS = 100
SPECIAL = ("<pad>", "</s>", "<unk>")
_SENTINEL = re.compile(r"<extra_id_(\d{1,2})>")


def split_sentinels(template: str) -> list[str | int]:
    """Split a template at its sentinels, for `Tokenizer.encode_parts`.

    Split a template before fields are put into it, so that a sentinel in a field stays text.

    Returns:
        Texts, and a number i for each `<extra_id_i>`, in order: 'a <extra_id_0>' -> ['a ', 0, ''].
    """
    parts = _SENTINEL.split(template)  # texts at even places, and between them the numbers
    return [int(part) if place % 2 else part for place, part in enumerate(parts)]


class Tokenizer(Protocol):
    """Maps text to ids and back.

    `BPETokenizer` has a vocabulary that was trained here, and `published` has those of T5, mT5 and
    ByT5.
    """

    pad_id = 0
    eos_id = 1
    unk_id = 2
    vocab_size: int

    def save(self, path: str | Path) -> None:
        """Write one JSON file, which `load_tokenizer` reads."""
        ...

    @property
    def added_tokens(self) -> tuple[str, ...]:
        """Tokens that a user added to the vocabulary; each becomes one id in every text."""
        return ()

    def encode(self, text: str, *, sentinels: bool = False) -> list[int]:
        """Return the ids of a text, without an end marker; the empty text has none.

        Args:
            text: Any text.
            sentinels: Whether `<extra_id_i>` in the text becomes a sentinel. Set it for texts that
                the user wrote as a template, and never for data.

        Raises:
            ValueError: The text names a sentinel that this tokenizer does not have.
        """
        return self.encode_batch([text], sentinels=sentinels)[0]

    def encode_batch(self, texts: Sequence[str], *, sentinels: bool = False) -> list[list[int]]:
        """Return `encode` of each text, computed on all cores where that is possible."""
        if sentinels:
            return [self.encode_parts(split_sentinels(text)) for text in texts]
        return self._encode_texts(texts)

    def encode_parts(self, parts: Sequence[str | int]) -> list[int]:
        """Return the ids of texts and sentinels one after another.

        Args:
            parts: Texts, in which sentinels stay text, and numbers of sentinels.

        Raises:
            ValueError: There is no sentinel of such a number.
        """
        encoded = iter(self._encode_texts([part for part in parts if isinstance(part, str)]))
        ids = ([self.sentinel(p)] if isinstance(p, int) else next(encoded) for p in parts)
        return [i for some in ids for i in some]

    def _encode_texts(self, texts: Sequence[str]) -> list[list[int]]: ...

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of ids; padding, end, unknown and sentinels are left out."""
        ...

    def piece(self, index: int) -> str:
        """Return the piece at an id, with '▁' where it starts a word.

        Raises:
            ValueError: The id is outside the vocabulary.
        """
        ...

    def sentinel(self, i: int) -> int:
        """Return the id of `<extra_id_i>`; by default the last id is number 0, as in T5.

        Raises:
            ValueError: There is no sentinel of this number.
        """
        require_sentinel(i)
        return self.vocab_size - 1 - i

    @property
    def fingerprint(self) -> str:
        """The sha256, in hex, of all that decides the ids of a text."""
        ...


class LibraryTokenizer(Tokenizer):
    """A tokenizer whose text is encoded by the library `tokenizers`."""

    _backend: tokenizers.Tokenizer

    def _encode_texts(self, texts: Sequence[str]) -> list[list[int]]:
        encodings = self._backend.encode_batch_fast(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in encodings]


def require_id(index: int, vocab_size: int) -> None:
    """Raise ValueError where an id is outside the vocabulary."""
    if not 0 <= index < vocab_size:
        raise ValueError(f"token id {index} is given, expected 0 to {vocab_size - 1}")


def require_sentinel(i: int) -> None:
    """Raise ValueError where there is no sentinel of this number."""
    if not 0 <= i < SENTINELS:
        raise ValueError(f"sentinel {i} is given, expected 0 to {SENTINELS - 1}")
