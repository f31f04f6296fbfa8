"""Write the document: short text around the tables and figures, and hand-written notes.

`docs/results.md` is generated and never edited. `docs/results_notes.md` explains the numbers; it is
written by hand and only read here.

Invariant: every number of a run is in a table that was made from run folders.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from spt_jax.runs.log import write_atomic
from study.figures import draw_curves, draw_inits, draw_lengths
from study.grid import (
    DEV_ROWS,
    MODEL,
    PROMPT,
    Longer,
    Run,
    Sweep,
    init_method,
    length_method,
)
from study.runs import Record
from study.tables import (
    GAIN_GOAL,
    SHARE_GOAL,
    TaskResults,
    cost_table,
    ensemble_table,
    goal_table,
    method_table,
    score_table,
    swept,
    task_table,
)

COLUMNS = f"""\
Scores are exact match with what the model generates, 0 to 100, on all rows of test, at the step
that is best on the first {DEV_ROWS} rows of dev; an output that is no label word is wrong. *rank*
takes the likeliest label word instead. *majority* always gives the most frequent answer of train;
the *bag of words* is a logistic regression over counts of words, chosen on dev, and reads the whole
text; *unprompted* is the frozen model without a prompt; *model tuning* trains every weight, without
a prompt. A dash: there is no such result, as where the answer is free text.
"""

GOALS = f"""\
On a built-in classification the prompt should gain {GAIN_GOAL:g} points over the majority, and
{SHARE_GOAL:g} of what model tuning gains; on the others it should reach a score. Numbers are
rounded after they are compared.
"""

STEPS = """\
*prompt tuning* and *model tuning* are the table's at the top; the columns after each have other
settings where they say so, and the same rate. What counts one seed is of seed 0.
"""

ENSEMBLES = """\
Prompts of one task, trained with different seeds, answer every row in one batch on one model.
*average* and *best* are theirs, the best by these very rows; *vote* is what most of them write;
*log_probs* is the label word that they find likeliest on average.
"""

TASKS = """\
*seen*: test rows whose input is word for word that of a train row. *cut*: test inputs that are
longer than the model was given.
"""

COST = """\
*best step*: the one that was best on dev. *minutes*: from start to result, reading, compiling and
evaluations included, over the runs that were not interrupted. *examples/s*: of training alone.
"""


@dataclass(frozen=True)
class Study:
    """The content of the document.

    Args:
        results: All known tasks, in order.
        records: All finished runs.
        missing: The runs that are not finished.
        sweep: Lengths and inits of the figures.
        longer: Variants with more steps.
        ensembles: Results of `score_ensembles` by task.
        seeds: The requested seeds.
        model: Description of the backbone by `describe`.
        left_out: Titles of datasets without a folder.
    """

    results: Sequence[TaskResults]
    records: Sequence[Record]
    missing: Sequence[Run]
    sweep: Sweep
    longer: Sequence[Longer]
    ensembles: Mapping[str, Mapping]
    seeds: Sequence[int]
    model: Mapping
    left_out: Sequence[str]


def write_report(study: Study, file: Path) -> None:
    """Write the document, with its figures in `figures/` and the text of `<name>_notes.md`."""
    notes = file.with_name(f"{file.stem}_notes.md")
    parts = [*_opening(study, notes), "## Scores\n", score_table(study.results), COLUMNS]
    parts += ["## Goals\n", GOALS, goal_table(study.results), *_goals_of_longer(study)]
    parts += _sweeps(study, file.parent / "figures")
    if study.ensembles:
        parts += ["## Ensembles\n", ensemble_table(study.results, study.ensembles), ENSEMBLES]
    if notes.is_file():
        parts += ["## What to make of it\n", notes.read_text(encoding="utf-8")]
    parts += ["## Tasks\n", task_table(study.results), TASKS]
    if study.records:
        parts += ["## Cost\n", cost_table(study.results), COST, *_origin(study)]
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(file, "\n".join(parts).encode())


def _opening(study: Study, notes: Path) -> list[str]:
    model = study.model
    parts = [
        f"# Results\n\n<!-- Made by studies/results.py: edit {notes.name}, not this file. -->\n",
        f"Soft prompts for the frozen `{model['model']}` ({model['frozen_params']:,} parameters, "
        f"fingerprint `{model['fingerprint'][:12]}`), beside what they have to beat. Mean ± sample "
        f"deviation over the seeds {', '.join(map(str, study.seeds))}.\n",
    ]
    if study.left_out:
        parts.append(
            f"Left out: {', '.join(study.left_out)}. They are read from the folder that the "
            "variable SPT_JAX_DATA names, and it was not set.\n"
        )
    if study.missing:
        counts = Counter(f"{run.task} {run.method}" for run in study.missing)
        listed = ", ".join(f"{name} ({count})" for name, count in counts.items())
        parts.append(f"**Not finished** and not in the numbers: {listed}.\n")
    return parts


def _sweeps(study: Study, folder: Path) -> list[str]:
    """Return the sections with figures, if there are runs to draw."""
    parts = []
    if results := [t for t in study.results if PROMPT in t.records or MODEL in t.records]:
        draw_curves(results, folder / "curves.svg")
        parts += [
            "## Learning curves\n",
            "![Dev score against step](figures/curves.svg)\n",
            f"First {DEV_ROWS} rows of dev; line: mean of the seeds, band: from worst to best.\n",
        ]
    lengths = {str(length): length_method(length) for length in study.sweep.lengths}
    if results := swept(study.results, lengths.values()):
        draw_lengths(results, lengths, folder / "lengths.svg")
        parts += ["## Length of the prompt\n", method_table(results, "vectors", lengths)]
        parts += ["![Test score against the length of the prompt](figures/lengths.svg)\n"]
    inits = {init: init_method(init) for init in study.sweep.inits}
    if results := swept(study.results, inits.values()):
        draw_inits(results, inits, folder / "inits.svg")
        parts += ["## Where the prompt starts\n", method_table(results, "init", inits)]
        parts += ["![Test score by where the prompt starts](figures/inits.svg)\n"]
    columns = _columns_of_steps(study.longer)
    named = {variant.method for variant in study.longer}
    if results := [task for task in study.results if named & {*task.records}]:
        parts += ["## More steps\n", method_table(results, "task", columns), STEPS]
    return parts


def _columns_of_steps(longer: Sequence[Longer]) -> dict[str, str]:
    """Return methods by column: prompts, then whole models, each with its variants after it."""
    columns = {}
    for tune in (PROMPT, MODEL):
        columns[tune.replace("_", " ")] = tune
        columns |= _methods_of(longer, tune)
    return columns


def _methods_of(longer: Sequence[Longer], tune: str) -> dict[str, str]:
    """Return the methods of the variants of prompts or of whole models by title."""
    return {_title(variant): variant.method for variant in longer if variant.tune == tune}


def _title(variant: Longer) -> str:
    """Return a title such as `3,600 steps, 100 vectors`."""
    title = f"{variant.steps:,} steps"
    return title if variant.length is None else f"{title}, {variant.length} vectors"


def _goals_of_longer(study: Study) -> list[str]:
    """Return the goals for every variant of prompts, beside model tuning with the most steps."""
    models = [variant for variant in study.longer if variant.tune == MODEL]
    if not models:
        return []
    model = max(models, key=lambda variant: variant.steps)
    beside = f"beside model tuning of {_title(model)}:\n"
    parts = []
    for title, method in _methods_of(study.longer, PROMPT).items():
        if results := [task for task in study.results if method in task.records]:
            parts.append(f"The same with prompts of {title}, {beside}")
            parts.append(goal_table(results, method, model.method))
    return parts


def _origin(study: Study) -> list[str]:
    """Return the commands of the runs, and where and when they were run."""
    commands = dict.fromkeys(" ".join(r.manifest["command"]) for r in study.records)
    machines = Counter(str(r.measured.get("machine", "unknown")) for r in study.records)
    dates = sorted({r.measured["date"] for r in study.records if "date" in r.measured})
    hours = sum(r.measured.get("seconds") or 0 for r in study.records) / 3600
    versions: dict[str, set[str]] = {}
    for record in study.records:
        for package, version in {
            "python": record.manifest["python"],
            **record.manifest["versions"],
        }.items():
            versions.setdefault(package, set()).add(version)
    listed = ", ".join(f"{name} {'/'.join(sorted(found))}" for name, found in versions.items())
    return [
        "## How it was made\n",
        "\n".join(["```", *commands, "```\n"]),
        f"- Machine: {'; '.join(f'{name} ({count} runs)' for name, count in machines.items())}",
        f"- Time: {hours:.1f} hours for the runs that were not interrupted",
        f"- Date: {' to '.join(dict.fromkeys((dates[0], dates[-1]))) if dates else 'unknown'}",
        f"- Versions: {listed}",
        "- One run again: `spt-jax train --config "
        f"{study.records[0].run.folder}/config.yaml --workdir=...`; its folder holds its config, "
        "log, prompt and result",
        "",
    ]
