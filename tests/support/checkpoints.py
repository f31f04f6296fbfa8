"""Tiny models on disk in the formats of others, written without torch."""

import json
from pathlib import Path
from typing import Any

import flax.serialization
import flax.traverse_util
import ml_dtypes
import numpy as np
import tensorstore as ts
from safetensors.numpy import save_file

from spt_jax.models.names import T5X, TRANSFORMERS
from spt_jax.pytree import named_leaves
from spt_jax.t5 import T5Config
from spt_jax.tokenizers.base import Tokenizer
from spt_jax.tokenizers.bpe import train_tokenizer
from spt_jax.tokenizers.published import ByteTokenizer, load_tokenizer
from support import tiny

PIECES = ["▁", "▁the", "▁dog", "a", "c", "d", "e", "g", "h", "o", "r", "t", "s", "/", ">"]

SHAPE = T5Config(
    vocab_size=128,  # 118 pieces and some rows to spare, as T5 has
    d_model=8,
    d_kv=3,
    d_ff=10,
    num_heads=2,
    num_layers=3,
    num_decoder_layers=2,
)


def tokenizer_of(kind: str, folder: Path) -> Tokenizer:
    """A tokenizer of a kind: `published` with a model, `trained` by this package, or `bytes`."""
    if kind == "published":
        return load_tokenizer(write_hf(folder / "model"))
    if kind == "trained":
        return train_tokenizer(["the dog and a cat", "the cat"] * 3, 150)
    assert kind == "bytes"
    return ByteTokenizer()


def tokenizer_parts() -> dict[str, Any]:
    """A `tokenizer.json` of T5's kind, as transformers 5 writes it, with 118 ids."""
    special = ["<pad>", "</s>", "<unk>"]
    sentinels = [f"<extra_id_{i}>" for i in reversed(range(100))]
    names = [*special, *PIECES, *sentinels]
    metaspace = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
    hidden = [*special, *sentinels]
    return {
        "version": "1.0",
        "added_tokens": [
            {
                "id": names.index(name),
                "content": name,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
            for name in hidden
        ],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [{"type": "WhitespaceSplit"}, metaspace],
        },
        "post_processor": None,
        "decoder": metaspace,
        "model": {
            "type": "Unigram",
            "unk_id": 2,
            "vocab": [[name, 0.0 if name in hidden else -1.0 - len(name) / 9] for name in names],
            "byte_fallback": False,
        },
    }


def write_tokenizer(folder: Path) -> None:
    """Writes `tokenizer.json`."""
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer_parts()))


def hf_config(**changes) -> dict[str, Any]:
    """The `config.json` of `SHAPE` as transformers names things."""
    return {
        "model_type": "t5",
        "vocab_size": SHAPE.vocab_size,
        "d_model": SHAPE.d_model,
        "d_kv": SHAPE.d_kv,
        "d_ff": SHAPE.d_ff,
        "num_heads": SHAPE.num_heads,
        "num_layers": SHAPE.num_layers,
        "num_decoder_layers": SHAPE.num_decoder_layers,
        "feed_forward_proj": "gated-gelu",
        "tie_word_embeddings": False,
        **changes,
    }


def hf_tensors(dtype="float32") -> dict[str, np.ndarray]:
    """Random weights of `SHAPE` by transformers' names."""
    tensors = {}
    for name, leaf in named_leaves(tiny.random_params(SHAPE)):
        leaf = np.asarray(leaf, dtype)
        parts = leaf if "/layers/" in name else [leaf]
        for i, part in enumerate(parts):
            if name != "token_embedder/embedding":
                part = part.T
            tensors[TRANSFORMERS[name].format(i=i)] = np.array(part, order="C")
    return tensors


def write_hf(folder: Path, tensors=None, **config) -> Path:
    """A transformers folder with one safetensors file."""
    folder.mkdir(parents=True)
    save_file(hf_tensors() if tensors is None else tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(hf_config(**config)))
    write_tokenizer(folder)
    return folder


def write_shards(folder: Path, shards: int = 3) -> Path:
    """A transformers folder with its weights in several files and an index."""
    write_hf(folder)
    (folder / "model.safetensors").unlink()
    tensors, weight_map = hf_tensors(), {}
    for shard in range(shards):
        file = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        part = {name: tensors[name] for name in sorted(tensors)[shard::shards]}
        save_file(part, folder / file)
        weight_map |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def t5x_leaves(scanned: bool = False, params=None) -> dict[str, np.ndarray]:
    """Weights by T5X's names; random ones of `SHAPE` by default."""
    leaves = {}
    for name, leaf in named_leaves(tiny.random_params(SHAPE) if params is None else params):
        leaf = np.asarray(leaf)
        if "/layers/" not in name:
            leaves[T5X[name]] = leaf
        elif scanned:
            stack = name.split("/")[0]
            leaves[name.replace("/layers/", f"/{stack}/")] = np.moveaxis(leaf, 0, 1)
        else:
            leaves |= {T5X[name].format(i=i): part for i, part in enumerate(leaf)}
    return leaves


def write_t5x(folder: Path, leaves=None, *, zarr: bool = True, version: int = 3) -> Path:
    """A T5X checkpoint, its matrices in zarr or all of it in the MessagePack file."""
    folder.mkdir(parents=True)
    target = {}
    for name, leaf in (t5x_leaves() if leaves is None else leaves).items():
        target[name] = leaf
        if zarr and leaf.ndim > 1:
            place = f"target.{name.replace('/', '.')}"
            if leaf.dtype == ml_dtypes.bfloat16 and version == 2:
                leaf = leaf.view(np.uint16)
            dtype = "bfloat16" if leaf.dtype == ml_dtypes.bfloat16 else leaf.dtype.str
            chunks = [max(1, leaf.shape[0] // 2), *leaf.shape[1:]]
            metadata = {"shape": list(leaf.shape), "chunks": chunks, "dtype": dtype}
            metadata["compressor"] = {"id": "gzip", "level": 1}
            spec = {"driver": "zarr", "metadata": metadata}
            store = ts.open(
                {**spec, "kvstore": {"driver": "file", "path": f"{folder}/{place}/"}}, create=True
            ).result()
            store.write(leaf).result()
            target[name] = {**spec, "kvstore": {"driver": "gfile", "path": place}}
    tree = flax.traverse_util.unflatten_dict(target, sep="/")
    root = {"version": version, "optimizer": {"target": tree, "state": {"step": np.int32(3)}}}
    (folder / "checkpoint").write_bytes(flax.serialization.msgpack_serialize(root))
    write_tokenizer(folder)
    return folder
