"""The soft prompt: a float32 array [P, D], and the ways to start it (Lester et al. 2021, 3.2).

    params = {"t5": frozen weights}                      P(targets | inputs)
    params = {"t5": frozen weights, "prompt": [P, D]}    P(targets | prompt, inputs)

A prompt holds P vectors of the width of the token embeddings, in no vocabulary. Starting it from
embeddings puts it where the model can read; the paper found class labels best, then sampled
vocabulary, then random values, with the gap closing as models grow.

    Lester et al. 2021, "The Power of Scale for Parameter-Efficient Prompt Tuning", EMNLP.
"""

import warnings
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from spt_jax.config.train import PromptConfig
from spt_jax.distributed.main_process import on_main
from spt_jax.prompts.file import load_prompt
from spt_jax.runs.workdir import open_run
from spt_jax.tokenizers.base import Tokenizer
from spt_jax.typing import Array, Float, Key

POPULATION = 5000
"""`sampled_vocab` draws from the first rows of the table, the most frequent tokens."""

Table = Float[Array, "V D"]
Prompt = Float[Array, "P D"]


def from_uniform(key: Key, shape: tuple[int, int], low: float, high: float) -> Prompt:
    """Uniform in [low, high): the paper says [-0.5, 0.5], its released code draws [0, 0.5)."""
    return jax.random.uniform(key, shape, jnp.float32, low, high)


def from_vocab(key: Key, table: Table, length: int) -> Prompt:
    """Embeddings of `length` different tokens out of the first 5,000.

    Warns and draws with replacement where the table is smaller than the prompt is long.
    """
    population = min(POPULATION, table.shape[0])
    if length > population:
        warnings.warn(
            f"prompt length {length} exceeds the {population} tokens to sample from; "
            "tokens are drawn with replacement",
            stacklevel=2,
        )
    rows = jax.random.choice(key, population, (length,), replace=length > population)
    return table[rows].astype(jnp.float32)


def from_labels(key: Key, table: Table, length: int, labels: Sequence[Sequence[int]]) -> Prompt:
    """Row i is the mean embedding of the tokens of label i; the rest is sampled vocabulary.

    Labels beyond the prompt's length are left out, with a warning.
    """
    prompt = from_vocab(key, table, length)
    if len(labels) > length:
        warnings.warn(
            f"prompt length {length} holds {length} of the {len(labels)} label words; "
            f"set prompt.length to {len(labels)} or more to start from all",
            stacklevel=2,
        )
    for row, tokens in enumerate(labels[:length]):
        mean = jnp.mean(table[np.asarray(tokens)].astype(jnp.float32), axis=0)
        prompt = prompt.at[row].set(mean)
    return prompt


def from_text(key: Key, table: Table, length: int, tokens: Sequence[int]) -> Prompt:
    """The embeddings of `tokens`, cut at `length`; the rest is sampled vocabulary."""
    prompt = from_vocab(key, table, length)
    ids = np.asarray(tokens[:length], np.int32)
    return prompt.at[: len(ids)].set(table[ids].astype(jnp.float32))


def from_file(path: str, length: int, d_model: int) -> Prompt:
    """A prompt that was trained before: `prompt.safetensors`, an `.npy` array, or a run's folder.

    Each may be in a bucket.

    Raises:
        FileNotFoundError: No such file.
        ValueError: It is not a prompt of this length and width.
    """

    def read() -> np.ndarray:
        with open_run(Path(path)) as file:
            return _read_file(file, length, d_model)

    return jnp.asarray(on_main(read), jnp.float32)


def _read_file(file: Path, length: int, d_model: int) -> np.ndarray:
    if file.is_dir():
        file = file / "prompt.safetensors"
    if not file.is_file():
        raise FileNotFoundError(
            f"prompt file {file} does not exist; set prompt.file to a prompt.safetensors, "
            "an .npy array or the folder of a finished run"
        )
    if file.suffix == ".npy":
        array = np.load(file, allow_pickle=False)
    else:
        array, _ = load_prompt(file)
    if array.ndim == 2 and array.shape[1] != d_model:
        raise ValueError(
            f"prompt {file} has d_model {array.shape[1]} but the model has {d_model}; "
            "load the model that the prompt was trained on"
        )
    if array.shape != (length, d_model):
        raise ValueError(
            f"prompt {file} has shape {array.shape}, expected ({length}, {d_model}); "
            "set prompt.length to its length"
        )
    return array


def init_prompt(
    config: PromptConfig,
    key: Key,
    table: Table,
    tokenizer: Tokenizer,
    label_words: Sequence[str] | None,
) -> Prompt:
    """The prompt before training.

    Args:
        config: Its length and init.
        key: Of what is drawn.
        table: The model's token embeddings.
        tokenizer: Of label words and text; no EOS is added.
        label_words: Of the task. A task of free text has none, and `class_labels` then samples.

    Raises:
        ValueError: The file does not hold a fitting prompt, or the text has no tokens.
    """
    shape = (config.length, table.shape[1])
    match config.init:
        case "uniform_paper":
            return from_uniform(key, shape, -0.5, 0.5)
        case "uniform_official":
            return from_uniform(key, shape, 0.0, 0.5)
        case "sampled_vocab":
            return from_vocab(key, table, config.length)
        case "class_labels":
            labels = tokenizer.encode_batch(list(label_words or ()))
            return from_labels(key, table, config.length, labels)
        case "text":
            tokens = tokenizer.encode(config.text or "")
            if not tokens:
                raise ValueError(f"prompt.text {config.text!r} has no tokens; give some words")
            return from_text(key, table, config.length, tokens)
        case "file":
            return from_file(config.file or "", *shape)
    raise ValueError(f"prompt.init is {config.init!r}, and there is no such way to start a prompt")
