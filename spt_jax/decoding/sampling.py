"""Sampling of the next token: temperature, then top-k, then top-p, as transformers applies them.

The token that a row draws is a function of its logits and of (key, number of the row, position).
It does not depend on other rows, on padding rows or on the place in the batch.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from spt_jax.config.decode import DecodeConfig
from spt_jax.decoding.loop import likeliest
from spt_jax.decoding.topk import top_k
from spt_jax.typing import Array, Float, Int, Key, UInt


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
        logits = _leave_likeliest(logits, config.top_p)
    return logits, ids


def _leave_likeliest(
    logits: Float[Array, "B C"], top_p: float | Float[Array, "B 1"]
) -> Float[Array, "B C"]:
    """Return logits, largest first, with -inf in place of those that top-p excludes."""
    probs = jax.nn.softmax(logits, axis=-1)
    likelier = jnp.cumsum(probs, axis=-1) - probs  # total of the tokens before it
    return jnp.where(likelier < top_p, logits, -jnp.inf)


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

    def choose(logits: Float[Array, "B V"], position: Int[Array, ""]) -> Int[Array, " B"]:
        return _draw(keys, position, *candidates(logits, config))

    return choose


def make_row_sampler(
    temperatures: Float[Array, " B"],
    top_ps: Float[Array, " B"],
    seeds: UInt[Array, " B"],
    row_numbers: Int[Array, " B"],
) -> Callable[[Float[Array, "B V"], Int[Array, ""]], Int[Array, " B"]]:
    """Return a function for `loop.write` with settings of its own for each row.

    A row draws the tokens that `make_sampler` gives it with these settings and
    `jax.random.key(seed)`. The settings are arguments of the compiled program, so rows of any
    settings share a batch and no setting compiles anything. Conditionals of the program leave out
    the drawing where no row draws, and the sorting of the logits where no row has a top-p.

    Args:
        temperatures: Divisors of the logits; 0 takes the likeliest token, as in greedy decoding.
        top_ps: Top-p of each row; 1 excludes no token.
        seeds: Seed of each row.
        row_numbers: Number of each row; see `make_sampler`.
    """
    fold = jax.vmap(lambda seed, number: jax.random.fold_in(jax.random.key(seed), number))
    keys, draws = fold(seeds, row_numbers), temperatures > 0
    cuts = draws & (top_ps < 1)

    def choose(logits: Float[Array, "B V"], position: Int[Array, ""]) -> Int[Array, " B"]:
        def draw_cut(divided):
            ordered, ids = top_k(divided, divided.shape[-1])
            return _draw(keys, position, _leave_likeliest(ordered, top_ps[:, None]), ids)

        def draw(logits):
            divided = logits / jnp.where(draws, temperatures, 1)[:, None]
            every = jnp.broadcast_to(jnp.arange(logits.shape[-1]), logits.shape)
            drawn = _draw(keys, position, divided, every)
            cut = jax.lax.cond(jnp.any(cuts), draw_cut, lambda _: drawn, divided)
            return jnp.where(cuts, cut, drawn)

        likely = likeliest(logits, position)
        drawn = jax.lax.cond(jnp.any(draws), draw, lambda _: likely, logits)
        return jnp.where(draws, drawn, likely)

    return choose


def _draw(
    keys: Key, position: Int[Array, ""], logits: Float[Array, "B C"], ids: Int[Array, "B C"]
) -> Int[Array, " B"]:
    """Draw one of the `ids` of each row by its logits, its key and the position."""

    def draw(key: Key, logits: Float[Array, " C"]) -> Int[Array, ""]:
        return jax.random.categorical(jax.random.fold_in(key, position), logits)

    drawn = jax.vmap(draw)(keys, logits)
    return jnp.take_along_axis(ids, drawn[:, None], axis=1)[:, 0]
