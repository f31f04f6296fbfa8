"""T5X's native checkpoints: `checkpoint` in Flax's MessagePack, and large arrays in zarr beside it.

    checkpoint                        {"version": 3, "optimizer": {"target": ..., "state": ...}}
    target.encoder.layers_0...kernel/ one zarr array for each leaf that is not in the file itself

A leaf is an array, or a spec of TensorStore that says where its array lies. Of that spec only the
name of the last folder is used: arrays are read from the folder or address that the user named, and
from nowhere else. TensorStore opens addresses such as `gs://bucket/checkpoint_1100000`.

Layers are apart (`layers_0`), or stacked on axis 1 (`encoder/encoder`, "scanned").

The checkpoint has no config. All of the shape but two constants follows from its leaves, and the
two are the same in every published T5, whose position bias has 32 buckets. Any other model needs a
`config.json` of transformers in the folder. T5X writes no tokenizer either, so the folder must hold
one, or the user names one.
"""

import contextlib
import functools
import math
import mmap
import re
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore as ts

from spt_jax.models.formats.msgpack_file import unpack
from spt_jax.models.formats.zarr_array import open_zarr, read_key
from spt_jax.models.names import T5X, match
from spt_jax.models.source import Source, Tensor
from spt_jax.models.transformers_folder import read_config
from spt_jax.paths import require_safe_name
from spt_jax.t5 import T5Config
from spt_jax.tokenizers.base import Tokenizer
from spt_jax.tokenizers.published import SMALL_FILES, load_tokenizer, read_json

CHECKPOINT = "checkpoint"
# Instead of TensorStore's 32 retries, which take a quarter of an hour to say that a host is down.
_RETRIES = {"max_retries": 4, "initial_delay": "1s", "max_delay": "4s"}
_CONTEXT = {f"{kind}_request_retries": _RETRIES for kind in ("http", "gcs", "s3")}
_BUCKETS = 32


def is_remote(place: str) -> bool:
    """Return whether a place is an address and not a folder."""
    return "://" in place


def open_t5x(place: str, name: str, tokenizer: Tokenizer | None = None) -> Source:
    """Open a T5X checkpoint.

    Args:
        place: A folder, or an address.
        name: Name of the model.
        tokenizer: Tokenizer of the model; the one in the folder by default.

    Raises:
        FileNotFoundError: There is no checkpoint, or no tokenizer.
        ValueError: It cannot be read, or its leaves are not those of a T5.
    """
    store = _open_store(place)
    with _small_files(place, store) as folder:
        if tokenizer is None:
            tokenizer = _find_tokenizer(folder, place)
        version, target = _read_checkpoint(place, store)
        tensors = {
            path: _tensor(path, leaf, store, place, version) for path, leaf in _leaves(target)
        }
        scanned = any(path.startswith(("encoder/encoder/", "decoder/decoder/")) for path in tensors)
        if scanned:
            tensors = _share_position_bias(tensors, place)
        config = _infer_config(tensors, scanned, place, folder / "config.json")
    leaves = match(tensors, config, place, T5X, scanned=scanned)
    return Source(name, place, config, leaves, tokenizer)


def open_t5x_tokenizer(place: str) -> Tokenizer:
    """Return the tokenizer at an address, without the checkpoint; raises as `open_t5x`."""
    with _small_files(place, _open_store(place)) as folder:
        return _find_tokenizer(folder, place)


@contextlib.contextmanager
def _small_files(place: str, store: ts.KvStore) -> Iterator[Path]:
    """Yield a local folder with config and tokenizer; those at an address are copied into it."""
    if not is_remote(place):
        yield Path(place)
        return
    with tempfile.TemporaryDirectory() as folder:
        for name in SMALL_FILES:
            with contextlib.suppress(FileNotFoundError):
                (Path(folder) / name).write_bytes(_read_remote(place, store, name))
        try:
            yield Path(folder)
        except (ValueError, FileNotFoundError) as error:  # the message names the copy
            raise type(error)(str(error).replace(folder, place.rstrip("/"))) from None


