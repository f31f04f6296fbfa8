"""A tiny model with prompts of three kinds, for an engine or a server."""

import dataclasses
import json
from pathlib import Path

from spt_jax.config.serve import EngineConfig
from support import runs, tiny

CONFIG = EngineConfig(
    inputs_length=16, targets_length=4, batch_size=4, buckets=(8,), max_wait=20.0, max_rows=24
)
LABELS = ["animal", "plant"]


def write_prompts(folder: Path) -> dict[str, str]:
    """Write a model and prompts, and return the path of each prompt by its name.

    `animals` and `plants` are runs of one task with a template, `pairs` is a run whose template has
    two fields and of which no label words are known.
    """
    paths = {}
    for seed, name in enumerate(("animals", "plants", "pairs")):
        config = tiny.train_config(folder)
        template = "{first} or {second}" if name == "pairs" else "say: {text}"
        task = dataclasses.replace(config.task, template=template)
        config = dataclasses.replace(config, task=task)
        run = runs.write_run(folder / name, config, runs.random_prompt(3 + seed, seed))
        if name != "pairs":
            manifest = {"identity": {}, "versions": {}, "data": {"label_words": LABELS}}
            (run / "manifest.json").write_text(json.dumps(manifest))
        paths[name] = str(run)
    return paths
