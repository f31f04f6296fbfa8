"""The soft prompt, a float32 array [P, D], and the ways to start it (Lester et al. 2021, 3.2).

    params = {"t5": frozen weights}                      P(targets | inputs)
    params = {"t5": frozen weights, "prompt": [P, D]}    P(targets | prompt, inputs)

A prompt holds P vectors as wide as token embeddings; they need not be embeddings of any token.
Starting from embeddings gives the model vectors that it can read. The paper found class labels
best, then sampled vocabulary, then random values; the difference shrinks as models grow.

    Lester et al. 2021, "The Power of Scale for Parameter-Efficient Prompt Tuning", EMNLP.
"""

import warnings
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from spt_jax.config.train import PromptConfig
from spt_jax.distributed.main_process import on_main
from spt_jax.errors import require
from spt_jax.models.backbone import Backbone
from spt_jax.prompts.read import read_prompt
from spt_jax.tokenizers.base import Tokenizer
from spt_jax.typing import Array, Float, Key

POPULATION = 5000
"""`from_vocab` draws from this many first rows of the table, the most frequent tokens."""

Table = Float[Array, "V D"]
Prompt = Float[Array, "P D"]


def from_uniform(key: Key, shape: tuple[int, int], low: float, high: float) -> Prompt:
    """Draw uniformly in [low, high): the paper says [-0.5, 0.5], its code draws [0, 0.5)."""
    return jax.random.uniform(key, shape, jnp.float32, low, high)


def from_vocab(key: Key, table: Table, length: int) -> Prompt:
    """Draw the embeddings of `length` different tokens out of the first 5,000.

    Warns, and draws with replacement, if there are fewer tokens than that.
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
    """Start row i from the mean embedding of the tokens of label i, and the rest from vocabulary.

    Labels beyond `length` are left out with a warning.
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
    """Start from the embeddings of the first `length` tokens, and the rest from vocabulary."""
    prompt = from_vocab(key, table, length)
    ids = np.asarray(tokens[:length], np.int32)
    return prompt.at[: len(ids)].set(table[ids].astype(jnp.float32))


def tokens_of(text: str, field: str, tokenizer: Tokenizer) -> list[int]:
    """Return the tokens of a text that stands for a prompt, without EOS.

    Args:
        text: Given by the user.
        field: Of the config that has it.
        tokenizer: Of the model.

    Raises:
        ValueError: The text has no tokens, or characters unknown to the tokenizer.
    """
    tokens = tokenizer.encode(text)
    require(bool(tokens), f"{field} {text!r} has no tokens; give some words")
    require(
        tokenizer.unk_id not in tokens,
        f"{field} {text!r} has characters that the tokenizer does not know; give other words",
    )
    return tokens


def embed_text(text: str, backbone: Backbone) -> Prompt:
    """Return the embeddings of the tokens of `eval.hard_prompt`, which is not trained.

    Raises:
        ValueError: As `tokens_of`.
    """
    tokens = tokens_of(text, "eval.hard_prompt", backbone.tokenizer)
    table = backbone.embeddings
    return table[np.asarray(tokens)].astype(jnp.float32)


def from_file(path: str, length: int, backbone: Backbone) -> Prompt:
    """Start from a trained prompt, in any format and place that `read_prompt` takes.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no prompt, or one of another model or length.
    """
    stored = on_main(lambda: read_prompt(path))
    stored.require_backbone(backbone)
    if len(stored.prompt) != length:
        raise ValueError(
            f"prompt {stored.origin} has {len(stored.prompt)} vectors but prompt.length is "
            f"{length}; set prompt.length to {len(stored.prompt)}"
        )
    return jnp.asarray(stored.prompt)


def init_prompt(
    config: PromptConfig, key: Key, backbone: Backbone, label_words: Sequence[str] | None
) -> Prompt:
    """Return the prompt before training, float32 [P, D].

    A new name also goes into `PromptConfig` in `config/train.py`.

    Args:
        config: Length and init of the prompt.
        key: Key of the random draws.
        backbone: Frozen model. Its tokenizer encodes label words and text, without an EOS.
        label_words: Label words of the task, or None; `class_labels` then samples vocabulary.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file does not hold a fitting prompt, or as `tokens_of`.
    """
    table, tokenizer = backbone.embeddings, backbone.tokenizer
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
            tokens = tokens_of(config.text or "", "prompt.text", tokenizer)
            return from_text(key, table, config.length, tokens)
        case "file":
            return from_file(config.file or "", config.length, backbone)
    raise ValueError(f"prompt.init is {config.init!r}, and there is no such way to start a prompt")
