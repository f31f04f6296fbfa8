"""What a model makes of the rows of tasks, with a prompt for each task or with none, in scores.

`score` is of greedy generation, 0 to 100, and the mean of the task's metrics where it has several;
an output that is no label word is wrong (Lester et al. 2021). `rank_score` takes the most likely
label word instead, so that a model which never writes a legal label is still told from one that
knows nothing.

Rows of all tasks are answered in the same batches; one task is the case of a bank of one prompt.
"""

import dataclasses
import functools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from spt_jax.config.train import DataConfig
from spt_jax.data.example import Task
from spt_jax.data.pipeline import TokenizedSplit, eval_batches
from spt_jax.decoding.loop import answer_log_probs, likeliest, write
from spt_jax.distributed.preemption import poll
from spt_jax.evaluation.metrics import compute, invalid, mean_score
from spt_jax.forward import encode
from spt_jax.models.backbone import Backbone
from spt_jax.prompts.bank import BankArrays, PromptBank
from spt_jax.sharding import constrain, place_batch, spreadable_rows
from spt_jax.t5 import T5
from spt_jax.tokenizers.base import Tokenizer
from spt_jax.typing import Array, Float, Int, Params


@dataclass(frozen=True)
class Scores:
    """What an evaluation gives.

    Args:
        score: Mean of the metrics of what was generated, 0 to 100.
        rank_score: The same of the most likely label word; None for free text.
        invalid: Percentage of outputs that are no label word, or no number where one is asked for;
            None for free text.
        rows: How many rows were scored.
        predictions: What was generated, in the order of the rows.
        metrics: Those of the task, of what was generated, by name.
    """

    score: float
    rank_score: float | None
    invalid: float | None
    rows: int
    predictions: tuple[str, ...]
    metrics: Mapping[str, float]

    def to_dict(self) -> dict:
        """The numbers, without the predictions."""
        numbers = {"score": self.score, "rank_score": self.rank_score, "invalid": self.invalid}
        return {**numbers, "metrics": dict(self.metrics), "rows": self.rows}


def encode_answers(label_words: Sequence[str], tokenizer: Tokenizer, length: int) -> np.ndarray:
    """Label words as int32[W, U] with EOS, padded with 0.

    Raises:
        ValueError: A word has tokens unknown to the tokenizer, is longer than `length` with its
            EOS, or two words are the same tokens.
    """
    rows = [[*tokenizer.encode(word), tokenizer.eos_id] for word in label_words]
    for word, row in zip(label_words, rows, strict=True):
        if tokenizer.unk_id in row:
            raise ValueError(
                f"label word '{word}' has characters that the tokenizer does not know; "
                "map it to another word by task.label_words"
            )
        if len(row) > length:
            raise ValueError(
                f"label word '{word}' has {len(row)} tokens with its end marker but "
                f"data.targets_length is {length}; set data.targets_length to {len(row)} or more"
            )
        first = label_words[rows.index(row)]
        if first != word:
            raise ValueError(
                f"label words '{first}' and '{word}' are the same tokens; "
                "map one to another word by task.label_words"
            )
    answers = np.zeros((len(rows), max(map(len, rows), default=0)), np.int32)
    for number, row in enumerate(rows):
        answers[number, : len(row)] = row
    return answers


@dataclass(frozen=True)
class TaskRows:
    """Rows that are answered with one prompt.

    Args:
        split: The rows.
        label_words: The answers that count; None for free text.
        targets_length: Most tokens of an answer, with its end marker.
        prompt: Its name in the bank, or None.
        metrics: Of the task, from `spt_jax.evaluation.metrics.METRICS`.
    """

    split: TokenizedSplit
    label_words: Sequence[str] | None
    targets_length: int
    prompt: str | None
    metrics: Sequence[str] = ("accuracy",)


class Outputs(NamedTuple):
    """What a model makes of the rows of a task.

    Args:
        predictions: What it writes for each row.
        log_probs: Of each label word, float32 [rows, W]; None for free text.
    """

    predictions: tuple[str, ...]
    log_probs: np.ndarray | None


