"""Tokenizers of published models: T5's and mT5's Unigram vocabularies, and ByT5's bytes.

    tokenizer.json       what transformers saves, and what we save
    spiece.model         what T5 was released with
    tokenizer_config.json, config.json     name ByT5Tokenizer, which has no vocabulary

Ids equal those of transformers, with one exception: no text becomes a special id here (see `base`).
"""

import hashlib
import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import tokenizers

from spt_jax.tokenizers.base import (
    SPECIAL,
    LibraryTokenizer,
    Tokenizer,
    require_id,
    require_sentinel,
)
from spt_jax.tokenizers.bpe import BPETokenizer
from spt_jax.tokenizers.charsmap import check_normalizer
from spt_jax.tokenizers.spiece import SENTINEL, read_spiece

BYTES = "ByT5Tokenizer"
TOKENIZER_FILES = ("tokenizer.json", "spiece.model")
SMALL_FILES = ("config.json", "tokenizer_config.json", *TOKENIZER_FILES)
"""Files of a model that hold no weights."""


class UnigramTokenizer(LibraryTokenizer):
    """A published Unigram vocabulary with T5's special ids.

    Args:
        parts: Content of a `tokenizer.json`.

    Raises:
        ValueError: It is no Unigram vocabulary, or not one with T5's special ids.
    """

    def __init__(self, parts: dict[str, Any]):
        self._parts = {**parts, "truncation": None, "padding": None, "post_processor": None}
        vocab = [list(entry) for entry in parts["model"]["vocab"]]
        if parts["model"]["type"] != "Unigram" or not all(map(_is_piece, vocab)):
            raise ValueError("it is no Unigram vocabulary of texts with finite scores")
        added = {token["id"]: token for token in parts["added_tokens"]}
        for index in sorted(i for i in added if i >= len(vocab)):
            if index != len(vocab):
                raise ValueError(f"it has no piece at id {len(vocab)}")
            vocab.append([added[index]["content"], 0.0])
        self._names = [piece for piece, _ in vocab]
        if self._names[:3] != list(SPECIAL) or parts["model"]["unk_id"] != 2:
            raise ValueError(
                f"it has {self._names[:3]} at ids 0 to 2 and unk_id {parts['model']['unk_id']}, "
                f"expected {list(SPECIAL)} and 2, as T5 has"
            )
        self._sentinels = {
            int(found[1]): index
            for index, name in enumerate(self._names)
            if (found := SENTINEL.fullmatch(name))
        }
        self._hidden = {index for index, token in added.items() if token["special"]}
        self._hidden |= {0, 1, 2, *self._sentinels.values()}
        for index in self._hidden:
            vocab[index][0] = f" {vocab[index][0]}"  # no text has a space where pieces are found
        kept = [token for token in parts["added_tokens"] if token["id"] not in self._hidden]
        model = {**parts["model"], "vocab": vocab}
        reachable = {**self._parts, "added_tokens": kept, "model": model}
        check_normalizer(parts["normalizer"])
        self._backend = tokenizers.Tokenizer.from_str(json.dumps(reachable))
        self.vocab_size = len(vocab)

    def save(self, path: str | Path) -> None:
        """Write a `tokenizer.json`, which transformers reads too."""
        Path(path).write_text(json.dumps(self._parts, ensure_ascii=False), encoding="utf-8")

    def decode(self, ids: Iterable[int]) -> str:
        kept = (int(i) for i in ids if int(i) not in self._hidden)
        return self._backend.decode([i for i in kept if i < self.vocab_size])

    def piece(self, index: int) -> str:
        require_id(index, self.vocab_size)
        return self._names[index]

    def sentinel(self, i: int) -> int:
        require_sentinel(i)
        if i not in self._sentinels:
            raise ValueError(f"this tokenizer has no '<extra_id_{i}>'")
        return self._sentinels[i]

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(json.dumps(self._parts, sort_keys=True).encode()).hexdigest()


class ByteTokenizer(Tokenizer):
    """ByT5's tokenizer: an id for each byte of UTF-8, after the three special ids.

    The sentinels share their ids with the last bytes, which start no character or a rare one.
    """

    vocab_size = len(SPECIAL) + 256

    def save(self, path: str | Path) -> None:
        """Write the name of the class; there is no vocabulary."""
        Path(path).write_text(json.dumps({"tokenizer_class": BYTES}) + "\n")

    def encode(self, text: str) -> list[int]:
        return [byte + len(SPECIAL) for byte in text.encode()]

    def decode(self, ids: Iterable[int]) -> str:
        known = (int(i) - len(SPECIAL) for i in ids)
        return bytes(byte for byte in known if 0 <= byte < 256).decode(errors="ignore")

    def piece(self, index: int) -> str:
        require_id(index, self.vocab_size)
        byte = index - len(SPECIAL)
        printable = 32 < byte < 127
        return SPECIAL[index] if byte < 0 else chr(byte) if printable else f"<0x{byte:02X}>"

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(BYTES.encode()).hexdigest()


def load_tokenizer(place: Path) -> Tokenizer:
    """Return the tokenizer in a folder, or in one file of those named above.

    Raises:
        FileNotFoundError: There is no tokenizer.
        ValueError: It cannot be read, or is not one with T5's special ids.
    """
    files = [place] if place.is_file() else [place / name for name in TOKENIZER_FILES]
    for path in files:
        if path.is_file():
            return _read(path)
    for name in ("tokenizer_config.json", "config.json"):
        if (place / name).is_file() and read_json(place / name).get("tokenizer_class") == BYTES:
            return ByteTokenizer()
    raise FileNotFoundError(
        f"no tokenizer in {place}; expected {' or '.join(TOKENIZER_FILES)}, or a "
        f"tokenizer_config.json that names {BYTES}"
    )


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file.

    Raises:
        ValueError: The file holds no JSON, or no object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read ({error}); expected a JSON object") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds a {type(value).__name__}, expected a JSON object")
    return value


def _is_piece(entry: list) -> bool:
    return (
        len(entry) == 2
        and isinstance(entry[0], str)
        and isinstance(entry[1], (int, float))
        and math.isfinite(entry[1])
    )


def _read(path: Path) -> Tokenizer:
    if path.suffix == ".json":
        parts = read_json(path)
        if parts.get("tokenizer_class") == BYTES:
            return ByteTokenizer()
        model = parts.get("model")
        if isinstance(model, dict) and model.get("type") == "BPE":
            return BPETokenizer.from_file(path)
    else:
        parts = read_spiece(path)
    try:
        return UnigramTokenizer(parts)
    except Exception as error:  # the library raises plain Exception
        reason = str(error) if type(error) in (ValueError, Exception) else repr(error)
        raise ValueError(
            f"tokenizer file '{path}' cannot be read: {reason}; expected T5's spiece.model, or a "
            "tokenizer.json of the same kind"
        ) from error
