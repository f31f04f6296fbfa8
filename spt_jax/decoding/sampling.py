"""Drawing the next token: temperature, then top-k, then top-p, as transformers applies them.

What a row draws is a function of its logits and of (key, the row's number, position) alone. Other
rows, padding rows and the place in the batch have no part in it.
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
    """The tokens that may be drawn: their logits over the temperature, and their ids.

    C is top_k, or V without it. Under top-k or top-p they come likeliest first, of equals the lower
    id first, so that the first is what greedy decoding takes. What top-p excludes has logit -inf.
    """
    logits = logits / config.temperature
    vocab = logits.shape[-1]
    if config.top_k is None and config.top_p == 1:
        return logits, jnp.broadcast_to(jnp.arange(vocab), logits.shape)
    logits, ids = top_k(logits, min(config.top_k or vocab, vocab))
    if config.top_p < 1:
        probs = jax.nn.softmax(logits, axis=-1)
        likelier = jnp.cumsum(probs, axis=-1) - probs  # the probability of those before; 0 at first
        logits = jnp.where(likelier < config.top_p, logits, -jnp.inf)
    return logits, ids


def make_sampler(
    config: DecodeConfig, key: Key, row_numbers: Int[Array, " B"]
) -> Callable[[Float[Array, "B V"], Int[Array, ""]], Int[Array, " B"]]:
    """What `decode.write` calls to draw from the logits of a position.

    Args:
        config: `temperature`, `top_k` and `top_p`.
        key: A `jax.random.key`, the same for every batch.
        row_numbers: What is folded into the key for each row: a row with the same number draws the
            same in any batch.
    """
    keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, row_numbers)

    def draw(key: Key, position: Int[Array, ""], logits: Float[Array, " C"]) -> Int[Array, ""]:
        return jax.random.categorical(jax.random.fold_in(key, position), logits)

    def choose(logits: Float[Array, "B V"], position: Int[Array, ""]) -> Int[Array, " B"]:
        logits, ids = candidates(logits, config)
        drawn = jax.vmap(draw, in_axes=(0, None, 0))(keys, position, logits)
        return jnp.take_along_axis(ids, drawn[:, None], axis=1)[:, 0]

    return choose
