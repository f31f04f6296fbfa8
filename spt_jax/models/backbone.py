"""A frozen T5 with its tokenizer, which a prompt is trained for.

`open.py` lists the formats that it is loaded from. `save_backbone` writes models that were trained
here, and `convert_backbone` writes base checkpoints.
"""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from safetensors.numpy import save_file

from spt_jax.config.devices import MeshConfig
from spt_jax.models.automesh import device_memory, make_suited_mesh, resolve_dtype
from spt_jax.models.base_checkpoint import Base, require_new, restore_base, write_base
from spt_jax.models.load import load_params
from spt_jax.models.names import count_weights
from spt_jax.models.open import (
    BUNDLED,
    backbone_names,
    find_backbone,
    find_tokenizer,
    open_model,
    read_shape,
)
from spt_jax.pytree import fingerprint, named_leaves
from spt_jax.runs.log import sync_tree
from spt_jax.runs.progress import say
from spt_jax.t5 import PRESETS, T5, AttentionVersion, Remat, T5Config
from spt_jax.t5.quantize import Quantized, dequantize
from spt_jax.tokenizers.base import Tokenizer
from spt_jax.typing import Array, PyTree

__all__ = [
    "BUNDLED",
    "Backbone",
    "backbone_names",
    "convert_backbone",
    "describe",
    "find_backbone",
    "find_tokenizer",
    "load_backbone",
    "save_backbone",
]


@dataclass(frozen=True)
class Backbone:
    """A loaded backbone.

    Args:
        name: Name that was given to `load_backbone`, or the name that the model itself states.
        model: The T5, without its parameters.
        params: The T5's parameters; `{"t5": backbone.params}` is a params tree without a prompt.
        tokenizer: Its tokenizer.
        fingerprint: sha256 of the weights as they are stored, in hex.
    """

    name: str
    model: T5
    params: PyTree
    tokenizer: Tokenizer
    fingerprint: str

    @property
    def mesh(self) -> Mesh:
        """The devices that hold the params."""
        if self.model.mesh is None:
            raise ValueError(
                f"backbone '{self.name}' has a model without a mesh; load_backbone gives it one"
            )
        return self.model.mesh

    @property
    def param_dtype(self) -> str:
        """Dtype of the matrices: `float32`, `bfloat16` or `int8`."""
        table = self.params["token_embedder"]["embedding"]
        return (table.values if isinstance(table, Quantized) else table).dtype.name

    @property
    def embeddings(self) -> Array:
        """The embedding table [V, D], as floats also where it is stored in int8."""
        return dequantize(self.params["token_embedder"]["embedding"], axis=-1)


def load_backbone(
    name: str,
    *,
    dtype: str = "auto",
    param_dtype: str | None = "auto",
    dropout_rate: float = 0.0,
    remat: Remat = "none",
    attention: AttentionVersion = "auto",
    mesh: MeshConfig | None = None,
    rows: int | None = None,
    tune: str = "prompt",
    offline: bool = False,
) -> Backbone:
    """Load a backbone. Every tensor of it is used once, and every leaf of the model is set once.

    Args:
        name: A bundled name, a folder, an address of a T5X checkpoint, or a Hub id.
        dtype: Dtype of the activations; `auto` is bfloat16 on TPU and GPU, float32 on CPU.
        param_dtype: Dtype of the weights in memory, likewise; None is that of the activations. With
            `int8` the matrices are int8, norms and position biases have the dtype of the
            activations. A base checkpoint in int8 stays int8 with `auto` and None.
        dropout_rate: Dropout rate of the model in training.
        remat: Activations that are computed again in the backward pass; see `T5`.
        attention: What computes the encoder's attention; see `T5`.
        mesh: How devices share the model and the rows; None leaves the choice to `automesh`.
        rows: Rows of a batch, for that choice; None if not known.
        tune: `model` where the weights will be trained, which takes float32 and more memory.
        offline: Whether the network must not be used: an address is then refused, and so is a Hub
            id whose weights are not in the Hub's cache.

    Raises:
        FileNotFoundError: A file of the backbone is missing.
        ValueError: No such backbone, its files do not fit each other, the mesh fits neither it nor
            the devices, or weights in int8 would be trained.
    """
    source, devices = open_model(name, offline=offline), jax.devices()
    platform = devices[0].platform
    in_int8 = isinstance(source, Base) and source.dtype == "int8"
    if tune == "model" and in_int8:
        raise ValueError(
            f"model '{name}' has weights in int8, which cannot be trained; give the model that it "
            "was converted from"
        )
    if in_int8 and param_dtype in ("auto", None):
        param_dtype = "int8"
    elif param_dtype is None:
        param_dtype = dtype
    weights = resolve_dtype("float32" if tune == "model" else param_dtype, platform)
    placed, reason = make_suited_mesh(
        mesh,
        source.config,
        devices=devices,
        memory=device_memory(devices),
        weights=weights,
        tune=tune,
        rows=rows,
    )
    if placed.size > 1:
        sizes = ", ".join(f"{axis} {size}" for axis, size in placed.shape.items())
        say(f"mesh: {sizes} ({reason})")
    if note := _precision_note(resolve_dtype(dtype, platform).name, platform):
        say(note)
    model = T5(
        source.config,
        dtype=resolve_dtype(dtype, platform),
        dropout_rate=dropout_rate,
        remat=remat,
        mesh=placed,
        attention=attention,
    )
    if isinstance(source, Base):
        params = restore_base(source, param_dtype=weights.name, mesh=placed, rest=model.dtype.name)
        identity = source.fingerprint
    else:
        params, identity = load_params(
            source, param_dtype=weights.name, mesh=placed, rest=model.dtype.name
        )
    return Backbone(source.name, model, params, source.tokenizer, identity)


