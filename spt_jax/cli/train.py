"""`spt-jax train`: a prompt, or one for each of several seeds."""

import dataclasses
import re
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from spt_jax.cli.options import (
    add_distributed_flags,
    add_run_flags,
    connected,
    make_parser,
    print_config,
    read_seeds,
    stdout_to_stderr_if,
    workdir,
)
from spt_jax.cli.printing import print_result
from spt_jax.config.train import TrainConfig
from spt_jax.distributed.preemption import listening


def train(argv: Sequence[str]) -> None:
    """Train a soft prompt for a frozen T5, or continue a run."""
    parser = make_parser(train, TrainConfig)
    add_run_flags(parser)
    parser.add_flag(
        "seeds",
        str | None,
        None,
        "Train once for each seed, such as 0,1,2 or 0-4, in WORKDIR/seed_S, and print mean and "
        "sample deviation.",
        metavar="S,S,...",
    )
    parser.add_argument(
        "--profile",
        nargs="?",
        const="5",
        metavar="STEPS",
        help="Trace a few steps, 5 by default, after a warm-up, in WORKDIR/profile; `xprof` opens "
        "it.",
    )
    add_distributed_flags(parser)
    flags, config = parser.read(argv)
    if flags.print_config:
        return print_config(config)
    seeds = None if flags.seeds is None else read_seeds(flags.seeds)
    folder = workdir(flags, config.task.name or Path(config.task.source).stem)
    command = ["spt-jax", "train", *argv]
    profile = 0 if flags.profile is None else _read_profile(flags.profile)
    options = {"overwrite": flags.overwrite, "command": command, "profile": profile}
    # Signals first: over several processes jax's own notice of SIGTERM takes their place.
    with listening(), connected(flags, "train", argv):
        with stdout_to_stderr_if(flags.json):
            result = _fit(config, seeds, folder, **options)
        print_result(result, flags.json)


def _fit(
    config: TrainConfig, seeds: Sequence[int] | None, folder: Path, **options: Any
) -> dict[str, Any]:
    from spt_jax.train import fit

    if seeds is None:
        return fit(config, folder, **options)
    return _summary(
        [
            fit(dataclasses.replace(config, seed=seed), folder / f"seed_{seed}", **options)
            for seed in seeds
        ]
    )


def _read_profile(text: str) -> int:
    if not re.fullmatch("[1-9][0-9]*", text):
        raise ValueError(f"--profile is '{text}', expected a number of steps, 1 or more")
    return int(text)


def _summary(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Mean and sample deviation of each score over the runs, and the runs."""
    summary: dict[str, Any] = {"task": runs[0].get("task"), "seeds": [run["seed"] for run in runs]}
    for key in runs[0]:
        scores = [run[key] for run in runs if run.get(key) is not None]
        if key.endswith("score") and len(scores) == len(runs):
            summary[key] = statistics.mean(scores)
            summary[f"{key}_deviation"] = statistics.stdev(scores) if len(scores) > 1 else None
    return {**summary, "runs": [dict(run) for run in runs]}
