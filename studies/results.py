"""Train the runs of docs/results.md and write the document with its figures.

    pip install -e ".[results]"
    SPT_JAX_DATA=/folder python studies/results.py              # --dry-run says how long it takes

`--only` and `--methods` select runs: `--only=library,sst2 --methods=prompt_tuning,ensemble` trains
the members of the ensembles. Each run has a run folder, `<workdir>/<task>/<method>/seed<k>`. After
an interruption the same command continues. It trains no run twice, and writes the document from all
finished runs. A .jsonl file beside the document keeps what it needs of the runs, so that their
folders can be deleted.
"""

import importlib.util
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import jax
from study.archive import pack, unpack
from study.baselines import score_baselines
from study.datasets import DATASETS, convert, task_config
from study.ensembles import score_ensembles
from study.grid import (
    MODEL,
    PROMPT,
    Ensembles,
    Longer,
    Run,
    Settings,
    Sweep,
    expected_minutes,
    plan,
)
from study.report import Study, write_report
from study.runs import Origin, collect, minutes, speed_scale, state_of, train_all
from study.tables import by_task

from spt_jax.cli.parser import Parser
from spt_jax.config.train import TaskConfig
from spt_jax.data.tasks import load_task, task_names
from spt_jax.errors import RunError, suggest
from spt_jax.models.backbone import describe
from spt_jax.runs.progress import say

# fmt: off
SETTINGS = {
    # "*" is every task without a row of its own.
    # task      method          steps   rate  length  batch  inputs  targets  dev every
    ("*",      PROMPT): Settings(900,  0.1,    20,     16,     64,      8,      150),
    ("*",      MODEL):  Settings(400,  0.003,   0,     16,     64,      8,      100),
    ("agnews", PROMPT): Settings(900,  0.1,    20,     16,     96,      8,      150),
    ("agnews", MODEL):  Settings(400,  0.003,   0,     16,     96,      8,      100),
}
# fmt: on
SWEEP = Sweep(
    tasks=("library", "trec"),
    lengths=(1, 5, 20, 50, 100),
    inits=("class_labels", "sampled_vocab", "uniform_paper", "uniform_official"),
)
LONGER = (
    Longer(PROMPT, 3600, ("library", "type", "sst2", "trec", "subj", "agnews"), (0,)),
    Longer(PROMPT, 3600, ("library", "type", "trec", "subj"), (0, 1, 2), length=100),
    Longer(PROMPT, 3600, ("sst2", "agnews"), (0,), length=100),
    Longer(PROMPT, 7200, ("library", "sst2", "trec"), (0,), length=100),
    Longer(MODEL, 1600, ("library", "type", "describes", "sst2", "trec", "subj", "agnews"), (0,)),
)
ENSEMBLES = Ensembles(tasks=("library", "sst2"), seeds=(0, 1, 2, 3, 4))
EXTRA = {"matplotlib": "matplotlib", "sklearn": "scikit-learn"}  # module -> what installs it