def _read_remote(place: str, store: ts.KvStore, name: str) -> bytes:
    origin = f"{place.rstrip('/')}/{name}"
    try:
        return read_key(store, name)
    except FileNotFoundError:
        raise FileNotFoundError(f"{origin} does not exist") from None
    except ValueError as error:
        raise ValueError(
            f"{origin} cannot be read: {error}; check the address, the network and your credentials"
        ) from None


def _find_tokenizer(folder: Path, place: str) -> Tokenizer:
    try:
        return load_tokenizer(folder)
    except FileNotFoundError:
        raise FileNotFoundError(
            f"T5X checkpoint {place} holds no tokenizer; copy spiece.model into its folder, or "
            f"write a base checkpoint with `spt-jax convert {place} DEST --tokenizer=spiece.model`"
        ) from None


def _open_store(place: str) -> ts.KvStore:
    address = place.rstrip("/") + "/"
    if not is_remote(place):
        address = {"driver": "file", "path": f"{Path(place).absolute()}/"}
    try:
        return ts.KvStore.open(address, context=ts.Context(_CONTEXT)).result()
    except Exception as error:  # the type of the exception depends on the driver
        raise ValueError(f"TensorStore cannot open the address '{place}': {error}") from None


def _read_checkpoint(place: str, store: ts.KvStore) -> tuple[int, dict[str, Any]]:
    """Return the version, and the tree under `optimizer/target`."""
    origin = f"{place.rstrip('/')}/{CHECKPOINT}"
    try:
        remote = is_remote(place)
        buffer = _read_remote(place, store, CHECKPOINT) if remote else _map(origin)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{error}; expected one of T5X; copy models of other formats to this machine"
        ) from None
    try:
        tree = unpack(buffer)
        if not isinstance(tree, dict) or tree.get("version") not in (2, 3):
            raise ValueError("it has no version 2 or 3")
        target = tree["optimizer"]["target"]
        if not isinstance(target, dict):
            raise ValueError("its target is no tree")
        return tree["version"], target
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(_not_whole(origin, error)) from None


def _map(path: str) -> mmap.mmap:
    with open(path, "rb") as file:
        try:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except ValueError as error:
            raise ValueError(_not_whole(path, error)) from None


def _not_whole(origin: str, error: Exception) -> str:
    return f"{origin} cannot be read: {error}; expected a whole checkpoint of T5X, copy it again"


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict) and "driver" not in value:
            yield from _leaves(value, f"{prefix}{key}/")
        else:
            yield prefix + key, value


