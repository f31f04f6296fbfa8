"""Answers to rows of text on one frozen model, each row with its own prompt or with none.

Rows of different prompts share a batch; a row's answer is the one that it would get alone.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from spt_jax.config.decode import DecodeConfig
from spt_jax.config.train import DataConfig
from spt_jax.data.pipeline import TokenizedSplit, eval_batches
from spt_jax.decoding.generate import generate
from spt_jax.distributed.preemption import poll
from spt_jax.models.backbone import Backbone
from spt_jax.prompts.bank import BankArrays, PromptBank
from spt_jax.sharding import constrain, place_batch, spreadable_rows
from spt_jax.t5 import T5
from spt_jax.typing import Array, Float, Int, Key, Params


class Answers(NamedTuple):
    """What is written for a row, best first.

    Args:
        texts: As many as `DecodeConfig.num_results`, or fewer where a search found fewer.
        scores: See `generate`.
    """

    texts: tuple[str, ...]
    scores: tuple[float, ...]


@functools.partial(jax.jit, static_argnames=("model", "config", "length"))
def generate_mixed(
    model: T5,
    params: Params,
    bank: BankArrays,
    task_ids: Int[Array, " B"],
    inputs: Int[Array, "B T"],
    config: DecodeConfig,
    *,
    length: int,
    key: Key | None = None,
    row_numbers: Int[Array, " B"] | None = None,
) -> tuple[Int[Array, "B R U"], Float[Array, "B R"]]:
    """`generate` with the prompt of each row's task, jitted once for the process."""
    params, mask = bank.prompted(params, task_ids)
    ids, scores = generate(
        model, params, inputs, config,
        length=length, key=key, row_numbers=row_numbers, prompt_mask=mask,
    )  # fmt: skip
    # Whole everywhere: every process reads them.
    return constrain(ids, "...", model.mesh), constrain(scores, "..", model.mesh)


class Predictor:
    """Answers rows of text in batches of similar length: a compilation for each length bucket.

    Args:
        backbone: The frozen model.
        bank: Its prompts. It may be replaced between calls, at no cost if its shape stays.
        inputs_length: Most tokens of a text, with the end marker; the prompt comes on top.
        targets_length: Most tokens of an answer, with the end marker.
        batch_size: Rows at a time; rounded up so that devices share them evenly.
        decode: How answers are written.
        seed: For sampling. What a row draws depends on it, on the row's number and on its text.
    """

    def __init__(
        self,
        backbone: Backbone,
        bank: PromptBank,
        *,
        inputs_length: int,
        targets_length: int,
        batch_size: int,
        decode: DecodeConfig = DecodeConfig(),  # noqa: B008  it is frozen
        seed: int = 0,
    ):
        self.backbone = backbone
        self.bank = bank
        self.decode = decode
        self.seed = seed
        self._data = DataConfig(
            inputs_length=inputs_length,
            targets_length=targets_length,
            batch_size=spreadable_rows(backbone.model.mesh, batch_size),
        )

    def predict(
        self, rows: Sequence[tuple[str | None, str]], row_numbers: Sequence[int] | None = None
    ) -> list[Answers]:
        """The answers to each row, in order.

        Args:
            rows: The name of a prompt, or None, and a text.
            row_numbers: What rows are called in errors and, for sampling, what they draw by; their
                place from 0 by default.

        Raises:
            ValueError: The bank has no prompt of a row's name, or a text is too long.
            Preempted: A signal came where signals are notices, see `distributed/preemption.py`.
        """
        numbers = np.arange(len(rows)) if row_numbers is None else np.asarray(row_numbers)
        tokenizer = self.backbone.tokenizer
        encoded = tokenizer.encode_batch([text for _, text in rows])
        for (name, _), ids, number in zip(rows, encoded, numbers, strict=True):
            if problem := self._problem(name, ids):
                raise ValueError(f"row {number}: {problem}")
        task_ids = self.bank.task_ids([name for name, _ in rows])
        inputs = [np.array([*ids, tokenizer.eos_id], np.int32) for ids in encoded]
        targets = [np.zeros(0, np.int32)] * len(rows)
        split = TokenizedSplit((), inputs, targets, 0.0, 0.0)
        answers: list[Answers] = [Answers((), ())] * len(rows)
        for indices, batch in eval_batches(split, self._data, self._data.batch_size):
            poll()
            arrays = {
                "task_ids": self._pad(task_ids[indices]),
                "inputs": batch["inputs"],
                "row_numbers": self._pad(numbers[indices].astype(np.int32)),
            }
            placed = place_batch(arrays, self.backbone.model.mesh)
            ids, scores = generate_mixed(
                self.backbone.model,
                {"t5": self.backbone.params},
                self.bank.arrays,
                placed["task_ids"],
                placed["inputs"],
                self.decode,
                length=self._data.targets_length,
                key=jax.random.key(self.seed) if self.decode.sample else None,
                row_numbers=placed["row_numbers"],
            )
            for index, row_ids, row_scores in zip(indices, np.asarray(ids), np.asarray(scores)):
                answers[index] = self._answers(row_ids, row_scores)
        return answers

    def problems(self, rows: Sequence[tuple[str | None, str]]) -> list[str | None]:
        """Why `predict` refuses a row, for each: an unknown prompt, a long text; None if not."""
        encoded = self.backbone.tokenizer.encode_batch([text for _, text in rows])
        return [self._problem(name, ids) for (name, _), ids in zip(rows, encoded, strict=True)]

    def _problem(self, name: str | None, ids: Sequence[int]) -> str | None:
        if problem := self.bank.problem(name):
            return problem
        tokens, longest = len(ids) + 1, self._data.inputs_length
        if tokens > longest:
            return (
                f"the text has {tokens} tokens with its end marker but inputs_length is {longest}; "
                f"set --inputs_length to {tokens} or more"
            )
        return None

    def _pad(self, values: np.ndarray) -> np.ndarray:
        """With zeros behind, for the rows of padding that fill a batch."""
        return np.pad(values, (0, self._data.batch_size - len(values)))

    def _answers(self, ids: np.ndarray, scores: np.ndarray) -> Answers:
        found = ~np.isneginf(scores)
        texts = tuple(self.backbone.tokenizer.decode(row.tolist()) for row in ids[found])
        return Answers(texts, tuple(map(float, scores[found])))