def main(argv: Sequence[str]) -> int:
    """Run the script; return 0, 2 for bad input, or 1 if a run failed."""
    try:
        return _main(argv)
    except KeyboardInterrupt:
        print("results.py: interrupted; the same command continues it", file=sys.stderr)
        return 130
    except (ValueError, TypeError, OSError, RunError) as error:
        print(f"results.py: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1 if isinstance(error, RunError) else 2


def _main(argv: Sequence[str]) -> int:
    flags, _ = _parser().read(argv)
    seeds, workdir = _seeds(flags.seeds), Path(flags.workdir)
    data = os.environ.get("SPT_JAX_DATA")
    tasks = {name: TaskConfig(name=name) for name in task_names()}
    tasks |= {name: task_config(name, workdir / "data") for name in DATASETS if data}
    only = _names("only", flags.only, tasks)
    runs = plan(
        tasks,
        SETTINGS,
        SWEEP,
        seeds,
        workdir,
        longer=LONGER,
        ensembles=ENSEMBLES,
        model=flags.model,
        steps=flags.steps,
    )
    methods = _names("methods", flags.methods, dict.fromkeys(run.method for run in runs))
    chosen = [run for run in runs if run.task in only and run.method in methods]
    model = describe(flags.model, 1)
    archive = Path(flags.output).with_suffix(".jsonl")
    unpack(archive, workdir)
    if flags.dry_run:
        return _list(chosen, Origin(model["fingerprint"], {}))

    _require_extra()
    failed, baselines = [], {}
    for name, task in tasks.items():
        say(f"baselines of {name}")
        try:
            if data and name in DATASETS:
                convert(name, Path(data), workdir / "data")
            baselines[name] = score_baselines(load_task(task), workdir / name / "baselines")
        except Exception as error:  # whatever it is, the other tasks are worth having
            failed.append(f"{name}: {type(error).__name__}: {' '.join(str(error).split())}")
            say(f"failed: {failed[-1]}")
    known = [run for run in runs if run.task in baselines]
    origin = Origin(
        model["fingerprint"], {name: facts["rows"] for name, facts in baselines.items()}
    )
    if not flags.report:
        # Seeds share their programs, also those of a command that was stopped.
        jax.config.update("jax_compilation_cache_dir", str(workdir / "compiled"))
        chosen = [run for run in chosen if run.task in baselines]
        states = {run.folder: state_of(run, origin) for run in chosen}
        command = ["python", "studies/results.py", *argv]
        failed += train_all(chosen, states, command, overwrite=flags.overwrite)

    records = collect(known, origin)
    ensembles = score_ensembles(records, ENSEMBLES.tasks, len(ENSEMBLES.seeds))
    pack(records, workdir, archive)
    finished = {record.run.folder for record in records}
    titles = {name: dataset.title for name, dataset in DATASETS.items()}
    study = Study(
        results=by_task(records, baselines, titles, len(seeds)),
        records=records,
        missing=[run for run in runs if run.folder not in finished],
        sweep=SWEEP,
        longer=LONGER,
        ensembles=ensembles,
        seeds=seeds,
        model=model,
        left_out=[] if data else list(titles.values()),
    )
    write_report(study, Path(flags.output))
    say(f"{flags.output} is written, {len(records)} of {len(runs)} runs in it")
    for line in failed:
        print(f"results.py: failed: {line}", file=sys.stderr)
    return 1 if failed else 0


def _parser() -> Parser:
    parser = Parser("results", (__doc__ or "").partition("\n")[0])
    parser.prog = "studies/results.py"
    parser.add_flag("workdir", str, "runs/results", "Folder of all runs.")
    parser.add_flag("output", str, "docs/results.md", "The document; figures go beside it.")
    parser.add_flag("seeds", str, "0,1,2", "Seeds of every method.", metavar="S,S,...")
    parser.add_flag("only", str | None, None, "Train these tasks alone.", metavar="TASK,TASK,...")
    parser.add_flag(
        "methods", str | None, None, "Train with these methods alone.", metavar="METHOD,METHOD,..."
    )
    parser.add_flag("model", str, "spt-nano", "The backbone: a bundled one or a folder.")
    parser.add_flag("steps", int | None, None, "Steps of every run: to try the script out.")
    for name, text in (
        ("dry-run", "List the runs with the minutes they are expected to take, and train none."),
        ("report", "Train nothing; write the document from the runs that are finished."),
        ("overwrite", "Train runs of other settings, another backbone or other rows anew."),
    ):
        parser.add_argument(f"--{name}", action="store_true", help=text)
    return parser


def _seeds(text: str) -> list[int]:
    seeds = [int(seed) for seed in text.split(",") if seed.isdecimal()]
    if len({*seeds}) < text.count(",") + 1:
        raise ValueError(f"--seeds is '{text}', expected different whole numbers such as 0,1,2")
    return seeds


def _names(flag: str, text: str | None, known: Iterable[str]) -> list[str]:
    """Return the names of a comma-separated list, or all known names by default."""
    known = list(known)
    names = known if text is None else text.split(",")
    for name in names:
        if name not in known:
            unset = " (SPT_JAX_DATA is not set)" if name in DATASETS else suggest(name, known)
            raise ValueError(f"--{flag} names '{name}', expected one of {', '.join(known)}{unset}")
    return names


def _list(runs: Sequence[Run], origin: Origin) -> int:
    waiting, scale = [], speed_scale(runs)
    for run in runs:
        state = state_of(run, origin)
        if state != "finished":
            waiting.append(run)
        print(f"{scale * expected_minutes(run.config):5.1f} min  {run}  {state}")
    print(
        f"{len(runs)} runs, {minutes(runs, runs)}; {len(waiting)} to run, {minutes(waiting, runs)}"
    )
    return 0


def _require_extra() -> None:
    for module, package in EXTRA.items():
        if importlib.util.find_spec(module) is None:
            raise ValueError(
                f'{package} is not installed, and the results need it; pip install -e ".[results]"'
            )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
