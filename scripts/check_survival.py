"""End `spt-jax train` at random moments many times, and compare the run folders.

    python scripts/check_survival.py /tmp/survival --kills 50

The script trains a prompt for the tests' tiny model, twice undisturbed. Then it trains runs whose
processes get SIGKILL or SIGTERM at random moments, from the first import to the last file, and are
started again until the run is finished. Every run must leave the same files as an undisturbed one:
log, prompt, result and last checkpoint. No saved step may be lost, and SIGTERM must save the step
that it names. Everything runs on the CPU.

Progress goes to stderr. The script prints one JSON object with the number of kills by the phase of
the run. If anything differs, the exit code is 1, and the folder contains the files.
"""

import argparse
import collections
import dataclasses
import importlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import jax
import yaml

from spt_jax.config.fields import to_dict
from spt_jax.config.train import EvalConfig, LogConfig, OptimizerConfig, TrainConfig
from spt_jax.prompts.file import load_prompt
from spt_jax.runs.folder import RunFolder
from spt_jax.runs.log import read_log
from spt_jax.runs.progress import say
from spt_jax.train import fit

TESTS = Path(__file__).parents[1] / "tests"
STEPS, EVALUATE, SAVE = 48, 6, 4
CLOCKED = ("steps_per_second", "examples_per_second", "waiting_share", "mfu", "checkpoint_bytes")
"""What a result has that two equal runs do not share; Orbax's files hold the time."""


@dataclasses.dataclass(frozen=True)
class Kill:
    """A signal, the phase of the run when it was sent, and the exit code."""

    signal: str
    moment: str
    code: int


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Ends train at random moments, and compares.")
    parser.add_argument("folder", type=Path, help="Made anew; what it holds is deleted.")
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    folder, rng, started = options.folder.absolute(), random.Random(options.seed), time.monotonic()
    shutil.rmtree(folder, ignore_errors=True)
    write_config(folder)
    undisturbed(folder, "first")  # compiles
    life = undisturbed(folder, "whole")
    say(f"an undisturbed process lives {life:.1f} s")
    kills: list[Kill] = []
    problems, runs = differences(folder / "first", folder / "whole"), 0
    while len(kills) < options.kills and not problems:
        run = folder / f"run{(runs := runs + 1)}"
        made, problems = disturbed(run, life, options.kills - len(kills), rng)
        kills += made
        problems = problems or differences(run, folder / "whole")
        say(f"{run.name}: {len(made)} kills; {len(kills)} of {options.kills} in all")
    for problem in problems:
        say(f"DIFFERS: {problem}")
    counted = {
        name: dict(collections.Counter(str(getattr(kill, name)) for kill in kills))
        for name in ("signal", "moment", "code")
    }
    result = {
        "same": not problems,
        "kills": len(kills),
        "runs": runs,
        **{f"by_{name}": counts for name, counts in counted.items()},
        "seconds_undisturbed": round(life, 1),
        "seconds": round(time.monotonic() - started),
    }
    print(json.dumps(result))
    return 1 if problems else 0


def write_config(folder: Path) -> None:
    """Write config.yaml: a prompt for a tiny model that half knows the task, so scores change."""
    jax.config.update("jax_platforms", "cpu")
    sys.path.insert(0, str(TESTS))
    tiny = importlib.import_module("support.tiny")
    evaluation, log = EvalConfig(every=EVALUATE, batch_size=16, baselines=False), LogConfig(every=3)
    config: TrainConfig = tiny.train_config(folder, steps=STEPS, eval=evaluation)
    config = dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, buckets=()),
        optimizer=OptimizerConfig(learning_rate=0.03),
        log=dataclasses.replace(log, checkpoint_every=SAVE),
    )
    tuned = dataclasses.replace(
        config,
        tune="model",
        prompt=None,
        optimizer=OptimizerConfig(learning_rate=0.01),
        eval=dataclasses.replace(evaluation, every=40),
        log=log,
        steps=40,
    )
    fit(tuned, folder / "tuned")
    config = dataclasses.replace(config, model=str(RunFolder(folder / "tuned").model_folder))
    (folder / "config.yaml").write_text(yaml.safe_dump(to_dict(config)))


