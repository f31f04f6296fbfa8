"""What a prompt means when it is read as words (Lester et al. 2021, section 7).

Trained prompts travel far from the embeddings (the released ones have several times their norm),
so the nearest words by cosine, which ignores length, and by L2 distance often differ. Both are
given; neither says what the prompt does (Khashabi et al. 2022).
"""

from pathlib import Path

import jax.numpy as jnp
import numpy as np

from spt_jax.models.backbone import Backbone
from spt_jax.prompts.load import load_run
from spt_jax.typing import Array, Float


def nearest(
    prompt: Float[Array, "P D"], table: Float[Array, "V D"], k: int
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The `k` nearest rows of `table` to each vector of a prompt.

    Returns:
        For `cosine` (largest first) and `l2` (smallest first): ids [P, k] and values [P, k].
    """
    prompt, table = jnp.asarray(prompt, jnp.float32), jnp.asarray(table, jnp.float32)
    dots = prompt @ table.T
    p_norm = jnp.linalg.norm(prompt, axis=1, keepdims=True)
    t_norm = jnp.linalg.norm(table, axis=1, keepdims=True).T
    cosine = dots / jnp.maximum(p_norm * t_norm, 1e-12)
    l2 = jnp.sqrt(jnp.maximum(jnp.square(p_norm) - 2 * dots + jnp.square(t_norm), 0.0))

    def first(values, sign):
        order = jnp.argsort(sign * values, axis=1)[:, :k]
        return np.asarray(order), np.asarray(jnp.take_along_axis(values, order, axis=1))

    return {"cosine": first(cosine, -1), "l2": first(l2, 1)}


def nearest_words(run: Path, k: int) -> list[dict]:
    """The nearest vocabulary entries of each vector of a run's prompt.

    Rows of the table that no text can produce (padding of the vocabulary) are left out.

    Returns:
        For each position: `position`, `norm`, and `cosine` and `l2`, lists of (word, value).

    Raises:
        ValueError: The run has no prompt, or `k` is below 1.
    """
    if k < 1:
        raise ValueError(f"k is {k} nearest words, expected 1 or more")
    _, backbone, params = load_run(run)
    if "prompt" not in params:
        raise ValueError(f"run '{run}' tuned the model and has no prompt to read")
    return words_of(params["prompt"], backbone, k)


def words_of(prompt: Float[Array, "P D"] | np.ndarray, backbone: Backbone, k: int) -> list[dict]:
    """The nearest vocabulary entries of each vector of a prompt; see `nearest_words`."""
    tokenizer = backbone.tokenizer
    table = backbone.params["token_embedder"]["embedding"][: tokenizer.vocab_size]
    found = nearest(jnp.asarray(prompt), table, k)
    norms = np.linalg.norm(np.asarray(prompt), axis=1)
    rows = []
    for position, norm in enumerate(norms):
        row: dict = {"position": position, "norm": float(norm)}
        for name, (ids, values) in found.items():
            pairs = zip(ids[position], values[position], strict=True)
            row[name] = [(tokenizer.piece(int(i)), float(value)) for i, value in pairs]
        rows.append(row)
    return rows
