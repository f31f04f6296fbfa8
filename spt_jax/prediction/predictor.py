"""Answers to rows on one frozen model, each row with the prompt of its task or with none.

Rows of different prompts share a batch, and what a row gets does not depend on the other rows.
`Predictor` answers texts. Evaluation answers tokenized rows by `answer_batches`, with scores of the
label words. The server runs `write_batch` and `score_batch`, whose rows have settings of their own.
There is one compilation for each length bucket.
"""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from spt_jax.config.decode import DecodeConfig
from spt_jax.config.train import DataConfig
from spt_jax.data.example import Example
from spt_jax.data.pipeline import TokenizedSplit, encode_inputs, eval_batches
from spt_jax.decoding.generate import generate
from spt_jax.decoding.loop import answer_log_probs, write
from spt_jax.decoding.sampling import make_row_sampler
from spt_jax.distributed.preemption import poll
from spt_jax.errors import require
from spt_jax.forward import encode
from spt_jax.models.backbone import Backbone
from spt_jax.prompts.bank import BankArrays, PromptBank
from spt_jax.sharding import constrain, place_batch, spreadable_rows
from spt_jax.t5 import T5
from spt_jax.typing import Array, Float, Int, Key, Params, UInt


class Answers(NamedTuple):
    """The answers to a row, best first.

    Attributes:
        texts: As many as `DecodeConfig.num_results`, or fewer if a search found fewer.
        scores: Score of each text; see `generate`.
    """

    texts: tuple[str, ...]
    scores: tuple[float, ...]


@functools.partial(jax.jit, static_argnames=("model", "config", "length"))
def answer_batch(
    model: T5,
    params: Params,
    bank: BankArrays,
    task_ids: Int[Array, " B"],
    inputs: Int[Array, "B T"],
    config: DecodeConfig = DecodeConfig(),  # noqa: B008  it is frozen
    *,
    length: int,
    answers: Int[Array, "B W U"] | None = None,
    key: Key | None = None,
    row_numbers: Int[Array, " B"] | None = None,
) -> tuple[Int[Array, "B R U"], Float[Array, "B R"] | Float[Array, "B W"]]:
    """Generate the answers of a batch and score them, or score given answers; encode once.

    Args:
        model: The T5.
        params: `{"t5": ...}`.
        bank: Prompts of the tasks.
        task_ids: Task of each row; 0 is no prompt.
        inputs: Token ids, 0 where padded.
        config: How answers are generated.
        length: Most tokens to generate, U, EOS included.
        answers: Given answers of each row, such as label words: token ids with EOS, 0 where padded.
        key: Key of the draws, for sampling.
        row_numbers: See `generate`.

    Returns:
        Generated ids, and the scores of `generate`, or where `answers` are given, their
        log-probabilities. Every process holds both whole.
    """
    params, mask = bank.prompted(params, task_ids)
    encoded = encode(model, params, inputs, prompt_mask=mask)
    ids, scores = generate(
        model, params, inputs, config,
        length=length, key=key, row_numbers=row_numbers, encoded=encoded,
    )  # fmt: skip
    if answers is not None:
        scores = jnp.zeros(answers.shape[:2])
        if answers.size:
            scores = answer_log_probs(model, params, inputs, answers, encoded=encoded)
    return constrain(ids, "...", model.mesh), constrain(scores, "..", model.mesh)


@functools.partial(jax.jit, static_argnames=("model", "length"))
def write_batch(
    model: T5,
    params: Params,
    bank: BankArrays,
    task_ids: Int[Array, " B"],
    inputs: Int[Array, "B T"],
    temperatures: Float[Array, " B"],
    top_ps: Float[Array, " B"],
    seeds: UInt[Array, " B"],
    row_numbers: Int[Array, " B"],
    *,
    length: int,
) -> tuple[Int[Array, "B U"], Float[Array, "B U"]]:
    """Write an answer to each row by settings of its own; see `make_row_sampler`.

    The first five arguments and `length` are those of `answer_batch`.

    Returns:
        Ids, 0 after EOS, and the log-probability of each. Every process holds both whole.
    """
    params, mask = bank.prompted(params, task_ids)
    choose = make_row_sampler(temperatures, top_ps, seeds, row_numbers)
    written = write(model, params, inputs, choose, length=length, prompt_mask=mask)
    return constrain(written.ids, "..", model.mesh), constrain(written.of_tokens, "..", model.mesh)


@functools.partial(jax.jit, static_argnames=("model",))
def score_batch(
    model: T5,
    params: Params,
    bank: BankArrays,
    task_ids: Int[Array, " B"],
    inputs: Int[Array, "B T"],
    answers: Int[Array, "B W U"],
) -> tuple[Float[Array, "B W"]]:
    """Return the log-probability of each given answer, whole in every process.

    The arguments are those of `answer_batch`; nothing is generated.
    """
    params, mask = bank.prompted(params, task_ids)
    scores = answer_log_probs(model, params, inputs, answers, prompt_mask=mask)
    return (constrain(scores, "..", model.mesh),)


