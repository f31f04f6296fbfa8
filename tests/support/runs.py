"""Folders of trained runs, written without training: a config and a prompt drawn at random."""

from pathlib import Path

import numpy as np
import yaml

from spt_jax.config.fields import to_dict
from spt_jax.config.train import TrainConfig
from spt_jax.models.backbone import load_backbone
from spt_jax.prompts.file import save_prompt
from support import tiny


def random_prompt(length: int, seed: int) -> np.ndarray:
    """float32 [length, 16], far enough from the token embeddings to change what is written."""
    draw = np.random.default_rng(seed).standard_normal((length, tiny.SHAPE.d_model))
    return 2 * draw.astype(np.float32)


def write_run(folder: Path, config: TrainConfig, prompt: np.ndarray) -> Path:
    """What `fit` leaves of a run that `evaluate_run` reads."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(to_dict(config)))
    backbone = load_backbone(config.model)
    metadata = {"model": backbone.name, "fingerprint": backbone.fingerprint}
    save_prompt(folder / "prompt.safetensors", prompt, metadata)
    return folder
