"""What a study costs, told before anything is trained: runs, steps, examples and operations.

The operations are those of training with every batch at its longest, so they are an upper bound;
evaluations are not counted. No rows are read, and of a model its shape alone.
"""

import functools
from pathlib import Path
from typing import Any

import numpy as np

from spt_jax.config.train import TrainConfig
from spt_jax.models.open import read_shape
from spt_jax.runs.folder import RunFolder
from spt_jax.studies.grid import Study, expand
from spt_jax.studies.packs import describe_packs, make_packs
from spt_jax.t5.flops import step_flops


def estimate(study: Study, folder: Path, together: int | None = None) -> dict[str, Any]:
    """Return what a sweep would train in a folder, and what that would cost.

    Args:
        study: A base config and what varies.
        folder: Folder of the sweep, which need not exist.
        together: Most runs that share a program; None chooses it by memory.

    Returns:
        `runs`, a record of each run with its `name`, the number of its `program`, its `state`
        (`finished` or `waiting`), and the steps that are done and left; `packs`, how the runs share
        programs, in words; the sums `runs_left`, `steps_left` and `examples_left`; and
        `flops_at_most`, the operations of these steps.

    Raises:
        ValueError: The study is wrong, a model is unknown, or a folder holds another run.
        FileNotFoundError: A file of a model is missing.
    """
    records: list[dict[str, Any]] = []
    examples, flops = 0, 0.0
    runs = expand(study)
    packs = make_packs([run.config for run in runs], together)
    program_of = {run: number for number, pack in enumerate(packs, start=1) for run in pack}
    for index, run in enumerate(runs):
        place = RunFolder(folder / run.name)
        finished = place.finished(run.config, overwrite=False) is not None
        done = run.config.steps if finished else min(place.last_step(), run.config.steps)
        left = run.config.steps - done
        records.append(
            {
                "name": run.name,
                "program": program_of[index],
                "state": "finished" if finished else "waiting",
                "steps_done": done,
                "steps_left": left,
            }
        )
        examples += left * run.config.data.batch_size
        flops += left * _step_flops(run.config) if left else 0.0
    return {
        "runs": records,
        "packs": describe_packs(packs),
        "runs_left": sum(record["state"] == "waiting" for record in records),
        "steps_left": sum(record["steps_left"] for record in records),
        "examples_left": examples,
        "flops_at_most": round(flops),
    }


def _step_flops(config: TrainConfig) -> float:
    """Return the operations of one step whose batch has the longest inputs and targets."""
    rows = config.data.batch_size
    batch = {
        "inputs": np.empty((rows, config.data.inputs_length), np.int8),
        "targets": np.empty((rows, config.data.targets_length), np.int8),
    }
    length = config.prompt.length if config.prompt else 0
    return step_flops(_shape(config.model), batch, prompt=length, tune=config.tune)


@functools.lru_cache(maxsize=8)
def _shape(model: str) -> Any:
    return read_shape(model)[0]