def _precision_note(dtype: str, platform: str) -> str | None:
    """Say what float32 means on accelerators, whose matrix units round its factors by default."""
    if dtype != "float32" or platform == "cpu" or jax.config.values["jax_default_matmul_precision"]:
        return None
    return (
        "dtype float32: products of matrices still round their factors, to bfloat16 on TPU and to "
        "TF32 on GPU; set JAX_DEFAULT_MATMUL_PRECISION=highest for float32 throughout"
    )


def convert_backbone(
    source: str, dest: Path, *, dtype: str = "float32", tokenizer: str | None = None
) -> dict[str, Any]:
    """Write a model as a base checkpoint, which `load_backbone` reads fastest.

    Args:
        source: A model, named as for `load_backbone`.
        dest: Folder to be made.
        dtype: Dtype of the weights on disk, `float32`, `bfloat16` or `int8`.
        tokenizer: File, folder or Hub id of a tokenizer to use instead of the one beside the
            weights.

    Returns:
        Name, fingerprint, shape: what `spt-jax convert` prints.

    Raises:
        FileExistsError: `dest` exists.
        FileNotFoundError: A file of the source is missing.
        ValueError: The source cannot be read. Then nothing is left at `dest`.
    """
    require_new(dest)
    opened = open_model(source, None if tokenizer is None else find_tokenizer(tokenizer))
    if isinstance(opened, Base):
        raise ValueError(
            f"{source} is a base checkpoint already; load it as it is, or convert its source"
        )
    return write_base(opened, dest, dtype)


def save_backbone(
    folder: Path,
    name: str,
    config: T5Config,
    params: PyTree,
    tokenizer: Tokenizer,
    *,
    dtype: str = "bfloat16",
) -> None:
    """Write a backbone in `dtype`, with the fingerprint of the weights in that dtype."""
    folder.mkdir(parents=True, exist_ok=True)
    stored = jax.tree.map(lambda x: np.asarray(x).astype(jnp.dtype(dtype)), params)
    arrays: dict[str, Any] = dict(named_leaves(stored))
    save_file(arrays, folder / "model.safetensors")
    tokenizer.save(folder / "tokenizer.json")
    described = {
        "name": name,
        "t5": dataclasses.asdict(config),
        "fingerprint": fingerprint(stored),
    }
    (folder / "config.json").write_text(json.dumps(described, indent=2) + "\n")
    sync_tree(folder)


def describe(name: str, length: int) -> dict:
    """Return the shape and size of a model, and the cost of a prompt: what `inspect` prints.

    Args:
        name: A backbone, named as for `load_backbone`, or the name of a published T5 shape.
        length: Length P of the prompt.
    """
    if name in PRESETS:
        config, identity = PRESETS[name], None
    else:
        config, identity = read_shape(name)
    frozen, trained = count_weights(config), length * config.d_model
    return {
        "model": name,
        "fingerprint": identity,
        **dataclasses.asdict(config),
        "frozen_params": frozen,
        "frozen_bytes_float32": 4 * frozen,
        "prompt_length": length,
        "trained_params": trained,
        "trained_percent": 100 * trained / (frozen + trained),
        "prompt_bytes": 4 * trained,
    }
