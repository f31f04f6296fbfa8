"""Sampling of the next token: temperature, then top-k, then top-p, as transformers applies them.

The token that a row draws is a function of its logits and of (key, number of the row, position).
It does not depend on other rows, on padding rows or on the place in the batch.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from spt_jax.config.decode import DecodeConfig
from spt_jax.decoding.topk import top_k
from spt_jax.typing import Array, Float, Int, Key


def candidates(
    logits: Float[Array, "B V"], config: DecodeConfig
) -> tuple[Float[Array, "B C"], Int[Array, "B C"]]:
    """Return the tokens that may be drawn: their logits divided by the temperature, and their ids.

    C is top_k, or V without it. With top-k or top-p the likeliest token is first, and of equals
    the lowest id, as in greedy decoding. Tokens that top-p excludes have logit -inf.
    """
    logits = logits / config.temperature
    vocab = logits.shape[-1]
    if config.top_k is None and config.top_p == 1:
        return logits, jnp.broadcast_to(jnp.arange(vocab), logits.shape)
    logits, ids = top_k(logits, min(config.top_k or vocab, vocab))
    if config.top_p < 1:
        probs = jax.nn.softmax(logits, axis=-1)
        likelier = jnp.cumsum(probs, axis=-1) - probs  # total of the tokens before it
        logits = jnp.where(likelier < config.top_p, logits, -jnp.inf)
    return logits, ids


def make_sampler(
    config: DecodeConfig, key: Key, row_numbers: Int[Array, " B"]
) -> Callable[[Float[Array, "B V"], Int[Array, ""]], Int[Array, " B"]]:
    """Return a function for `loop.write` that draws from the logits of a position.

    Args:
        config: `temperature`, `top_k` and `top_p`.
        key: A `jax.random.key`, the same for every batch.
        row_numbers: Number of each row, which is folded into the key, so that a row with the same
            number draws the same tokens in any batch.
    """
    keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, row_numbers)

    def draw(key: Key, position: Int[Array, ""], logits: Float[Array, " C"]) -> Int[Array, ""]:
        return jax.random.categorical(jax.random.fold_in(key, position), logits)

    def choose(logits: Float[Array, "B V"], position: Int[Array, ""]) -> Int[Array, " B"]:
        logits, ids = candidates(logits, config)
        drawn = jax.vmap(draw, in_axes=(0, None, 0))(keys, position, logits)
        return jnp.take_along_axis(ids, drawn[:, None], axis=1)[:, 0]

    return choose
