"""Evaluate a model on rows, and trained runs on a split of their tasks.

`evaluation/scores.py` defines the scores.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spt_jax.config.devices import MeshConfig
from spt_jax.config.train import DataConfig, TaskConfig, TrainConfig
from spt_jax.data.example import Task, sample_rows
from spt_jax.data.papers.splits import paper_task_names
from spt_jax.data.pipeline import TokenizedSplit, split_fingerprint, tokenize_task
from spt_jax.data.tasks import load_task, load_test
from spt_jax.distributed.main_process import main_process, on_main
from spt_jax.errors import suggest
from spt_jax.evaluation.scores import Outputs, Scores, TaskRows, answer_tasks, score
from spt_jax.models.backbone import Backbone
from spt_jax.prediction.inputs import form_of
from spt_jax.prediction.output import check_output
from spt_jax.prompts.bank import PromptBank
from spt_jax.prompts.load import ROWS, load_run, load_runs, load_stored
from spt_jax.runs.log import write_atomic
from spt_jax.runs.progress import say
from spt_jax.typing import Params


def evaluate(
    backbone: Backbone,
    params: Params,
    split: TokenizedSplit,
    data: DataConfig,
    *,
    label_words: Sequence[str] | None,
    batch_size: int,
    metrics: Sequence[str] = ("accuracy",),
) -> Scores:
    """Generate an answer for every row, rank the label words, and score both.

    Args:
        backbone: Model and tokenizer; its params are not used.
        params: `{"t5": ...}`, with or without a `prompt`.
        split: Rows as token ids.
        data: Buckets, most tokens of an answer, and whether label words begin with a sentinel.
        label_words: Answers that count; None for free text.
        batch_size: Rows of a batch.
        metrics: Names of the task's metrics; their mean is the score.
    """
    bank, name = PromptBank.of_params(params, backbone.model.config.d_model)
    rows = TaskRows(split, label_words, data, name, metrics)
    [outputs] = answer_tasks(backbone, {"t5": params["t5"]}, bank, [rows], data, batch_size)
    return score(rows, outputs)


def sample_split(split: TokenizedSplit, max_rows: int | None) -> TokenizedSplit:
    """Return a fixed random sample of so many rows of a split; all rows for None."""
    if max_rows is None:
        return split
    kept = sample_rows(split.examples, max_rows)
    return dataclasses.replace(
        split,
        examples=[split.examples[i] for i in kept],
        inputs=[split.inputs[i] for i in kept],
        targets=[split.targets[i] for i in kept],
    )


def merge_data(configs: Sequence[DataConfig]) -> DataConfig:
    """Return buckets and lengths that hold the rows of every run."""
    return DataConfig(
        inputs_length=max(config.inputs_length for config in configs),
        targets_length=max(config.targets_length for config in configs),
        buckets=tuple(sorted({size for config in configs for size in config.buckets})),
    )


def evaluate_run(
    run: Path,
    split: str = "test",
    *,
    task: str | None = None,
    origin: str | None = None,
    model: str | None = None,
    mesh: MeshConfig | None = None,
    output: Path | None = None,
    fetch: Sequence[str] = (),
) -> dict:
    """Score a trained run at its best step, or a prompt that has no run.

    Args:
        run: Folder of the run; with `model`, a prompt in any format that `prompt import` takes.
        split: `train`, `dev` or `test`.
        task: Another task of the papers, whose test rows are scored without further training.
        origin: Where these rows are read from, as `task.origin`; that of the run by default.
        model: Frozen model of a prompt that has no run; it needs a `task`.
        mesh: How devices share the work; `automesh` decides if None.
        output: A file of JSONL to write, with the input, the target, the output and the
            log-probabilities of the label words of each row. It replaces a file of an earlier
            evaluation and no other.
        fetch: Names in the config of the run that may be fetched from the network: its model (an
            address, or a Hub id that is not in the Hub's cache) and the addresses of its rows.

    Returns:
        Task, split, scores, and `data_changed`: whether the rows or the label words are others than
        when the run was trained; None where that is not known.

    Raises:
        FileNotFoundError: The folder holds no run, a file of the other task is missing, or there is
            no folder for `output`.
        FileExistsError: `output` is a file that no evaluation has written.
        IsADirectoryError: `output` is a folder.
        ValueError: The split or the task is unknown, the prompt is of another model, or the config
            names what would be fetched and is not in `fetch`.
        RunError: `output` cannot be written.
    """
    if output is not None:
        on_main(lambda: _require_own_output(output))
    facts: Mapping[str, Any] = {}
    if model is None:
        rows = ROWS if task is None else ("origin",) if origin is None else ()
        config, backbone, params, facts = load_run(run, mesh=mesh, fetch=fetch, rows=rows)
    else:
        config = TrainConfig(model=model, task=TaskConfig(name=task))
        backbone, params, metadata = load_stored(run, config, mesh=mesh)
        data = DataConfig(sentinel_targets=form_of(metadata).sentinel_targets)
        config = dataclasses.replace(config, data=data)
    if task is None:
        return _evaluate_on(config.task, split, config, backbone, params, output, facts)
    if task not in paper_task_names() or split != "test":
        raise ValueError(
            f"split '{split}' of task '{task}' is given; expected the test split of one of "
            f"{', '.join(paper_task_names())}{suggest(task, paper_task_names())}"
        )
    other = TaskConfig(name=task, origin=origin or config.task.origin, prefix=config.task.prefix)
    return _evaluate_on(other, "test", config, backbone, params, output, {})


def _evaluate_on(
    described: TaskConfig,
    split: str,
    config: TrainConfig,
    backbone: Backbone,
    params: Params,
    output: Path | None,
    facts: Mapping[str, Any],
) -> dict:
    task = load_task(described) if described is config.task else load_test(described)
    rows = tokenize_task(task, split, described, config, backbone.tokenizer)
    scores = evaluate(
        backbone,
        params,
        rows,
        config.data,
        label_words=task.label_words,
        batch_size=config.eval.batch_size,
        metrics=task.metrics,
    )
    if output is not None:
        _write_rows(output, task, rows, scores)
    return _result(task, split, scores, rows, facts)


def _data_changed(
    facts: Mapping[str, Any], task: Task, split: str, rows: TokenizedSplit
) -> bool | None:
    """Return whether a split differs from what the manifest of a run says; None if unknown."""
    known = facts.get("fingerprints", {}).get(split)
    if known is None:
        return None
    words = None if task.label_words is None else list(task.label_words)
    changed = known != split_fingerprint(rows) or facts.get("label_words") != words
    if changed:
        say(
            f"the {split} rows or the label words of task '{task.name}' are others than when the "
            "run was trained, so this score does not compare with its own"
        )
    return changed


def _require_own_output(output: Path) -> None:
    """Raise an error if a file cannot be written, or holds anything but rows of an evaluation."""
    check_output(output, None)
    if not output.is_file():
        return
    with output.open("rb") as file:
        line = file.readline()
    try:
        row = json.loads(line or b"{}")
    except (ValueError, RecursionError):
        row = None
    if line and (not isinstance(row, dict) or list(row)[:3] != ["input", "target", "output"]):
        raise FileExistsError(
            f"output {output} is a file that no evaluation has written, and it would be replaced; "
            "give another one, or remove it"
        )


@main_process
def _write_rows(output: Path, task: Task, rows: TokenizedSplit, scores: Scores) -> None:
    """Write what the model made of each row as a line of JSON, in the order of the rows."""
    lines = []
    for number, (example, text) in enumerate(zip(rows.examples, scores.predictions, strict=True)):
        row: dict[str, Any] = {"input": example.inputs, "target": example.targets, "output": text}
        if task.label_words and scores.log_probs is not None:
            values = scores.log_probs[number].tolist()
            row["log_probs"] = dict(zip(task.label_words, values, strict=True))
        lines.append(json.dumps(row, ensure_ascii=False) + "\n")
    write_atomic(output, "".join(lines).encode("utf-8", "replace"))


def _result(
    task: Task, split: str, scores: Scores, rows: TokenizedSplit, facts: Mapping[str, Any]
) -> dict:
    """Return what is printed of the scores of a task; `facts` are those of the run's manifest."""
    return {
        "task": task.name,
        "split": split,
        **scores.to_dict(),
        "cut_inputs": 100 * rows.truncated,
        "data_changed": _data_changed(facts, task, split, rows),
    }


def evaluate_runs(
    runs: Sequence[Path],
    split: str,
    *,
    mesh: MeshConfig | None = None,
    fetch: Sequence[str] = (),
) -> dict[str, dict]:
    """Score trained runs of any tasks that share one frozen model, in the same batches.

    Args:
        runs: Folders of the runs.
        split: `train`, `dev` or `test`.
        mesh: How devices share the work; `automesh` decides if None.
        fetch: Names in the configs that may be fetched from the network; see `evaluate_run`.

    Returns:
        The result of `evaluate_run` for each run, by its path.

    Raises:
        FileNotFoundError: A folder holds no run, or one that has not been evaluated yet.
        ValueError: The runs have no model in common, the split is unknown, or a config names what
            would be fetched and is not in `fetch`.
    """
    group = load_group(runs, split, mesh=mesh, fetch=fetch)
    return {
        name: _result(task, split, score(rows, outputs), rows.split, facts)
        for name, task, rows, outputs, facts in zip(
            group.names, group.tasks, group.rows, group.answer(), group.facts
        )
    }


@dataclass(frozen=True)
class RunGroup:
    """Trained runs that share one frozen model, ready to answer the rows of a split.

    Args:
        names: Paths of the runs. The lists below are in their order.
        tasks: Task of each run.
        rows: Rows of each run.
        facts: What the manifest of each run says of its data.
        backbone: The frozen model.
        bank: Prompt of each run, by its path.
        data: Buckets and lengths that hold the rows of any run.
        batch_size: Smallest batch size of the runs.
    """

    names: Sequence[str]
    tasks: Sequence[Task]
    rows: Sequence[TaskRows]
    facts: Sequence[Mapping[str, Any]]
    backbone: Backbone
    bank: PromptBank
    data: DataConfig
    batch_size: int

    def answer(self) -> list[Outputs]:
        """Answer the rows of each task with its prompt; rows of all tasks share their batches."""
        params = {"t5": self.backbone.params}
        return answer_tasks(self.backbone, params, self.bank, self.rows, self.data, self.batch_size)


def load_group(
    runs: Sequence[Path],
    split: str,
    *,
    mesh: MeshConfig | None = None,
    fetch: Sequence[str] = (),
) -> RunGroup:
    """Load runs and the rows of their tasks.

    Raises:
        FileNotFoundError, ValueError: See `evaluate_runs`.
    """
    configs, backbone, bank, facts = load_runs(runs, mesh=mesh, fetch=fetch, rows=ROWS)
    tasks = _load_tasks(configs)
    return RunGroup(
        names=[str(run) for run in runs],
        tasks=tasks,
        rows=[
            TaskRows(
                split=tokenize_task(task, split, config.task, config, backbone.tokenizer),
                label_words=task.label_words,
                data=config.data,
                prompt=str(run),
                metrics=task.metrics,
            )
            for run, config, task in zip(runs, configs, tasks)
        ],
        facts=facts,
        backbone=backbone,
        bank=bank,
        data=merge_data([config.data for config in configs]),
        batch_size=min(config.eval.batch_size for config in configs),
    )


def _load_tasks(configs: Sequence[TrainConfig]) -> list[Task]:
    """Load the task of each config; read a task that several configs have only once."""
    tasks: list[Task] = []
    for config in configs:
        known = (task for other, task in zip(configs, tasks) if other.task == config.task)
        tasks.append(next(known, None) or load_task(config.task))
    return tasks
