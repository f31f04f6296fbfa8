"""`spiece.model`, a SentencePiece model, as the parts of a `tokenizer.json`.

The file is a protocol buffer of which four fields matter: the pieces, the kind of model, the table
of the normalizer and three switches of it. The library `tokenizers` runs the same algorithm.

The file is parsed here because the package sentencepiece gives access to these fields only through
generated code, which needs a protobuf at least as new as the one that generated it; tensorflow, for
example, forbids new ones.
"""

import base64
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from spt_jax.tokenizers.base import SENTINELS

SENTINEL = re.compile(r"▁?<extra_id_(\d+)>")
_UNIGRAM = 1
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = range(1, 7)

AS_WRITTEN = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}


class _Piece(NamedTuple):
    text: str
    score: float
    kind: int


def read_spiece(path: Path) -> dict[str, Any]:
    """Return the parts of a `tokenizer.json`; 100 sentinels follow the pieces if these hold none.

    Raises:
        ValueError: It is no SentencePiece model, or one of a kind that T5 does not have.
    """
    try:
        pieces, trainer, normalizer = _read_model(path.read_bytes())
        parts = _parts(pieces, normalizer.get(2, b""))
    except (ValueError, LookupError, TypeError, AttributeError, struct.error) as error:
        raise ValueError(
            f"tokenizer file '{path}' cannot be read ({error}); expected a SentencePiece model"
        ) from None
    # By default of the format it is a Unigram model and all three switches are on.
    kind, switches = trainer.get(3, _UNIGRAM), [normalizer.get(field, 1) for field in (3, 4, 5)]
    strange = [piece.text for piece in pieces if piece.kind == _USER_DEFINED]
    strange = [text for text in strange if not SENTINEL.fullmatch(text)]
    if kind != _UNIGRAM or switches != [1, 1, 1] or strange:
        raise ValueError(
            f"tokenizer file '{path}' has model type {kind}, add_dummy_prefix, "
            f"remove_extra_whitespaces, escape_whitespaces {switches} and symbols {strange[:3]}; "
            "expected a Unigram model (1), [1, 1, 1] and no symbols, as T5 has"
        )
    return parts


def _read_model(data: bytes) -> tuple[list[_Piece], dict[int, Any], dict[int, Any]]:
    pieces, trainer, normalizer = [], {}, {}
    for number, value in _fields(data):
        if number == 1:
            fields = dict(_fields(value))
            score = struct.unpack("<f", fields.get(2, b"\0\0\0\0"))[0]
            pieces.append(_Piece(fields[1].decode(), score, fields.get(3, _NORMAL)))
        elif number == 2:
            trainer = dict(_fields(value))
        elif number == 3:
            normalizer = dict(_fields(value))
    if not pieces:
        raise ValueError("it has no pieces")
    if not all(abs(piece.score) < 1e30 for piece in pieces):
        raise ValueError("the score of a piece is not finite")
    return pieces, trainer, normalizer


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """Yield (number, value) of each field; the value is an int, or bytes."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        wire = key & 7
        if wire == 0:
            value, at = _varint(data, at)
        else:
            size = {1: 8, 5: 4}.get(wire, 0)
            if wire == 2:
                size, at = _varint(data, at)
            if not size and wire != 2 or at + size > len(data):
                raise ValueError(f"a field of type {wire} and {size} bytes at byte {at}")
            value, at = data[at : at + size], at + size
        yield key >> 3, value


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = data[at]
        value, at = value | (byte & 127) << shift, at + 1
        if byte < 128:
            return value, at
    raise ValueError(f"a number without end at byte {at}")


def _parts(pieces: list[_Piece], charsmap: bytes) -> dict[str, Any]:
    vocab = [[piece.text, piece.score] for piece in pieces]
    hidden = {_UNKNOWN, _CONTROL, _UNUSED}
    special = [i for i, piece in enumerate(pieces) if piece.kind in hidden]
    sentinels = [i for i, piece in enumerate(pieces) if SENTINEL.fullmatch(piece.text)]
    if not sentinels:  # T5's own vocabulary; that of mT5 has them among its pieces
        sentinels = list(range(len(vocab), len(vocab) + SENTINELS))
        vocab += [[f"<extra_id_{i}>", 0.0] for i in reversed(range(SENTINELS))]
    bytes_too = any(piece.kind == _BYTE for piece in pieces)
    metaspace = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
    spaces, fallback = {"type": "WhitespaceSplit"}, {"type": "ByteFallback"}
    table = base64.b64encode(charsmap).decode()
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": i, "content": vocab[i][0], **AS_WRITTEN, "special": True}
            for i in sorted({*special, *sentinels})
        ],
        "normalizer": {"type": "Precompiled", "precompiled_charsmap": table} if table else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [spaces, metaspace]},
        "post_processor": None,
        "decoder": {"type": "Sequence", "decoders": [fallback, metaspace]}
        if bytes_too
        else metaspace,
        "model": {"type": "Unigram", "unk_id": 2, "vocab": vocab, "byte_fallback": bytes_too},
    }