def start(run: Path, output: Path) -> subprocess.Popen:
    """Start `spt-jax train` in the folder `run`; its output goes to `output`."""
    programs = {
        "JAX_COMPILATION_CACHE_DIR": str(run.parent / "programs"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    command = [sys.executable, "-m", "spt_jax", "train", f"--config={run.parent}/config.yaml"]
    with open(output, "w") as file:
        return subprocess.Popen(
            [*command, f"--workdir={run}"],
            env={**programs, **os.environ, "JAX_PLATFORMS": "cpu"},
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
        )


def undisturbed(folder: Path, name: str) -> float:
    """Train in one process; return its seconds."""
    output, started = folder / f"{name}.txt", time.monotonic()
    if (code := start(folder / name, output).wait()) != 0:
        raise SystemExit(f"an undisturbed run ended with code {code}; see {output}")
    return time.monotonic() - started


def disturbed(
    run: Path, life: float, most: int, rng: random.Random
) -> tuple[list[Kill], list[str]]:
    """Train in processes that are ended up to `most` times, each within `life` seconds.

    Returns:
        The kills, and the first problem, after which the run is not continued.
    """
    kills: list[Kill] = []
    while True:
        saved, log_before = newest_step(run), log_identity(run)
        output = run.with_name(f"{run.name}.{len(kills)}.txt")
        number, moment = rng.choice((signal.SIGKILL, signal.SIGTERM)), "never"
        process = start(run, output)
        if len(kills) < most:
            try:
                process.wait(rng.triangular(0, life))
            except subprocess.TimeoutExpired:
                moment = moment_of(run, log_before)
                process.send_signal(number)
        code = process.wait()
        if code != 0 and moment != "never":
            kills.append(Kill(number.name, moment, code))
        problems = wrong(number, moment, code, saved, newest_step(run), output.read_text())
        if problems or code == 0:
            return kills, [f"{problem}; see {output}" for problem in problems]


def wrong(
    number: signal.Signals, moment: str, code: int, before: int, after: int, text: str
) -> list[str]:
    """Describe a wrong end of a process; `before` and `after` are its newest saved steps."""
    problems = []
    allowed = {0} if moment == "never" else {0, -number}
    if number == signal.SIGTERM and moment != "never":
        # Where it does not listen: before it has read its options, and after its result.
        allowed = {0, 75, -number} if moment in ("starting", "ending") else {0, 75}
    if code not in allowed:
        cause = "no signal" if moment == "never" else f"{number.name} while {moment}"
        problems.append(f"exit code {code} after {cause}")
    if after < before:
        problems.append(f"step {before} was saved, and the newest is {after} now")
    if (found := re.search(r"resumed at step (\d+)", text)) and int(found[1]) != before:
        problems.append(f"step {before} was saved, and the run went on from {found[1]}")
    if (found := re.search(r"at step (\d+), which is saved", text)) and int(found[1]) != after:
        problems.append(f"SIGTERM at step {found[1]}, and the newest that is saved is {after}")
    if "is not usable" in text:
        problems.append("a checkpoint was not whole")
    return problems


def moment_of(run: Path, log_before: int | None) -> str:
    """Return the phase of a run by its files; `log_before` was read before its process began."""
    if log_identity(run) == log_before:
        return "starting"
    if any((run / "checkpoints").glob("*.orbax-checkpoint-tmp*")):
        return "saving"
    records = read_log(run / "log.jsonl")
    step, evaluated = (records[-1]["step"], "split" in records[-1]) if records else (0, True)
    if not evaluated and step % EVALUATE == 0:
        return "evaluating"
    return "ending" if step == STEPS else "training"


def log_identity(run: Path) -> int | None:
    """Return the inode of the log, which every process replaces when it begins to train."""
    log = run / "log.jsonl"
    return log.stat().st_ino if log.exists() else None


def newest_step(run: Path) -> int:
    folders = run.glob("checkpoints/*")
    return max((int(path.name) for path in folders if path.name.isdigit()), default=0)


def differences(run: Path, whole: Path) -> list[str]:
    """List what differs between a finished run and the undisturbed one, or occurs twice."""
    found = []
    steps = [record["step"] for record in read_log(run / "log.jsonl") if "loss" in record]
    if sorted(set(steps)) != steps:
        found.append("a step is in log.jsonl twice")
    laps = [record["step"] for record in read_log(run / "timing.jsonl")]
    if sorted(set(laps)) != laps:
        found.append("a step is in timing.jsonl twice")
    if (run / "log.jsonl").read_bytes() != (whole / "log.jsonl").read_bytes():
        found.append("log.jsonl")
    prompts = [load_prompt(place / "prompt.safetensors") for place in (run, whole)]
    if prompts[0][0].tobytes() != prompts[1][0].tobytes() or prompts[0][1] != prompts[1][1]:
        found.append("prompt.safetensors")
    results = [json.loads((place / "result.json").read_text()) for place in (run, whole)]
    found += [
        f"{name} in result.json"
        for name in results[1]
        if name not in CLOCKED and results[0].get(name) != results[1][name]
    ]
    last = str(results[1]["steps"])
    manifests = [place / "checkpoints" / last / "metadata" / "metadata" for place in (run, whole)]
    digests = [json.loads(file.read_text())["sha256"] for file in manifests]
    if digests[0] != digests[1]:  # of every array, and of what describes them
        found.append(f"checkpoint {last}")
    return [f"{run}: {what}" for what in found]


if __name__ == "__main__":
    sys.exit(main())
