"""What `spt-jax prompt show` prints: all that can be said of a prompt without a task to run."""

from pathlib import Path
from typing import Any

import numpy as np

from spt_jax.models.backbone import load_backbone
from spt_jax.prompts.read import describe_stored, read_stored, require_model_of
from spt_jax.prompts.words import words_of


def show_prompt(source: Path, *, model: str | None = None, k: int = 3) -> dict[str, Any]:
    """Describes a prompt of any format.

    Args:
        source: See `read_stored`.
        model: The model whose words are compared; the one that the prompt names by default.
        k: Words for each vector; 0 leaves them, and the model, out.

    Returns:
        What the prompt says of itself, its shape and norms, and with a model `word_norm`, the mean
        norm of its embeddings, and `rows`, see `interpret.words_of`. `note` says why there are
        none, where the model of the prompt is not known or not here.

    Raises:
        FileNotFoundError: The source does not exist.
        ValueError: It holds no prompt, `k` is negative, or `model` is not its model.
    """
    if k < 0:
        raise ValueError(f"k is {k} nearest words, expected 0 or more")
    stored = read_stored(source)
    shown = {"prompt": str(source), **stored.metadata, **describe_stored(stored)}
    name = stored.metadata.get("model") if model is None else model
    if k == 0:
        return shown
    if name is None:
        return shown | {"note": "no nearest words: the file names no model; give --model"}
    try:
        backbone = load_backbone(name)
    except (ValueError, OSError) as error:
        if model is not None:
            raise
        reason = " ".join(str(error).split())
        return shown | {"note": f"no nearest words: {reason}; give --model"}
    require_model_of(stored, backbone, source)
    table = np.asarray(backbone.params["token_embedder"]["embedding"], np.float32)
    norms = np.linalg.norm(table[: backbone.tokenizer.vocab_size], axis=1)
    return shown | {"word_norm": float(norms.mean()), "rows": words_of(stored.prompt, backbone, k)}
