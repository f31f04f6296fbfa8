"""Answer the rows of tasks, each with the prompt of its task or with none, and score the answers.

`score` is the mean of the task's metrics over greedily generated answers, 0 to 100; an answer that
is no label word is wrong (Lester et al. 2021). `rank_score` takes the most likely label word
instead. It tells a model that never writes a label word but knows the answer from one that does not
know it.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from spt_jax.config.train import DataConfig
from spt_jax.data.example import Task
from spt_jax.data.pipeline import TokenizedSplit, encode_targets
from spt_jax.evaluation.metrics import compute, invalid, mean_score, normalize
from spt_jax.models.backbone import Backbone
from spt_jax.prediction.predictor import answer_batches
from spt_jax.prompts.bank import PromptBank
from spt_jax.tokenizers.base import Tokenizer
from spt_jax.typing import Params


@dataclass(frozen=True)
class Scores:
    """The result of an evaluation.

    Args:
        score: Mean of the metrics of the generated texts, 0 to 100.
        rank_score: Mean of the metrics of the most likely label words; None for free text.
        invalid: Percentage of generated texts that are no label word, or no number if the metrics
            need numbers; None for free text.
        rows: Number of rows that were scored.
        predictions: Generated texts, in the order of the rows.
        metrics: Each metric of the generated texts, by name.
        log_probs: Log-probability of each label word, float32 [rows, W]; None for free text.
    """

    score: float
    rank_score: float | None
    invalid: float | None
    rows: int
    predictions: tuple[str, ...]
    metrics: Mapping[str, float]
    log_probs: np.ndarray | None = field(default=None, compare=False, repr=False)

    def to_dict(self) -> dict:
        """Return the numbers, without the predictions."""
        numbers = {"score": self.score, "rank_score": self.rank_score, "invalid": self.invalid}
        return {**numbers, "metrics": dict(self.metrics), "rows": self.rows}


def encode_answers(
    label_words: Sequence[str], tokenizer: Tokenizer, length: int, *, sentinel: bool = False
) -> np.ndarray:
    """Return label words as int32[W, U] with EOS, padded with 0.

    Args:
        label_words: The words.
        tokenizer: Of the model.
        length: Most tokens of a word, with its EOS and its sentinel.
        sentinel: Whether `<extra_id_0>` is in front of each word; see `data.sentinel_targets`.

    Raises:
        ValueError: A word has tokens unknown to the tokenizer or none at all, is longer than
            `length`, or two words cannot be told apart; or the tokenizer has no sentinel.
    """
    encoded = encode_targets(label_words, tokenizer, sentinel=sentinel)
    rows = [[*ids, tokenizer.eos_id] for ids in encoded]
    texts = [normalize(tokenizer.decode(row)) for row in rows]
    for word, row, text in zip(label_words, rows, texts, strict=True):
        if tokenizer.unk_id in row:
            raise ValueError(
                f"label word '{word}' has characters that the tokenizer does not know; "
                "map it to another word by task.label_words"
            )
        if not text:
            raise ValueError(
                f"label word {word!r} cannot be written: the tokenizer leaves nothing of it; map "
                "it to another word by task.label_words"
            )
        if len(row) > length:
            marks = "sentinel and end marker" if sentinel else "end marker"
            raise ValueError(
                f"label word '{word}' has {len(row)} tokens with its {marks} but "
                f"data.targets_length is {length}; set data.targets_length to {len(row)} or more"
            )
        first = label_words[texts.index(text)]
        if first != word:
            raise ValueError(
                f"label words '{first}' and '{word}' are the same tokens or the same text, "
                f"'{text}', to the tokenizer; map one to another word by task.label_words"
            )
    answers = np.zeros((len(rows), max(map(len, rows), default=0)), np.int32)
    for number, row in enumerate(rows):
        answers[number, : len(row)] = row
    return answers


def label_of_text(label_words: Sequence[str], tokenizer: Tokenizer) -> dict[str, str]:
    """Return {what comes back from the tokens of a label word: the word}.

    The tokenizer may write a word otherwise: '½' as '1/2', two characters as one letter.
    """
    return {normalize(tokenizer.decode(tokenizer.encode(word))): word for word in label_words}


@dataclass(frozen=True)
class TaskRows:
    """Rows that are answered with one prompt.

    Args:
        split: Rows as token ids.
        label_words: Answers that count; None for free text.
        data: Most tokens of an answer, and whether its label words begin with a sentinel.
        prompt: Name of the prompt in the bank, or None.
        metrics: Names of metrics, from `spt_jax.evaluation.metrics.METRICS`.
    """

    split: TokenizedSplit
    label_words: Sequence[str] | None
    data: DataConfig
    prompt: str | None
    metrics: Sequence[str] = ("accuracy",)


class Outputs(NamedTuple):
    """The answers of a model to the rows of a task.

    Args:
        predictions: Generated text of each row.
        log_probs: Log-probability of each label word, float32 [rows, W]; None for free text.
    """

    predictions: tuple[str, ...]
    log_probs: np.ndarray | None


def answer_tasks(
    backbone: Backbone,
    params: Params,
    bank: PromptBank,
    tasks: Sequence[TaskRows],
    data: DataConfig,
    batch_size: int,
) -> list[Outputs]:
    """Generate an answer for every row of every task, and score the label words of its task.

    Rows of all tasks share their batches. Every row scores as many answers as the task with the
    most label words has; the padding among them is left out of the result.

    Args:
        backbone: Model and tokenizer; its params are not used.
        params: `{"t5": ...}`.
        bank: Prompts of the tasks.
        tasks: Rows of the tasks.
        data: Buckets, and most tokens of any task's inputs and answers.
        batch_size: Rows of a batch, rounded up so that the devices share them evenly.

    Raises:
        Preempted: A signal came where signals are notices; see `distributed/preemption.py`.
    """
    tokenizer = backbone.tokenizer
    sizes = [len(task.split.inputs) for task in tasks]
    starts = np.cumsum([0, *sizes])
    of_row = np.repeat(np.arange(len(tasks)), sizes)  # which of `tasks` a row is of
    answers = _stack_answers(tasks, tokenizer)
    labels = [label_of_text(task.label_words or (), tokenizer) for task in tasks]
    predictions = [""] * len(of_row)
    log_probs = np.zeros((len(of_row), answers.shape[1]), np.float32)
    for indices, ids, of_answers in answer_batches(
        backbone.model,
        params,
        bank.arrays,
        [row for task in tasks for row in task.split.inputs],
        {
            "task_ids": bank.task_ids([task.prompt for task in tasks])[of_row],
            "answers": answers[of_row],
        },
        data,
        batch_size,
    ):
        for row, index in zip(ids[:, 0], indices, strict=True):
            task = int(of_row[index])
            text = tokenizer.decode(row[: tasks[task].data.targets_length].tolist())
            predictions[index] = labels[task].get(normalize(text), text)
        log_probs[indices] = of_answers
    return [
        Outputs(
            tuple(predictions[start : start + size]),
            log_probs[start : start + size, : len(task.label_words)] if task.label_words else None,
        )
        for task, start, size in zip(tasks, starts, sizes)
    ]


def _stack_answers(tasks: Sequence[TaskRows], tokenizer: Tokenizer) -> np.ndarray:
    """Return the label words of each task, int32 [tasks, W, U], padded with 0 on both axes."""
    encoded = [
        encode_answers(
            task.label_words or (),
            tokenizer,
            task.data.targets_length,
            sentinel=task.data.sentinel_targets,
        )
        for task in tasks
    ]
    answers = np.zeros((len(tasks), *np.max([rows.shape for rows in encoded], axis=0)), np.int32)
    for task, rows in enumerate(encoded):
        answers[task, : rows.shape[0], : rows.shape[1]] = rows
    return answers


def score(task: TaskRows, outputs: Outputs) -> Scores:
    """Score the answers to the rows of a task."""
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
        log_probs=log_probs,
    )


def majority_answer(task: Task) -> str:
    """Return the most frequent target of train; of equally frequent ones, the first."""
    return Counter(example.targets for example in task.splits["train"]).most_common(1)[0][0]


def majority_score(task: Task, split: str = "test") -> float:
    """Return the score on a split, 0 to 100, of always giving the `majority_answer`."""
    rows = task.splits[split]
    return mean_score(
        compute(task.metrics, [majority_answer(task)] * len(rows), rows, task.label_words)
    )
