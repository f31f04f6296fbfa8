"""`spt-jax train`: a prompt, or one for each of several seeds, which share a program."""

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
from spt_jax.errors import RunError


def train(argv: Sequence[str]) -> None:
    """Train a soft prompt for a frozen T5, or continue a run."""
    parser = make_parser(train, TrainConfig)
    add_run_flags(parser)
    parser.add_flag(
        "seeds",
        str | None,
        None,
        "Train once for each seed, such as 0,1,2 or 0-4, in WORKDIR/seed_S, and print mean and "
        "sample deviation. As many as fit into memory train in one program.",
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
    if seeds is None:
        from spt_jax.train import fit

        return fit(config, folder, **options)
    from spt_jax.studies.packs import make_packs, train_pack

    configs = [dataclasses.replace(config, seed=seed) for seed in seeds]
    outcomes: dict[int, Any] = {}
    for pack in make_packs(configs, None):
        places = [folder / f"seed_{seeds[number]}" for number in pack]
        trained = train_pack([configs[number] for number in pack], places, **options)
        outcomes |= dict(zip(pack, trained, strict=True))
    for number, outcome in outcomes.items():
        if isinstance(outcome, RunError):
            raise RunError(f"seed {seeds[number]}: {outcome}") from outcome
    return _summary([outcomes[number] for number in range(len(seeds))])


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
