"""A frozen T5 with its tokenizer: what a prompt is trained for, in one folder.

    config.json         the T5Config, the name, and the fingerprint of the weights
    model.safetensors   the weights by name, `encoder/layers/mlp/wi_0/kernel` with layers stacked
    tokenizer.json      the tokenizer

Loading is strict: every tensor is used once and every leaf of the model is set once.
"""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from spt_jax.errors import suggest
from spt_jax.pytree import count_params, fingerprint, named_leaves, nbytes
from spt_jax.t5 import PRESETS, T5, T5Config
from spt_jax.tokenizer import Tokenizer
from spt_jax.typing import PyTree

BUNDLED = Path(__file__).parent / "backbones"


@dataclass(frozen=True)
class Backbone:
    """A loaded backbone.

    Args:
        name: As given to `load_backbone`, or the bundled name.
        model: The T5, without its parameters.
        params: T5's parameters; `{"t5": backbone.params}` is a params tree without a prompt.
        tokenizer: Its tokenizer.
        fingerprint: Identity of the weights, as stored with them.
    """

    name: str
    model: T5
    params: PyTree
    tokenizer: Tokenizer
    fingerprint: str


def backbone_names() -> list[str]:
    """The bundled backbones."""
    return sorted(path.parent.name for path in BUNDLED.glob("*/config.json"))


def find_backbone(name: str) -> Path:
    """The folder of a bundled backbone, or a folder given by path.

    Raises:
        ValueError: It is neither.
    """
    for folder in (BUNDLED / name, Path(name)):
        if (folder / "config.json").is_file():
            return folder
    bundled = backbone_names()
    raise ValueError(
        f"unknown model '{name}'; expected a bundled one ({', '.join(bundled)}) or a folder with "
        f"config.json, model.safetensors and tokenizer.json{suggest(name, bundled)}"
    )


def load_backbone(
    name: str,
    *,
    dtype: str = "float32",
    param_dtype: str = "float32",
    dropout_rate: float = 0.0,
    remat: bool = False,
) -> Backbone:
    """Loads a backbone.

    Args:
        name: A bundled name or a folder.
        dtype: Of the activations.
        param_dtype: Of the weights in memory.
        dropout_rate: Of the model in training.
        remat: See `T5`.

    Raises:
        ValueError: No such backbone, or its files do not fit each other.
    """
    folder = find_backbone(name)
    described = json.loads((folder / "config.json").read_text())
    config = T5Config(**described["t5"])
    model = T5(config, dtype=jnp.dtype(dtype), dropout_rate=dropout_rate, remat=remat)
    try:
        arrays = load_file(folder / "model.safetensors")
    except (SafetensorError, FileNotFoundError) as error:
        raise ValueError(
            f"weights {folder / 'model.safetensors'} cannot be read: {error}"
        ) from error
    check_weights({name: x.shape for name, x in arrays.items()}, config, str(folder))
    params = flax.traverse_util.unflatten_dict(
        {name: jnp.asarray(array, jnp.dtype(param_dtype)) for name, array in arrays.items()},
        sep="/",
    )
    tokenizer = Tokenizer.from_file(folder / "tokenizer.json")
    return Backbone(described["name"], model, params, tokenizer, described["fingerprint"])


def check_weights(shapes: dict[str, tuple[int, ...]], config: T5Config, origin: str) -> None:
    """Raises ValueError unless `shapes` names every leaf of the model once, with its shape."""
    abstract = jax.eval_shape(T5(config).init_params, jax.random.key(0))
    expected = {name: leaf.shape for name, leaf in named_leaves(abstract)}
    problems = [
        *(f"missing {name} {expected[name]}" for name in sorted(expected.keys() - shapes.keys())),
        *(f"unexpected {name} {shapes[name]}" for name in sorted(shapes.keys() - expected.keys())),
        *(
            f"{name} has shape {shapes[name]}, expected {expected[name]}"
            for name in sorted(expected.keys() & shapes.keys())
            if tuple(shapes[name]) != tuple(expected[name])
        ),
    ]
    if problems:
        raise ValueError(f"weights of {origin} do not fit its config: " + "; ".join(problems))


def save_backbone(
    folder: Path,
    name: str,
    config: T5Config,
    params: PyTree,
    tokenizer: Tokenizer,
    *,
    dtype: str = "bfloat16",
) -> None:
    """Writes a backbone in `dtype`, with the fingerprint of what it wrote."""
    folder.mkdir(parents=True, exist_ok=True)
    stored = jax.tree.map(lambda x: np.asarray(jnp.asarray(x, jnp.dtype(dtype))), params)
    arrays: dict[str, Any] = dict(named_leaves(stored))
    save_file(arrays, folder / "model.safetensors")
    tokenizer.save(folder / "tokenizer.json")
    described = {
        "name": name,
        "t5": dataclasses.asdict(config),
        "fingerprint": fingerprint(stored),
    }
    (folder / "config.json").write_text(json.dumps(described, indent=2) + "\n")


def describe(name: str, length: int) -> dict:
    """What `spt-jax inspect` prints: the shape, the size, and the cost of a prompt of `length`.

    Args:
        name: A backbone, or the name of a published T5 shape.
        length: Of the prompt, P.
    """
    if name in PRESETS:
        config, identity = PRESETS[name], None
    else:
        described = json.loads((find_backbone(name) / "config.json").read_text())
        config, identity = T5Config(**described["t5"]), described["fingerprint"]
    params = jax.eval_shape(T5(config).init_params, jax.random.key(0))
    frozen, trained = count_params(params), length * config.d_model
    return {
        "model": name,
        "fingerprint": identity,
        **dataclasses.asdict(config),
        "frozen_params": frozen,
        "frozen_bytes_float32": nbytes(params),
        "prompt_length": length,
        "trained_params": trained,
        "trained_percent": 100 * trained / (frozen + trained),
        "prompt_bytes": 4 * trained,
    }
