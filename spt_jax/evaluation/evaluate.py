"""Evaluation: of a model on rows, and of trained runs on a split of their tasks.

What the scores are is said in `evaluation/scores.py`.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from spt_jax.config.devices import MeshConfig
from spt_jax.config.train import DataConfig, TaskConfig, TrainConfig
from spt_jax.data.example import Task, sample_rows
from spt_jax.data.papers.splits import paper_task_names
from spt_jax.data.pipeline import TokenizedSplit, tokenize_task
from spt_jax.data.tasks import load_task, load_test
from spt_jax.errors import suggest
from spt_jax.evaluation.scores import Outputs, Scores, TaskRows, answer_tasks, score
from spt_jax.models.backbone import Backbone
from spt_jax.prediction.predictor import Predictor
from spt_jax.prompts.bank import PromptBank
from spt_jax.prompts.load import load_run, load_runs, load_stored
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
    max_rows: int | None = None,
) -> Scores:
    """Generates an answer for every row, ranks the label words, and scores both.

    Args:
        backbone: Its model and its tokenizer are used, its params are not.
        params: `{"t5": ...}`, with or without a `prompt`.
        split: The rows.
        data: Buckets, and the most tokens an answer may have.
        label_words: The answers that count; None for free text.
        batch_size: Rows at a time.
        metrics: Of the task; their mean is the score.
        max_rows: Use a fixed random sample of so many rows.
    """
    if max_rows is not None:
        kept = sample_rows(split.examples, max_rows)
        split = dataclasses.replace(
            split,
            examples=[split.examples[i] for i in kept],
            inputs=[split.inputs[i] for i in kept],
            targets=[split.targets[i] for i in kept],
        )
    bank, name = _bank_of(backbone, params)
    rows = TaskRows(split, label_words, data.targets_length, name, metrics)
    [outputs] = answer_tasks(backbone, {"t5": params["t5"]}, bank, [rows], data, batch_size)
    return score(rows, outputs)


def _bank_of(backbone: Backbone, params: Params) -> tuple[PromptBank, str | None]:
    """The prompt of `params` in a bank, and its name there; None where there is no prompt."""
    prompts = {"prompt": params["prompt"]} if "prompt" in params else {}
    bank = PromptBank.from_prompts(prompts, backbone.model.config.d_model)
    return bank, next(iter(prompts), None)


def evaluate_run(
    run: Path,
    split: str = "test",
    *,
    task: str | None = None,
    origin: str | None = None,
    model: str | None = None,
    mesh: MeshConfig | None = None,
) -> dict:
    """Scores a trained run at its best step, or a prompt that has no run.

    Args:
        run: Its folder; with `model`, a prompt in any format that `prompt import` takes.
        split: `train`, `dev` or `test`.
        task: Another task of the papers, whose test rows are scored without any more training.
        origin: Where those are read from, as `task.origin`; that of the run by default.
        model: The frozen model of such a prompt, which needs a `task`.
        mesh: How devices share the work; see `automesh` where None.

    Raises:
        FileNotFoundError: The folder holds no run, or a file of the other task is missing.
        ValueError: The split or the task is unknown, or the prompt is of another model.
    """
    if model is None:
        config, backbone, params = load_run(run, mesh=mesh)
    else:
        config = TrainConfig(model=model, task=TaskConfig(name=task))
        backbone, params = load_stored(run, config, mesh=mesh)
    if task is None:
        return _evaluate_on(config.task, split, config, backbone, params)
    if task not in paper_task_names() or split != "test":
        raise ValueError(
            f"split '{split}' of task '{task}' is given; expected the test split of one of "
            f"{', '.join(paper_task_names())}{suggest(task, paper_task_names())}"
        )
    other = TaskConfig(name=task, origin=origin or config.task.origin, prefix=config.task.prefix)
    return _evaluate_on(other, "test", config, backbone, params)


def _evaluate_on(
    described: TaskConfig, split: str, config: TrainConfig, backbone: Backbone, params: Params
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
    return _result(task, split, scores, rows)


def _result(task: Task, split: str, scores: Scores, rows: TokenizedSplit) -> dict:
    """Return what is printed of the scores of a task."""
    cut = 100 * rows.truncated
    return {"task": task.name, "split": split, **scores.to_dict(), "cut_inputs": cut}


def evaluate_runs(
    runs: Sequence[Path], split: str, *, mesh: MeshConfig | None = None
) -> dict[str, dict]:
    """Scores trained runs of any tasks that share one frozen model, in the same batches.

    Args:
        runs: Their folders.
        split: `train`, `dev` or `test`.
        mesh: How devices share the work; see `automesh` where None.

    Returns:
        By the path of each run, what `evaluate_run` gives.

    Raises:
        FileNotFoundError: A folder holds no run, or one that has not been evaluated yet.
        ValueError: The runs have no model in common, or the split is unknown.
    """
    group = load_group(runs, split, mesh=mesh)
    return {
        name: _result(task, split, score(rows, outputs), rows.split)
        for name, task, rows, outputs in zip(group.names, group.tasks, group.rows, group.answer())
    }


@dataclass(frozen=True)
class RunGroup:
    """Trained runs that share one frozen model, ready to answer the rows of a split.

    Args:
        names: Of the runs: their paths. The lists below are in their order.
        tasks: Of each run.
        rows: Of each run.
        backbone: The model.
        bank: The prompt of each run, by its name.
        data: Buckets and lengths that hold the rows of any run.
        batch_size: The smallest of the runs.
    """

    names: Sequence[str]
    tasks: Sequence[Task]
    rows: Sequence[TaskRows]
    backbone: Backbone
    bank: PromptBank
    data: DataConfig
    batch_size: int

    def answer(self) -> list[Outputs]:
        """What each prompt makes of the rows of its task, which share their batches."""
        params = {"t5": self.backbone.params}
        return answer_tasks(self.backbone, params, self.bank, self.rows, self.data, self.batch_size)


def load_group(runs: Sequence[Path], split: str, *, mesh: MeshConfig | None = None) -> RunGroup:
    """Loads runs and the rows of their tasks.

    Raises:
        FileNotFoundError, ValueError: See `evaluate_runs`.
    """
    configs, backbone, bank = load_runs(runs, mesh=mesh)
    tasks = _load_tasks(configs)
    return RunGroup(
        names=[str(run) for run in runs],
        tasks=tasks,
        rows=[
            TaskRows(
                split=tokenize_task(task, split, config.task, config, backbone.tokenizer),
                label_words=task.label_words,
                targets_length=config.data.targets_length,
                prompt=str(run),
                metrics=task.metrics,
            )
            for run, config, task in zip(runs, configs, tasks)
        ],
        backbone=backbone,
        bank=bank,
        data=DataConfig(
            inputs_length=max(config.data.inputs_length for config in configs),
            targets_length=max(config.data.targets_length for config in configs),
            buckets=tuple(sorted({size for config in configs for size in config.data.buckets})),
        ),
        batch_size=min(config.eval.batch_size for config in configs),
    )


def _load_tasks(configs: Sequence[TrainConfig]) -> list[Task]:
    """The task of each config; one that several have is read once."""
    tasks: list[Task] = []
    for config in configs:
        known = (task for other, task in zip(configs, tasks) if other.task == config.task)
        tasks.append(next(known, None) or load_task(config.task))
    return tasks


def predict_run(
    run: Path,
    texts: Sequence[str],
    *,
    inputs_length: int | None = None,
    mesh: MeshConfig | None = None,
) -> list[str]:
    """What a trained run writes for each text, in order.

    Args:
        run: Its folder.
        texts: Any number.
        inputs_length: Most tokens of a text; that of the run by default.
        mesh: How devices share the work; see `automesh` where None.

    Raises:
        ValueError: A text is longer.
    """
    config, backbone, params = load_run(run, mesh=mesh)
    if not texts:
        return []
    bank, name = _bank_of(backbone, params)
    predictor = Predictor(
        backbone,
        bank,
        inputs_length=config.data.inputs_length if inputs_length is None else inputs_length,
        targets_length=config.data.targets_length,
        batch_size=min(config.eval.batch_size, len(texts)),
    )
    return [answers.texts[0] for answers in predictor.predict([(name, text) for text in texts])]
