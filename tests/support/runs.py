"""Folders of trained runs, written without training: prompts drawn at random, made-up scores."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from spt_jax.config.fields import to_dict
from spt_jax.config.train import TrainConfig
from spt_jax.models.backbone import load_backbone
from spt_jax.prompts.file import save_prompt
from spt_jax.runs.folder import RunFolder
from spt_jax.runs.log import RunLog, write_json_atomic
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


def write_scores(
    folder: Path,
    config: TrainConfig,
    *,
    score: float | None = 50.0,
    dev: Mapping[int, float] = {10: 40.0, 20: 45.0},
    seconds: float = 2.0,
    identity: Mapping[str, str] = {},
    **result: Any,
) -> Path:
    """What `fit` leaves of a run that a report reads.

    Args:
        folder: Folder of the run.
        config: Its config.
        score: Score on test; None for a run that is not finished.
        dev: Dev score of each evaluation by its step.
        seconds: Of all steps.
        identity: Fingerprints in the manifest.
        result: Further values of the result, which replace the usual ones.
    """
    run = RunFolder(folder)
    folder.mkdir(parents=True)
    run.config_file.write_text(yaml.safe_dump(to_dict(config)))
    write_json_atomic(
        run.manifest_file,
        {
            "identity": dict(identity),
            "versions": {},
            "device": "1 x cpu (cpu)",
            "data": {"rows": {"test": 1327}},
        },
    )
    with RunLog(run.log_file) as log, RunLog(run.timing_file) as timing:
        for step, dev_score in dev.items():
            log.write({"step": step, "loss": 1.0})
            log.write({"step": step, "split": "dev", "score": dev_score})
            timing.write({"step": step, "seconds": seconds / len(dev)})
    if score is not None:
        best = max(dev, key=lambda step: dev[step])
        usual = {
            "task": config.task.name,
            "score": score,
            "rank_score": score + 1,
            "dev_score": dev[best],
            "majority_score": 12.0,
            "best_step": best,
            "steps": config.steps,
            "steps_done": config.steps,
            "trained_params": config.prompt.length * 16 if config.prompt else 1000,
            "examples_per_second": 80.0,
            "seed": config.seed,
        }
        write_json_atomic(run.result_file, {**usual, **result})
    return folder