def _tensor(path: str, leaf: Any, store: ts.KvStore, place: str, version: int) -> Tensor:
    try:
        if isinstance(leaf, Tensor):
            if leaf.dtype.kind != "f" and leaf.dtype.name != "bfloat16":
                raise ValueError(f"it has dtype {leaf.dtype}, expected floats")
            tensor = replace(leaf, name=path)
        else:
            # In an old checkpoint the path is absolute, on the machine that wrote it.
            inner = leaf["kvstore"].get("path", leaf.get("path"))
            folder = require_safe_name(str(inner).strip("/").rsplit("/", 1)[-1])
            # TensorStore had no bfloat16 at first, and version 2 calls its bits uint16.
            aliases = {"<u2": "bfloat16"} if version == 2 else {}
            tensor = open_zarr(store, folder, leaf.get("metadata", {}), path, aliases)
    except (ValueError, OSError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(_cannot(path, place, error)) from None
    return replace(tensor, read=functools.partial(_read, tensor, place))


def _read(tensor: Tensor, place: str) -> np.ndarray:
    try:
        return tensor.read()
    except (ValueError, OSError) as error:
        raise ValueError(_cannot(tensor.name, place, error)) from None


def _cannot(path: str, place: str, error: Exception) -> str:
    return (
        f"leaf {path} of {place} cannot be read: {error}; a T5X checkpoint is whole only with its "
        "zarr folders, copy it again"
    )


def _share_position_bias(tensors: dict[str, Tensor], place: str) -> dict[str, Tensor]:
    """Make one table of a position bias [N, L, buckets] that stands once for each layer."""
    tensors = dict(tensors)
    for stack in ("encoder", "decoder"):
        new = f"{stack}/relpos_bias/rel_embedding"
        old = f"{stack}/{new}"
        if old in tensors and new not in tensors and len(tensors[old].shape) == 3:
            each = tensors.pop(old)
            shape = (each.shape[0], each.shape[2])
            read = functools.partial(_read_shared, each, place)
            tensors[new] = Tensor(old, shape, each.dtype, read)
    return tensors


def _read_shared(each: Tensor, place: str) -> np.ndarray:
    tables = each.read()
    if not np.array_equal(tables, np.broadcast_to(tables[:, :1], tables.shape)):
        raise ValueError(
            f"leaf {each.name} of {place} differs from layer to layer; "
            "expected one position bias for all layers of a stack, as the published T5s have"
        )
    return tables[:, 0]


def _infer_config(
    tensors: Mapping[str, Tensor], scanned: bool, place: str, described: Path
) -> T5Config:
    """Return the config that the shapes of the leaves imply, completed by a config.json."""

    def shape(path: str, axes: int) -> tuple[int, ...]:
        if path not in tensors or len(tensors[path].shape) < axes:
            found = tensors[path].shape if path in tensors else "missing"
            raise ValueError(
                f"leaf {path} of {place} is {found}, expected {axes} axes; this is no T5 of T5X, "
                f"its leaves are {', '.join(sorted(tensors)[:5])}, ..."
            )
        return tensors[path].shape

    layer = "encoder/encoder" if scanned else "encoder/layers_0"
    gated = f"{layer}/mlp/wi_0/kernel" in tensors
    vocab_size, d_model = shape("token_embedder/embedding", 2)
    heads, buckets = shape("encoder/relpos_bias/rel_embedding", 2)
    inner = shape(f"{layer}/attention/query/kernel", 2)[2 if scanned else 1 :]
    inferred: dict[str, Any] = {
        "vocab_size": vocab_size,
        "d_model": d_model,
        "d_kv": math.prod(inner) // heads if heads else 0,
        "d_ff": shape(f"{layer}/mlp/{'wi_0' if gated else 'wi'}/kernel", 2)[-1],
        "num_heads": heads,
        "num_layers": _count_layers(tensors, "encoder", scanned),
        "num_decoder_layers": _count_layers(tensors, "decoder", scanned),
        "mlp": "gated_gelu" if gated else "relu",
        "relpos_buckets": buckets,
    }
    tied = "decoder/logits_dense/kernel" not in tensors
    if described.is_file():
        told, _ = read_config(read_json(described), str(described))
        wrong = [f"{k} {told[k]} (weights: {v})" for k, v in inferred.items() if told[k] != v]
        if wrong:
            raise ValueError(f"{described} contradicts the weights: {', '.join(wrong)}")
        return T5Config(**told, tied_head=tied)
    if buckets != _BUCKETS:
        raise ValueError(
            f"position bias of {place} has {buckets} buckets, and a checkpoint does not say up to "
            f"which distance; for other than the published {_BUCKETS} buckets, put a config.json "
            "of transformers with relative_attention_max_distance into the folder"
        )
    return T5Config(**inferred, tied_head=tied)


def _count_layers(tensors: Mapping[str, Tensor], stack: str, scanned: bool) -> int:
    if scanned:
        one = tensors.get(f"{stack}/{stack}/pre_mlp_layer_norm/scale")
        return one.shape[1] if one is not None and len(one.shape) == 2 else 1
    numbers = (re.match(rf"{stack}/layers_(\d+)/", path) for path in tensors)
    return len({found[1] for found in numbers if found}) or 1
