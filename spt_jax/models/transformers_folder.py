"""A folder that transformers saved: T5 1.0 and 1.1, LM-adapted and Flan-T5, mT5 and ByT5.

    config.json                      the shape
    model.safetensors                or shards with model.safetensors.index.json,
    pytorch_model.bin                or these, where torch is installed
    tokenizer.json, spiece.model     the tokenizer; ByT5 has none

The config does not tell whether a model has a head of its own: transformers 5 writes for every T5
that the head is tied, and keeps the old meaning of `tie_word_embeddings` in
`scale_decoder_outputs`. So a model has a head of its own where its file holds one, and the config
only tells whether logits are scaled.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from spt_jax.models.formats.table import WEIGHTS
from spt_jax.models.names import TRANSFORMERS, match
from spt_jax.models.source import Source, Tensor, equal_tensors
from spt_jax.paths import safe_join
from spt_jax.t5 import T5Config
from spt_jax.tokenizers.base import Tokenizer
from spt_jax.tokenizers.published import load_tokenizer, read_json

REFUSED = {
    "umt5": "every layer of UMT5 has a relative position bias of its own",
    "longt5": "LongT5's encoder attends locally",
    "switch_transformers": "its MLPs are mixtures of experts",
}
"""Model types of the family that are refused, and how they differ from T5."""

_SIZES = ("vocab_size", "d_model", "d_kv", "d_ff", "num_heads", "num_layers")
_MAX_LAYERS = 1000  # because the names of all their tensors are listed before they are looked for
_MLPS = {"relu": "relu", "gated-gelu": "gated_gelu"}
_IDS = {"pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0}
_TABLE, _HEAD = "shared.weight", "lm_head.weight"
_ALIASES = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
# A tensor in the files of T5 1.0 that no version of transformers has ever used.
_DEAD = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"


def open_hf(folder: Path, name: str, tokenizer: Tokenizer | None = None) -> Source:
    """Open a transformers folder.

    Args:
        folder: Folder with the files above.
        name: Name of the model.
        tokenizer: Tokenizer to use instead of the one in the folder.

    Raises:
        FileNotFoundError: A file is missing.
        ValueError: The model is no T5, or its files do not fit each other.
    """
    described = read_json(folder / "config.json")
    config, scaled = read_config(described, str(folder / "config.json"))
    tensors = _open_weights(folder)
    tensors = _resolve_head(tensors, scaled, str(folder))
    config = T5Config(**config, tied_head=scaled)
    leaves = match(tensors, config, str(folder), TRANSFORMERS, transposed=True)
    tokenizer = tokenizer or load_tokenizer(folder)
    return Source(name, str(folder), config, leaves, tokenizer)


def read_config(described: Mapping[str, Any], origin: str) -> tuple[dict[str, Any], bool]:
    """Return the fields of `T5Config` without `tied_head`, and whether logits are scaled.

    Args:
        described: Content of a `config.json`.
        origin: Its path, for messages.

    Raises:
        ValueError: It describes a model that is no T5, or a T5 that this library does not have.
    """
    kind = described.get("model_type")
    if kind not in ("t5", "mt5"):
        reason = f": {REFUSED[kind]}" if kind in REFUSED else ""
        raise ValueError(
            f"{origin} describes a model of type {kind!r}, expected 't5' or 'mt5'{reason}"
        )
    for key, expected in _IDS.items():
        if described.get(key, expected) != expected:
            raise ValueError(f"{origin} has {key} {described[key]}, expected {expected}")
    mlp = described.get("feed_forward_proj", "relu" if kind == "t5" else "gated-gelu")
    if mlp not in _MLPS:
        raise ValueError(
            f"{origin} has feed_forward_proj {mlp!r}, expected {' or '.join(map(repr, _MLPS))}"
        )
    fields: dict[str, Any] = {size: described.get(size) for size in _SIZES}
    fields["num_decoder_layers"] = described.get("num_decoder_layers") or fields["num_layers"]
    fields["relpos_buckets"] = described.get("relative_attention_num_buckets", 32)
    fields["relpos_max_distance"] = described.get("relative_attention_max_distance", 128)
    for field, value in fields.items():
        limit = _MAX_LAYERS if field.endswith("layers") else 1 << 31
        if type(value) is not int or not 1 <= value < limit:
            raise ValueError(f"{origin} has {value!r} for {field}, expected a whole number")
    epsilon = described.get("layer_norm_epsilon", 1e-6)
    if type(epsilon) not in (int, float) or not 0 < epsilon < 1:
        raise ValueError(f"{origin} has layer_norm_epsilon {epsilon!r}, expected such as 1e-6")
    old = described.get("tie_word_embeddings") is not False
    scaled = kind == "t5" and bool(described.get("scale_decoder_outputs", old))
    return {**fields, "mlp": _MLPS[mlp], "layer_norm_epsilon": float(epsilon)}, scaled


def _open_weights(folder: Path) -> dict[str, Tensor]:
    for name, opener in WEIGHTS.items():
        if not (folder / name).is_file():
            continue
        if not name.endswith(".index.json"):
            return opener(folder / name)
        return _open_shards(folder, name, opener)
    raise FileNotFoundError(f"no weights in {folder}; expected {', '.join(WEIGHTS)}")


def _open_shards(folder: Path, index: str, opener: Any) -> dict[str, Tensor]:
    origin, files = folder / index, read_json(folder / index).get("weight_map")
    if not isinstance(files, dict) or not all(isinstance(file, str) for file in files.values()):
        raise ValueError(f"{origin} has no weight_map of tensor names to file names")
    try:
        paths = {
            file: safe_join(folder, file, file_may_be_link=True) for file in set(files.values())
        }
    except ValueError as error:
        raise ValueError(f"{origin} names a shard that is not read: {error}") from None
    tensors: dict[str, Tensor] = {}
    for file, path in sorted(paths.items()):
        if not path.is_file():
            raise FileNotFoundError(
                f"shard {path} does not exist, but {index} names it; download the model again"
            )
        shard = opener(path)
        named = {name for name, place in files.items() if place == file}
        for problem, names in (("lacks", named - shard.keys()), ("also has", shard.keys() - named)):
            if names:
                raise ValueError(
                    f"shard {path} {problem} {', '.join(sorted(names)[:5])}, against "
                    f"{index}; the files are of different models"
                )
        tensors |= shard
    return tensors


def _resolve_head(tensors: dict[str, Tensor], scaled: bool, origin: str) -> dict[str, Tensor]:
    """Return the tensors without aliases; where logits are not scaled, they hold a head.

    A model whose head is the table but whose logits are not scaled gets the table as a head of its
    own. transformers 5 makes such models from a config of T5 1.1.
    """
    tensors = dict(tensors)
    tensors.pop(_DEAD, None)
    aliases = {name: tensors.pop(name) for name in _ALIASES if name in tensors}
    if _TABLE not in tensors and aliases:
        tensors[_TABLE] = next(iter(aliases.values()))
    if _TABLE not in tensors:
        raise ValueError(f"weights of {origin} have no {_TABLE}, the embedding table")
    table = tensors[_TABLE]
    for alias in aliases.values():
        if not equal_tensors(alias, table):
            raise ValueError(
                f"{alias.name} differs from {table.name} in {origin}; "
                "expected one table for encoder and decoder"
            )
    if not scaled:
        tensors.setdefault(_HEAD, table)
    elif (head := tensors.pop(_HEAD, None)) is not None and not equal_tensors(head, table):
        raise ValueError(
            f"{_HEAD} differs from {_TABLE} in {origin}, but its config says that they are "
            "tied, so it is open whether logits are scaled; set tie_word_embeddings to false "
            "there if the model is a T5 1.1"
        )
    return tensors
