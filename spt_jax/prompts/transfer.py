"""What trained prompts are to each other: how alike they are, their sums, and other models.

Vu et al. 2022, "SPoT: Better Frozen Model Adaptation through Soft Prompt Transfer", ACL
Belanec et al. 2025, "Task Prompt Vectors", ECML-PKDD
Lester et al. 2022, "Reducing Retraining by Recycling Parameter-Efficient Prompts"
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from spt_jax.errors import require
from spt_jax.models.backbone import Backbone, load_backbone
from spt_jax.prompts.convert import require_new
from spt_jax.prompts.file import ROW_NAMES, save_prompt
from spt_jax.prompts.read import StoredPrompt, read_prompt, read_start
from spt_jax.prompts.words import embeddings
from spt_jax.runs.workdir import find_address


def similarity(sources: Sequence[str | Path], *, to: str | Path | None = None) -> dict[str, Any]:
    """Return how alike prompts of one model are (SPoT, section 4).

    Prompts are compared in two ways, both from -1 to 1: by the cosine of their mean vectors, and by
    the mean cosine over all pairs of a vector of one and a vector of the other. The order of the
    vectors does not count, and lengths may differ.

    Args:
        sources: Paths of two or more prompts; see `read_prompt`.
        to: A prompt that is compared with each of the sources. By default all are compared with
            each other.

    Returns:
        `sources`, their paths; with `to` their similarities to it, `nearest` first, as a list of
        `source`, `task`, `mean_cosine` and `pair_cosine`: a prompt to start from. Without it, the
        matrices `mean_cosine` and `pair_cosine`.

    Raises:
        FileNotFoundError: A prompt does not exist.
        ValueError: There are too few, or they are of different models.
    """
    names = [str(source) for source in sources]
    least = 2 if to is None else 1
    require(len(names) >= least, f"{len(names)} prompts are given, expected {least} or more")
    stored = [read_prompt(source) for source in sources]
    if to is None:
        _require_one_model(stored)
        mean, pair = _cosines(stored, stored)
        return {"sources": names, "mean_cosine": mean.tolist(), "pair_cosine": pair.tolist()}
    target = read_prompt(to)
    _require_one_model([target, *stored])
    [mean], [pair] = _cosines([target], stored)
    rows = [
        {"source": name, "task": prompt.metadata.get("task"), "mean_cosine": m, "pair_cosine": p}
        for name, prompt, m, p in zip(names, stored, mean.tolist(), pair.tolist(), strict=True)
    ]
    return {"to": str(to), "nearest": sorted(rows, key=lambda row: -row["mean_cosine"])}


def _cosines(
    left: Sequence[StoredPrompt], right: Sequence[StoredPrompt]
) -> tuple[np.ndarray, np.ndarray]:
    """Return both similarities of each prompt of `left` with each of `right`."""
    sides = [[np.asarray(s.prompt, np.float64) for s in side] for side in (left, right)]
    # The mean cosine over pairs is the product of the mean unit vectors.
    means, units = (
        [np.stack([make(prompt) for prompt in side]) for side in sides]
        for make in (lambda p: _unit(p.mean(0)), lambda p: _unit(p).mean(0))
    )
    return means[0] @ means[1].T, units[0] @ units[1].T


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)


def combine(
    parts: Mapping[str, float], dest: Path, *, start: str | Path | None = None
) -> dict[str, Any]:
    """Write start + sum of weight * (trained - start): task prompt vectors, added up.

    Args:
        parts: Weight of each run, by its folder; negative to take a task away.
        dest: Prompt file to be made.
        start: Prompt that the sum is added to. By default it is what the runs started from, which
            must then be the same for all.

    Returns:
        `prompt`, the file; its metadata; and its shape and norms.

    Raises:
        FileExistsError: `dest` exists.
        FileNotFoundError: A run does not exist, or keeps no start.
        ValueError: The runs are of different models or lengths, or of different starts without
            `start`; a run is given twice; or the sum is too large for float32.
    """
    require_new(dest)
    require(bool(parts), "no run is given, expected the folders of one or more")
    places = [find_address(Path(name)) or str(Path(name).resolve()) for name in parts]
    for number, (name, place) in enumerate(zip(parts, places)):
        require(
            place not in places[:number],
            f"run '{name}' is given twice; give it once, with the sum of the weights",
        )
    trained = {name: read_prompt(name) for name in parts}
    starts = {name: read_start(name) for name in parts}
    base = next(iter(starts.values())) if start is None else read_prompt(start)
    _require_one_model([base, *trained.values()])
    for name, prompt in trained.items():
        require(
            prompt.prompt.shape == starts[name].prompt.shape == base.prompt.shape,
            f"prompt {prompt.origin} has {len(prompt.prompt)} vectors but the start "
            f"{base.origin} has {len(base.prompt)}; combine prompts of one length",
        )
        require(
            start is not None or np.array_equal(starts[name].prompt, base.prompt),
            f"run '{name}' started from another prompt than '{next(iter(parts))}'; name the "
            "prompt that their changes are added to with --start, such as the start.safetensors of "
            "one of them",
        )
    total = base.prompt.astype(np.float64)
    for name, weight in parts.items():
        total += weight * (trained[name].prompt.astype(np.float64) - starts[name].prompt)
    largest = np.abs(total).max()
    require(
        largest <= np.finfo(np.float32).max,
        f"the sum has values up to {largest:.3g}, expected at most 3.4e38, the largest float32; "
        "give smaller weights",
    )
    metadata = _of_model([base, *trained.values()]) | {
        "length": str(len(total)),
        "combined": " ".join(f"{weight:+g}*{name}" for name, weight in parts.items()),
    }
    return _write(dest, total.astype(np.float32), metadata)


def recycle(source: str | Path, dest: Path, *, old: str, new: str) -> dict[str, Any]:
    """Write a prompt of one model for another, by a linear map between their embeddings.

    The map is the least-squares fit of the new model's embeddings by the old one's, over the tokens
    that both vocabularies have (`v2v-lin` of Lester et al. 2022).

    Args:
        source: Prompt of the old model; see `read_prompt`.
        dest: Prompt file to be made.
        old: Model that the prompt was trained on.
        new: Model that it is for.

    Returns:
        `prompt`, the file; its metadata; its shape and norms; `anchors`, the number of tokens in
        common; and `unexplained`, the share of the variance of the new embeddings that the map does
        not explain, from 0 to 1.

    Raises:
        FileExistsError: `dest` exists.
        FileNotFoundError: The prompt or a model does not exist.
        ValueError: The prompt is not of the old model, or the vocabularies share too few tokens.
    """
    require_new(dest)
    stored = read_prompt(source)
    backbones = [load_backbone(name) for name in (old, new)]
    stored.require_backbone(backbones[0])
    first, second = (embeddings(backbone).astype(np.float64) for backbone in backbones)
    ids = _anchors(*backbones)
    require(
        len(ids) > first.shape[1],
        f"'{old}' and '{new}' have {len(ids)} tokens in common, expected more than "
        f"{first.shape[1]}, the width of '{old}': their vocabularies are too different",
    )
    anchors, targets = first[ids[:, 0]], second[ids[:, 1]]
    linear = np.linalg.lstsq(anchors, targets)[0]
    left = np.sum(np.square(anchors @ linear - targets))
    metadata = {
        "model": backbones[1].name,
        "fingerprint": backbones[1].fingerprint,
        "length": str(len(stored.prompt)),
        "recycled_from": backbones[0].name,
    }
    for name in ("task", *ROW_NAMES):
        if name in stored.metadata:
            metadata[name] = stored.metadata[name]
    written = _write(dest, (stored.prompt @ linear).astype(np.float32), metadata)
    unexplained = float(left / np.sum(np.square(targets - targets.mean(0))))
    return {**written, "anchors": len(ids), "unexplained": unexplained}


def _anchors(old: Backbone, new: Backbone) -> np.ndarray:
    """Return the ids of the tokens that two vocabularies share, int [A, 2]."""
    pieces = [
        {backbone.tokenizer.piece(i): i for i in range(len(embeddings(backbone)))}
        for backbone in (old, new)
    ]
    shared = [(i, pieces[1][piece]) for piece, i in pieces[0].items() if piece in pieces[1]]
    return np.array(shared, int).reshape(-1, 2)


def _require_one_model(stored: Sequence[StoredPrompt]) -> None:
    """Raise ValueError unless all prompts are of one model, as far as their files say."""
    first = next((s for s in stored if s.metadata.get("fingerprint")), stored[0])
    for other in stored:
        other.require_model(
            first.metadata.get("model", first.origin),
            first.prompt.shape[1],
            first.metadata.get("fingerprint"),
        )


def _of_model(stored: Sequence[StoredPrompt]) -> dict[str, str]:
    """Return what the first prompt that knows its model says of it."""
    known = next((s.metadata for s in stored if "fingerprint" in s.metadata), stored[0].metadata)
    return {name: known[name] for name in ("model", "fingerprint") if name in known}


def _write(dest: Path, prompt: np.ndarray, metadata: Mapping[str, str]) -> dict[str, Any]:
    dest.parent.mkdir(parents=True, exist_ok=True)
    save_prompt(dest, prompt, metadata)
    return {"prompt": str(dest), **metadata, **read_prompt(dest).describe()}