@functools.partial(jax.jit, static_argnames=("model", "length"))
def _answer(
    model: T5,
    params: Params,
    bank: BankArrays,
    task_ids: Int[Array, " B"],
    inputs: Int[Array, "B T"],
    answers: Int[Array, "B W U"],
    *,
    length: int,
) -> tuple[Int[Array, "B U"], Float[Array, "B W"]]:
    """What is written with the prompt of each row's task, and `answer_log_probs`, encoded once."""
    params, prompt_mask = bank.prompted(params, task_ids)
    encoded = encode(model, params, inputs, prompt_mask=prompt_mask)
    ids, _ = write(model, params, inputs, likeliest, length=length, encoded=encoded)
    log_probs = jnp.zeros(answers.shape[:2])
    if answers.size:
        log_probs = answer_log_probs(model, params, inputs, answers, encoded=encoded)
    # Whole everywhere: every process reads them.
    return constrain(ids, "..", model.mesh), constrain(log_probs, "..", model.mesh)


def answer_tasks(
    backbone: Backbone,
    params: Params,
    bank: PromptBank,
    tasks: Sequence[TaskRows],
    data: DataConfig,
    batch_size: int,
) -> list[Outputs]:
    """Generates an answer for every row of every task, and ranks the label words of its task.

    A batch has rows of any tasks, and every row ranks as many answers as the task with most label
    words has.

    Args:
        backbone: Its model and its tokenizer are used, its params are not.
        params: `{"t5": ...}`.
        bank: The prompts of the tasks.
        tasks: Their rows.
        data: Buckets, and most tokens of any task's inputs and answers.
        batch_size: Rows at a time; rounded up so that devices share them evenly.

    Raises:
        Preempted: A signal came where signals are notices, see `distributed/preemption.py`.
    """
    model, tokenizer = backbone.model, backbone.tokenizer
    batch_size = spreadable_rows(model.mesh, batch_size)
    sizes = [len(task.split.inputs) for task in tasks]
    starts = np.cumsum([0, *sizes])
    of_row = np.repeat(np.arange(len(tasks)), sizes)  # which of `tasks` a row is of
    task_ids = bank.task_ids([task.prompt for task in tasks])
    answers = _stack_answers(tasks, tokenizer)
    predictions = [""] * len(of_row)
    log_probs = np.zeros((len(of_row), answers.shape[1]), np.float32)
    rows = dataclasses.replace(
        tasks[0].split,
        inputs=[row for task in tasks for row in task.split.inputs],
        targets=[row for task in tasks for row in task.split.targets],
    )
    for indices, batch in eval_batches(rows, data, batch_size):
        poll()
        of = np.pad(of_row[indices], (0, batch_size - len(indices)))  # padding is of any task
        arrays = {"inputs": batch["inputs"], "task_ids": task_ids[of], "answers": answers[of]}
        placed = place_batch(arrays, model.mesh)
        ids, of_answers = _answer(model, params, bank.arrays, **placed, length=data.targets_length)
        for row, index in zip(np.asarray(ids), indices, strict=False):
            written = row[: tasks[int(of_row[index])].targets_length]
            predictions[index] = tokenizer.decode(written.tolist())
        log_probs[indices] = of_answers[: len(indices)]
    return [
        Outputs(
            tuple(predictions[start : start + size]),
            log_probs[start : start + size, : len(task.label_words)] if task.label_words else None,
        )
        for task, start, size in zip(tasks, starts, sizes)
    ]


def _stack_answers(tasks: Sequence[TaskRows], tokenizer: Tokenizer) -> np.ndarray:
    """The label words of each task, int32 [tasks, W, U], padded with answers and tokens of 0."""
    encoded = [
        encode_answers(task.label_words or (), tokenizer, task.targets_length) for task in tasks
    ]
    answers = np.zeros((len(tasks), *np.max([rows.shape for rows in encoded], axis=0)), np.int32)
    for task, rows in enumerate(encoded):
        answers[task, : rows.shape[0], : rows.shape[1]] = rows
    return answers


def score(task: TaskRows, outputs: Outputs) -> Scores:
    """Scores of what a model made of the rows of a task."""
    predictions, log_probs = outputs
    examples, words = task.split.examples, task.label_words
    metrics, rank_score = compute(task.metrics, predictions, examples, words), None
    if words and log_probs is not None:
        ranked = [words[int(best)] for best in np.argmax(log_probs, axis=1)]
        rank_score = mean_score(compute(task.metrics, ranked, examples, words))
    return Scores(
        score=mean_score(metrics),
        rank_score=rank_score,
        invalid=invalid(task.metrics, predictions, words),
        rows=len(examples),
        predictions=predictions,
        metrics=metrics,
    )


def majority_score(task: Task) -> float:
    """The score on test, 0 to 100, of always answering the most frequent target of train."""
    answer = Counter(e.targets for e in task.splits["train"]).most_common(1)[0][0]
    test = task.splits["test"]
    return mean_score(compute(task.metrics, [answer] * len(test), test, task.label_words))
