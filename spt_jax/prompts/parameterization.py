"""The trained leaves of a prompt, and how they become the prompt itself, float32 [P, D].

    params["prompt"] = [P, D]                                           direct
    params["prompt"] = {NAME: {"vectors": {...}, "factors": {...}}}     every other parameterization

`materialize` folds the leaves into [P, D]. Only a run sees the leaves: its step, its checkpoints.
Prompt files, banks, evaluation and prediction see the folded prompt, so that a parameterization is
a way to train and costs nothing later.

A small change of a leaf of `vectors` changes the elements of the prompt by about as much, so the
learning rate of a direct prompt fits it. A leaf of `factors` is multiplied with others. Its
learning rate is `optimizer.factor_rate` of that, and it has no weight decay (`optim.py`).

    residual       Razdaibiedina et al. 2023, "Residual Prompt Tuning", Findings of ACL
    superposition  SadraeiJavaheri et al. 2024, "SuperPos-Prompt", ENLSP at NeurIPS
    low_rank       Xiao et al. 2023, "Decomposed Prompt Tuning via Low-Rank Reparameterization",
                   Findings of EMNLP
    projection     Wu et al. 2025, "ULPT: Prompt Tuning with Ultra-Low-Dimensional Optimization"

All but `residual` start at the prompt that `prompt.init` chooses, or as near to it as their rank
allows.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from spt_jax.config.train import PromptConfig
from spt_jax.errors import choose
from spt_jax.prompts.init import Prompt, Table, from_vocab
from spt_jax.pytree import FACTORS, VECTORS
from spt_jax.typing import Array, Float, Key, PyTree

Leaves = dict[str, Any]


def materialize(prompt: PyTree) -> Prompt:
    """Fold the trained leaves of a prompt into float32 [P, D].

    Args:
        prompt: The leaf or the leaves at `prompt` of a params tree.

    Raises:
        ValueError: The leaves are those of no parameterization.
    """
    if not isinstance(prompt, Mapping):
        return jnp.asarray(prompt)
    [(name, leaves)] = prompt.items()
    fold = choose("prompt.parameterization", name, FOLDS)
    return fold(**jax.tree.map(jnp.asarray, {**leaves[VECTORS], **leaves[FACTORS]}))


def fold_params(params: PyTree) -> PyTree:
    """Return a params tree, or its trained leaves, with the prompt folded if there is one."""
    if params.get("prompt") is None:
        return params
    return {**params, "prompt": materialize(params["prompt"])}


def parameterize(config: PromptConfig, key: Key, start: Prompt, table: Table) -> PyTree:
    """Return the leaves that train a prompt, as they are before training.

    Args:
        config: Parameterization and rank.
        key: Key of the random draws.
        start: Prompt to start from, float32 [P, D].
        table: The model's token embeddings.
    """
    if config.parameterization == "direct":
        return start
    make = choose("prompt.parameterization", config.parameterization, STARTS)
    vectors, factors = make(key, start, table, config.resolved_rank)
    return {config.parameterization: {VECTORS: vectors, FACTORS: factors}}


def _fold_residual(
    prompt: Float[Array, "P D"],
    down: Float[Array, "D R"],
    up: Float[Array, "R D"],
    scale: Float[Array, "1 D"],
    bias: Float[Array, "1 D"],
) -> Prompt:
    """Add to each vector what a small network makes of it: P + LayerNorm(relu(P down) up)."""
    x = jax.nn.relu(prompt @ down) @ up
    x = (x - x.mean(-1, keepdims=True)) * jax.lax.rsqrt(x.var(-1, keepdims=True) + 1e-5)
    return prompt + x * scale + bias


def _start_residual(key: Key, start: Prompt, table: Table, rank: int) -> tuple[Leaves, Leaves]:
    width, (down, up) = start.shape[1], jax.random.split(key)
    factors = {
        "down": _uniform(down, (width, rank)),
        "up": _uniform(up, (rank, width)),
        "scale": jnp.ones((1, width)),
        "bias": jnp.zeros((1, width)),
    }
    return {"prompt": start}, factors


def _uniform(key: Key, shape: tuple[int, int]) -> Float[Array, "I O"]:
    """Draw a kernel [I, O] uniformly in [-1/sqrt(I), 1/sqrt(I)], the default of torch's Linear."""
    bound = shape[0] ** -0.5
    return jax.random.uniform(key, shape, jnp.float32, -bound, bound)


def _fold_superposition(rows: Float[Array, "R D"], weights: Float[Array, "P R"]) -> Prompt:
    """Mix R rows that started as token embeddings: each vector has its own weights."""
    return weights @ rows


def _start_superposition(key: Key, start: Prompt, table: Table, rank: int) -> tuple[Leaves, Leaves]:
    # The paper's offsets are added to frozen embeddings. Without weight decay, training the sum is
    # the same. The first P rows are the start, so that the prompt starts there.
    length = len(start)
    rows = jnp.concatenate([start, from_vocab(key, table, rank - length)])
    return {"rows": rows}, {"weights": jnp.eye(length, rank)}


def _fold_low_rank(left: Float[Array, "P R"], basis: Float[Array, "R D"]) -> Prompt:
    """Multiply two thin matrices."""
    return left @ basis


def _start_low_rank(key: Key, start: Prompt, table: Table, rank: int) -> tuple[Leaves, Leaves]:
    # The nearest matrix of this rank. The RMS of the basis is 1/sqrt(R), so that a change of `left`
    # changes the prompt by as much.
    left, sizes, basis = np.linalg.svd(np.asarray(start), full_matrices=False)
    size = (start.shape[1] / rank) ** 0.5
    left = left[:, :rank] * sizes[:rank] / size
    return {"left": jnp.asarray(left)}, {"basis": jnp.asarray(basis[:rank] * size)}


def _fold_projection(
    codes: Float[Array, "P R"], shift: Float[Array, "1 D"], scale: Float[Array, "1 D"]
) -> Prompt:
    """Project short codes by a fixed random matrix, then scale and shift each dimension."""
    return codes @ random_projection(codes.shape[1], scale.shape[1]) * scale + shift


def _start_projection(key: Key, start: Prompt, table: Table, rank: int) -> tuple[Leaves, Leaves]:
    vectors, width = np.asarray(start), start.shape[1]
    shift = vectors.mean(0, keepdims=True)
    codes = np.linalg.lstsq(random_projection(rank, width).T, (vectors - shift).T)[0].T
    return {"codes": jnp.asarray(codes), "shift": jnp.asarray(shift)}, {
        "scale": jnp.ones((1, width))
    }


@functools.cache
def random_projection(rank: int, width: int) -> np.ndarray:
    """Return the fixed matrix of `projection`, float32 [R, D], normal with variance 1/R.

    It is a function of its shape alone, so that it is in no checkpoint. numpy promises that the
    numbers of `RandomState` stay the same in all its versions.
    """
    drawn = np.random.RandomState(0).standard_normal((rank, width))
    return (drawn / rank**0.5).astype(np.float32)


FOLDS: Mapping[str, Callable[..., Prompt]] = {
    "residual": _fold_residual,
    "superposition": _fold_superposition,
    "low_rank": _fold_low_rank,
    "projection": _fold_projection,
}
"""The prompt, made of the leaves by name."""

STARTS: Mapping[str, Callable[[Key, Prompt, Table, int], tuple[Leaves, Leaves]]] = {
    "residual": _start_residual,
    "superposition": _start_superposition,
    "low_rank": _start_low_rank,
    "projection": _start_projection,
}
"""`vectors` and `factors` before training."""