def run_batches(
    program: Callable[..., Sequence[Array]],
    model: T5,
    params: Params,
    bank: BankArrays,
    inputs: Sequence[np.ndarray],
    of_rows: Mapping[str, np.ndarray],
    data: DataConfig,
    batch_size: int,
    **options: Any,
) -> Iterator[tuple[np.ndarray, ...]]:
    """Run a program on rows, in batches of rows of similar length.

    Args:
        program: `answer_batch`, or a function of the same first five arguments.
        model: The T5.
        params: `{"t5": ...}`.
        bank: Prompts of the tasks.
        inputs: Token ids of each row, its end marker last.
        of_rows: Arguments of the program that have an entry for each row, such as `task_ids`.
        data: Buckets, and most tokens of inputs.
        batch_size: Rows of a batch, rounded up so that the devices share them evenly.
        options: Further arguments of the program.

    Yields:
        Indices int32[n] of the rows of a batch, and what the program returns for these rows.

    Raises:
        Preempted: A signal came where signals are notices; see `distributed/preemption.py`.
    """
    size = spreadable_rows(model.mesh, batch_size)
    split = TokenizedSplit((), list(inputs), [np.zeros(0, np.int32)] * len(inputs), 0.0, 0.0)
    for indices, batch in eval_batches(split, data, size):
        poll()
        rows = np.resize(indices, size)  # any rows in the places of padding, which has no inputs
        arrays = {name: values[rows] for name, values in of_rows.items()}
        placed = place_batch({"inputs": batch["inputs"], **arrays}, model.mesh)
        found = program(model, params, bank, **placed, **options)
        yield indices, *(np.asarray(values)[: len(indices)] for values in found)


def answer_batches(
    model: T5,
    params: Params,
    bank: BankArrays,
    inputs: Sequence[np.ndarray],
    of_rows: Mapping[str, np.ndarray],
    data: DataConfig,
    batch_size: int,
    **options: Any,
) -> Iterator[tuple[np.ndarray, ...]]:
    """Run `answer_batch` on rows, with answers of `data.targets_length`; see `run_batches`.

    Yields:
        Indices int32[n] of the rows of a batch, and their ids and scores.
    """
    length = data.targets_length
    yield from run_batches(
        answer_batch, model, params, bank, inputs, of_rows, data, batch_size,
        length=length, **options,
    )  # fmt: skip


def require_seed(seed: int) -> None:
    """Raise ValueError unless a seed has 32 bits; jax would leave out the others."""
    require(0 <= seed < 2**32, f"seed is {seed}, expected 0 or more, and less than 2**32")


def length_problem(tokens: int, longest: int) -> str | None:
    """Return what is wrong with a text of so many tokens, its end marker counted; None if nothing.

    Args:
        tokens: Number of tokens of the text.
        longest: Most tokens of a text.
    """
    if tokens <= longest:
        return None
    return (
        f"the text has {tokens} tokens with its end marker but inputs_length is {longest}; "
        f"set --inputs_length to {tokens} or more"
    )


class Predictor:
    """Answers rows of text with the prompts of a bank.

    Args:
        backbone: The frozen model.
        bank: Its prompts. Replacing the bank between calls compiles nothing if its shape stays.
        inputs_length: Most tokens of a text, with the end marker; the prompt comes on top.
        targets_length: Most tokens of an answer, with the end marker.
        batch_size: Rows of a batch, rounded up so that the devices share them evenly.
        decode: How answers are generated.
        seed: Seed for sampling. What a row draws depends on the seed, its number and its text.

    Raises:
        ValueError: The seed is not from 0 to 2**32 - 1.
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
        require_seed(seed)
        self.backbone = backbone
        self.bank = bank
        self.decode = decode
        self.seed = seed
        self._data = DataConfig(
            inputs_length=inputs_length, targets_length=targets_length, batch_size=batch_size
        )

    def predict(
        self,
        rows: Sequence[tuple[str | None, str | Example]],
        row_numbers: Sequence[int] | None = None,
    ) -> list[Answers]:
        """Answer rows, in order.

        Args:
            rows: Name of a prompt, or None, and a text, or an example with the model's sentinels.
            row_numbers: Numbers of the rows in errors and, for sampling, in what a row draws; their
                places from 0 by default.

        Raises:
            ValueError: The bank has no prompt of a row's name, or a text is too long.
            Preempted: A signal came where signals are notices; see `distributed/preemption.py`.
        """
        numbers = np.arange(len(rows)) if row_numbers is None else np.asarray(row_numbers)
        tokenizer = self.backbone.tokenizer
        encoded = self._encode(rows)
        for (name, _), ids, number in zip(rows, encoded, numbers, strict=True):
            if problem := self._problem(name, ids):
                raise ValueError(f"row {number}: {problem}")
        answers: list[Answers] = [Answers((), ())] * len(rows)
        for indices, ids, scores in answer_batches(
            self.backbone.model,
            {"t5": self.backbone.params},
            self.bank.arrays,
            [np.array([*ids, tokenizer.eos_id], np.int32) for ids in encoded],
            {
                "task_ids": self.bank.task_ids([name for name, _ in rows]),
                "row_numbers": numbers.astype(np.int32),
            },
            self._data,
            self._data.batch_size,
            config=self.decode,
            key=jax.random.key(self.seed) if self.decode.sample else None,
        ):
            for index, row_ids, row_scores in zip(indices, ids, scores, strict=True):
                found = ~np.isneginf(row_scores)
                texts = tuple(tokenizer.decode(result.tolist()) for result in row_ids[found])
                answers[index] = Answers(texts, tuple(map(float, row_scores[found])))
        return answers

    def problems(self, rows: Sequence[tuple[str | None, str | Example]]) -> list[str | None]:
        """Return for each row why `predict` would refuse it, or None where it would not."""
        encoded = self._encode(rows)
        return [self._problem(name, ids) for (name, _), ids in zip(rows, encoded, strict=True)]

    def _encode(self, rows: Sequence[tuple[str | None, str | Example]]) -> list[list[int]]:
        examples = [Example(text, "") if isinstance(text, str) else text for _, text in rows]
        return encode_inputs(examples, self.backbone.tokenizer)

    def _problem(self, name: str | None, ids: Sequence[int]) -> str | None:
        if problem := self.bank.problem(name):
            return problem
        return length_problem(len(ids) + 1, self._data.inputs_length)
