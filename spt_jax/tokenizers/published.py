"""Tokenizers of published models: T5's and mT5's Unigram vocabularies, and ByT5's bytes.

    tokenizer.json       what transformers saves, and what we save
    spiece.model         what T5 was released with
    tokenizer_config.json, config.json     name ByT5Tokenizer, which has no vocabulary
    added_tokens.json, special_tokens_map.json, tokenizer_config.json      tokens that a user added

Ids equal those of transformers, with one exception: no text becomes a special id here (see `base`).
"""

import hashlib
import json
import math
from collections.abc import Iterable, Sequence
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
from spt_jax.tokenizers.spiece import AS_WRITTEN, SENTINEL, read_spiece

BYTES = "ByT5Tokenizer"
TOKENIZER_FILES = ("tokenizer.json", "spiece.model")
_CONFIG, _ADDED, _SPECIAL_MAP = (
    "tokenizer_config.json",
    "added_tokens.json",
    "special_tokens_map.json",
)
SMALL_FILES = ("config.json", _CONFIG, _ADDED, _SPECIAL_MAP, *TOKENIZER_FILES)
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
        size, added = len(vocab), {token["id"]: token for token in parts["added_tokens"]}
        for index in sorted(i for i in added if i >= size):
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
        # No text becomes one of these: special tokens of the vocabulary itself, and sentinels.
        hidden = {index for index, token in added.items() if token["special"] and index < size}
        hidden |= {0, 1, 2, *self._sentinels.values()}
        self._unwritten = hidden | {index for index, token in added.items() if token["special"]}
        self.vocab_size = len(vocab)
        for index in hidden:
            vocab[index][0] = f" {vocab[index][0]}"  # no text has a space where pieces are found
        # The library gives tokens behind the vocabulary the next ids, in order.
        del vocab[max(size, max(hidden) + 1) :]
        kept = [added[index] for index in sorted(added) if index not in hidden]
        self._added = tuple(token["content"] for token in kept if token["id"] >= size)
        model = {**parts["model"], "vocab": vocab}
        reachable = {**self._parts, "added_tokens": kept, "model": model}
        check_normalizer(parts["normalizer"])
        self._backend = tokenizers.Tokenizer.from_str(json.dumps(reachable))
        if any(self._backend.token_to_id(token["content"]) != token["id"] for token in kept):
            raise ValueError("its added tokens have other ids than their places give them")

    @property
    def added_tokens(self) -> tuple[str, ...]:
        return self._added

    def save(self, path: str | Path) -> None:
        """Write a `tokenizer.json`, which transformers reads too."""
        Path(path).write_text(json.dumps(self._parts, ensure_ascii=False), encoding="utf-8")

    def decode(self, ids: Iterable[int]) -> str:
        kept = (int(i) for i in ids if int(i) not in self._unwritten)
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

    def _encode_texts(self, texts: Sequence[str]) -> list[list[int]]:
        return [[byte + len(SPECIAL) for byte in text.encode()] for text in texts]

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
            return _read(path, {} if path == place else _added_tokens(place))
    for name in (_CONFIG, "config.json"):
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


def _added_tokens(folder: Path) -> dict[int, dict[str, Any]]:
    """Return the added tokens that files beside a vocabulary name, by id.

    Raises:
        ValueError: Such a file cannot be read.
    """
    config, added, special_map = (
        read_json(folder / name) if (folder / name).is_file() else {}
        for name in (_CONFIG, _ADDED, _SPECIAL_MAP)
    )
    try:
        special = {text for source in (config, special_map) for text in _special_texts(source)}
        tokens = {
            int(index): _added_token(int(index), content, content in special)
            for content, index in added.items()
        }
        for index, token in config.get("added_tokens_decoder", {}).items():
            found = _added_token(int(index), token["content"], token["special"])
            tokens[int(index)] = {**found, **{key: token[key] for key in found if key in token}}
        return tokens
    except (TypeError, KeyError, AttributeError, ValueError) as error:
        raise ValueError(
            f"the added tokens in {_ADDED} or {_CONFIG} of {folder} cannot be read ({error!r}); "
            "save the tokenizer again with transformers"
        ) from None


def _special_texts(source: dict[str, Any]) -> Iterable[str]:
    for key, value in source.items():
        if key.endswith(("_token", "_special_tokens")):
            for token in value if isinstance(value, list) else [value]:
                yield str(token["content"] if isinstance(token, dict) else token)


def _added_token(index: int, content: str, special: bool) -> dict[str, Any]:
    if not isinstance(content, str) or not content:
        raise ValueError(f"token {index} is {content!r}")
    return {"id": index, "content": content, **AS_WRITTEN, "normalized": not special} | {
        "special": special
    }


def _with_added(parts: dict[str, Any], tokens: dict[int, dict[str, Any]]) -> dict[str, Any]:
    """Return the parts with tokens that they do not have yet; sentinels are no added tokens."""
    known = {token["content"]: token["id"] for token in parts["added_tokens"]}
    vocab = parts["model"]["vocab"]
    new = [
        token
        for index, token in sorted(tokens.items())
        if not SENTINEL.fullmatch(token["content"]) and known.get(token["content"]) != index
    ]
    for token in new:
        name, index = token["content"], token["id"]
        if name in known or not (0 <= index and (index >= len(vocab) or vocab[index][0] == name)):
            raise ValueError(f"the added token {name!r} has id {index}, which is another token's")
    return {**parts, "added_tokens": [*parts["added_tokens"], *new]} if new else parts


def _is_piece(entry: list) -> bool:
    return (
        len(entry) == 2
        and isinstance(entry[0], str)
        and isinstance(entry[1], (int, float))
        and math.isfinite(entry[1])
    )


def _read(path: Path, added: dict[int, dict[str, Any]]) -> Tokenizer:
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
        return UnigramTokenizer(_with_added(parts, added))
    except Exception as error:  # the library raises plain Exception
        reason = str(error) if type(error) in (ValueError, Exception) else repr(error)
        raise ValueError(
            f"tokenizer file '{path}' cannot be read: {reason}; expected T5's spiece.model, or a "
            "tokenizer.json of the same kind"
        ) from error
