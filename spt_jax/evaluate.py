"""Scores of a model, with or without a prompt, on the rows of a split.

`score` is exact match of greedy generation, 0 to 100: an output that is no label word is wrong
(Lester et al. 2021). `rank_score` takes the most likely label word instead, so that a model which
never writes a legal label is still told from one that knows nothing.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from spt_jax.backbone import Backbone, load_backbone
from spt_jax.config import DataConfig, TrainConfig, from_dict
from spt_jax.data.pipeline import TokenizedSplit, eval_batches, tokenize_split
from spt_jax.data.tasks import Example, load_task
from spt_jax.decode import answer_log_probs, greedy
from spt_jax.metrics import exact_match, invalid_share
from spt_jax.prompt_file import load_prompt
from spt_jax.runfolder import RunFolder
from spt_jax.tokenizer import Tokenizer
from spt_jax.typing import Params


@dataclass(frozen=True)
class Scores:
    """What an evaluation gives.

    Args:
        score: Exact match of what was generated, 0 to 100.
        rank_score: Exact match of the most likely label word; None for free text.
        invalid: Percentage of outputs that are no label word; None for free text.
        rows: How many rows were scored.
        predictions: What was generated, in the order of the rows.
    """

    score: float
    rank_score: float | None
    invalid: float | None
    rows: int
    predictions: tuple[str, ...]

    def to_dict(self) -> dict:
        """The numbers, without the predictions."""
        numbers = {"score": self.score, "rank_score": self.rank_score, "invalid": self.invalid}
        return {**numbers, "rows": self.rows}


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
    answers = np.zeros((len(rows), max(map(len, rows))), np.int32)
    for number, row in enumerate(rows):
        answers[number, : len(row)] = row
    return answers


# Jitted once for the process: evaluations of one model share their compilations.
_greedy = jax.jit(greedy, static_argnums=0, static_argnames="length")
_answer_log_probs = jax.jit(answer_log_probs, static_argnums=0)


def evaluate(
    backbone: Backbone,
    params: Params,
    split: TokenizedSplit,
    data: DataConfig,
    *,
    label_words: Sequence[str] | None,
    batch_size: int,
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
        max_rows: Use only the first rows.
    """
    if max_rows is not None:
        split = dataclasses.replace(
            split,
            examples=split.examples[:max_rows],
            inputs=split.inputs[:max_rows],
            targets=split.targets[:max_rows],
        )
    targets = [example.targets for example in split.examples]
    words = label_words or ()
    answers = encode_answers(words, backbone.tokenizer, data.targets_length) if words else None
    predictions: list[str] = [""] * len(targets)
    ranked: list[str] = [""] * len(targets)
    for indices, batch in eval_batches(split, data, batch_size):
        ids = _greedy(backbone.model, params, batch["inputs"], length=data.targets_length)
        if answers is not None:
            log_probs = _answer_log_probs(backbone.model, params, batch["inputs"], answers)
            best = np.argmax(np.asarray(log_probs), axis=1)
            for row, index in enumerate(indices):
                ranked[index] = words[best[row]]
        for row, index in zip(np.asarray(ids), indices, strict=False):  # rows behind are padding
            predictions[index] = backbone.tokenizer.decode(row.tolist())
    return Scores(
        score=exact_match(predictions, targets),
        rank_score=exact_match(ranked, targets) if words else None,
        invalid=invalid_share(predictions, words) if words else None,
        rows=len(targets),
        predictions=tuple(predictions),
    )


def load_run(run: Path) -> tuple[TrainConfig, Backbone, Params]:
    """A trained run: its config, its backbone, and the params of its best step.

    Raises:
        FileNotFoundError: The folder holds no run, or one that has not been evaluated yet.
        ValueError: The backbone is not the one that the prompt was trained on.
    """
    folder = RunFolder(run)
    config = from_dict(TrainConfig, folder.read_config())
    tuned = config.tune == "model"
    model = str(folder.model_folder) if tuned else config.model
    backbone = load_backbone(model, dtype=config.dtype)
    params = {"t5": backbone.params}
    if config.prompt is not None:
        prompt, metadata = load_prompt(folder.prompt_file)
        require_same_model(metadata, backbone, folder.prompt_file, tuned=tuned)
        params["prompt"] = jnp.asarray(prompt)
    return config, backbone, params


def require_same_model(
    metadata: dict[str, str], backbone: Backbone, file: Path, *, tuned: bool = False
) -> None:
    """Raises ValueError where a prompt file was trained for another backbone.

    Args:
        metadata: Of the prompt file.
        backbone: The one that is loaded.
        file: For the message.
        tuned: The backbone was trained together with the prompt, so only its width must fit.
    """
    trained_on = metadata.get("fingerprint")
    if not tuned and trained_on is not None and trained_on != backbone.fingerprint:
        raise ValueError(
            f"prompt {file} was trained on model '{metadata.get('model')}' with fingerprint "
            f"{trained_on[:12]} but '{backbone.name}' has {backbone.fingerprint[:12]}; "
            "load that model instead"
        )


def evaluate_run(run: Path, split: str) -> dict:
    """Scores a trained run at its best step on `train`, `dev` or `test`."""
    config, backbone, params = load_run(run)
    task = load_task(config.task)
    if split not in task.splits:
        raise ValueError(f"unknown split '{split}'; expected one of {', '.join(task.splits)}")
    rows = tokenize_split(task.splits[split], backbone.tokenizer, config.data)
    scores = evaluate(
        backbone,
        params,
        rows,
        config.data,
        label_words=task.label_words,
        batch_size=config.eval.batch_size,
    )
    return {"task": task.name, "split": split, **scores.to_dict()}


def predict_run(run: Path, texts: Sequence[str]) -> list[str]:
    """What a trained run writes for each text, in order."""
    config, backbone, params = load_run(run)
    if not texts:
        return []
    rows = tokenize_split([Example(text, "") for text in texts], backbone.tokenizer, config.data)
    batch_size = min(config.eval.batch_size, len(texts))
    scores = evaluate(backbone, params, rows, config.data, label_words=None, batch_size=batch_size)
    return list(scores.predictions)
