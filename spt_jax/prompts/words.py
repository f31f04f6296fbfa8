"""A prompt as words: the vocabulary entries nearest to each vector (Lester et al. 2021, section 7).

Trained vectors are several times as long as word embeddings, so the nearest words by cosine, which
ignores length, and by L2 distance often differ. Both are given. Neither says what the prompt does
(Khashabi et al. 2022).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from spt_jax.errors import one_line, require
from spt_jax.models.backbone import Backbone, load_backbone
from spt_jax.models.open import is_local
from spt_jax.prompts.load import load_run
from spt_jax.prompts.read import read_prompt
from spt_jax.typing import Array, Float

_OURS = ("prompt", "word_norm", "rows", "note")
"""What `show_prompt` adds; metadata of these names is not shown."""


def nearest(
    prompt: Float[Array, "P D"] | np.ndarray, table: Float[Array, "V D"] | np.ndarray, k: int
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return the `k` nearest rows of `table` to each vector of a prompt.

    The computation is in numpy, so nothing is compiled for a prompt of a new length.

    Returns:
        For `cosine` (largest first) and `l2` (smallest first): ids [P, k] and values [P, k].
    """
    prompt, table = np.asarray(prompt, np.float32), np.asarray(table, np.float32)
    dots = prompt @ table.T
    p_norm = np.linalg.norm(prompt, axis=1, keepdims=True)
    t_norm = np.linalg.norm(table, axis=1, keepdims=True).T
    cosine = dots / np.maximum(p_norm * t_norm, 1e-12)
    l2 = np.sqrt(np.maximum(np.square(p_norm) - 2 * dots + np.square(t_norm), 0.0))

    def first(values, sign):
        order = np.argsort(sign * values, axis=1, kind="stable")[:, :k]
        return order, np.take_along_axis(values, order, axis=1)

    return {"cosine": first(cosine, -1), "l2": first(l2, 1)}


def words_of(prompt: Float[Array, "P D"] | np.ndarray, backbone: Backbone, k: int) -> list[dict]:
    """Return the nearest vocabulary entries of each vector of a prompt.

    Rows of the embedding table that no text can produce (padding of the vocabulary) are left out.

    Returns:
        For each position: `position`, `norm`, and `cosine` and `l2`, lists of (word, value).
    """
    found = nearest(prompt, embeddings(backbone), k)
    norms = np.linalg.norm(np.asarray(prompt), axis=1)
    rows = []
    for position, norm in enumerate(norms):
        row: dict = {"position": position, "norm": float(norm)}
        for name, (ids, values) in found.items():
            pairs = zip(ids[position], values[position], strict=True)
            row[name] = [(backbone.tokenizer.piece(int(i)), float(value)) for i, value in pairs]
        rows.append(row)
    return rows


def nearest_words(run: Path, k: int, *, fetch: Sequence[str] = ()) -> list[dict]:
    """Return what `words_of` gives for the prompt of a trained run; `fetch` is that of `load_run`.

    Raises:
        FileNotFoundError: The folder holds no run.
        ValueError: The run has no prompt, or `k` is below 1.
    """
    require(k >= 1, f"k is {k} nearest words, expected 1 or more")
    loaded = load_run(run, fetch=fetch)
    require("prompt" in loaded.params, f"run '{run}' tuned the model and has no prompt to read")
    return words_of(loaded.params["prompt"], loaded.backbone, k)


def show_prompt(source: Path, *, model: str | None = None, k: int = 3) -> dict[str, Any]:
    """Describe a prompt of any format; this is what `spt-jax prompt show` prints.

    Without `model`, the model that the prompt's metadata names is opened only if it is on this
    machine or in the Hub's cache, because a prompt file may come from a stranger and must not
    decide what is downloaded.

    Args:
        source: Path of the prompt; see `read_prompt`.
        model: Model whose words are compared.
        k: Words for each vector; 0 opens no model.

    Returns:
        The prompt's metadata, shape and norms. With a model also `word_norm`, the mean norm of its
        embeddings, and `rows`, see `words_of`; without one, `note` says why.

    Raises:
        FileNotFoundError: The source does not exist.
        ValueError: It holds no prompt, `k` is negative, or `model` is not its model.
    """
    require(k >= 0, f"k is {k} nearest words, expected 0 or more")
    stored = read_prompt(source)
    metadata = {name: text for name, text in stored.metadata.items() if name not in _OURS}
    shown = {"prompt": str(source), **metadata, **stored.describe()}
    if k == 0:
        return shown
    name = stored.metadata.get("model") if model is None else model
    try:
        if name is None:
            raise ValueError("the file names no model")
        require(
            model is not None or is_local(name),
            f"the file's model '{name}' is no bundled one and no folder on this machine",
        )
        backbone = load_backbone(name, offline=model is None)
    except (ValueError, OSError) as error:
        if model is not None:
            raise
        return shown | {"note": f"no nearest words: {one_line(error)}; give --model"}
    stored.require_backbone(backbone)
    word_norm = np.linalg.norm(embeddings(backbone), axis=1).mean()
    return shown | {"word_norm": float(word_norm), "rows": words_of(stored.prompt, backbone, k)}


def embeddings(backbone: Backbone) -> np.ndarray:
    """Return the embeddings of the tokens that text can have, float32 [V, D]."""
    table = backbone.embeddings[: backbone.tokenizer.vocab_size]
    return np.asarray(table, np.float32)
