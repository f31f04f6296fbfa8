"""Softmax attention, between the products with kernels.

    scores  = queries keys + bias, where the mask is True     [B, N, T, S], float32 or wider
    weights = softmax(scores)
    result  = weights values                                  [B, T, N, H]

Scores and weights are the largest arrays of a T5. On TPU memory is what time is lost on, and XLA
fuses what follows a product into it: there scores are never written but computed three times, and
nothing of their size outlives the pass that it is made in. Elsewhere the weights are kept for the
backward pass, as autodiff does.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from spt_jax.t5.layers import wide
from spt_jax.typing import Array, Bool, Float


def attend(
    queries: Float[Array, "B T N H"],
    keys: Float[Array, "..."],
    values: Float[Array, "..."],
    mask: Bool[Array, "b 1 t S"],
    bias: Float[Array, "1 N t S"] | None,
    keep: Float[Array, "B N 1 S"] | None,
    *,
    layout: str,
    keep_weights: bool,
) -> Float[Array, "B T N H"]:
    """The values that each query attends to, weighted.

    Args:
        queries: They are not scaled.
        keys: With axes in the order of `layout`.
        values: Likewise.
        mask: What each query sees; it broadcasts over batch, heads and queries.
        bias: Added to the scores.
        keep: Multiplied with the weights: 0 where dropout drops a key for all queries of a head.
        layout: The axes B, S, N and H in any order, or B, S and H where all heads share keys.
        keep_weights: For the backward pass.

    Raises:
        ValueError: Heads that share keys drop different ones, and weights are not kept.
    """
    if keep is not None and "N" in layout:  # values are smaller than weights
        values, keep = values * jnp.einsum(f"BNHS->{layout}", keep), None
    if not keep_weights:
        if keep is not None:
            raise ValueError(f"attention of layout {layout} drops weights, so it must keep them")
        return _attend(layout, queries, keys, values, mask, bias)
    weights = jax.nn.softmax(_scores(layout, queries, keys, mask, bias), axis=-1)
    weights = weights.astype(values.dtype)
    if keep is not None:
        weights = weights * keep
    return jnp.einsum(f"BNTS,{layout}->BTNH", weights, values)


def _scores(layout: str, queries: Any, keys: Any, mask: Any, bias: Any) -> Any:
    scores = jnp.einsum(
        f"BTNH,{layout}->BNTS", queries, keys, preferred_element_type=wide(queries.dtype)
    )
    if bias is not None:
        scores = scores + bias
    # Not -inf: a row of padding alone must give finite weights, which nothing reads.
    return jnp.where(mask, scores, jnp.asarray(-1e9, scores.dtype))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(layout, queries, keys, values, mask, bias):
    return _forward(layout, queries, keys, values, mask, bias)[0]


def _forward(layout, queries, keys, values, mask, bias):
    highest = jnp.max(_scores(layout, queries, keys, mask, bias), axis=-1, keepdims=True)
    # Computed again, so that scores are never written: the products fuse with the maximum here and
    # with exp and the sum below. Behind a barrier, or the compiler would find the first ones.
    queries_, keys_, highest_ = jax.lax.optimization_barrier((queries, keys, highest))
    weights = jnp.exp(_scores(layout, queries_, keys_, mask, bias) - highest_)
    sums = jnp.sum(weights, axis=-1, keepdims=True)
    # The result is divided by the sums, since it is smaller than the weights.
    result = jnp.einsum(
        f"BNTS,{layout}->BTNH",
        weights.astype(values.dtype),
        values,
        preferred_element_type=weights.dtype,
    )
    result = (result / jnp.swapaxes(sums, 1, 2)).astype(queries.dtype)
    return result, (queries, keys, values, mask, bias, highest, sums, result)


def _backward(layout, kept, grads):
    (queries, keys, values, mask, bias, highest, sums, result), grads = (
        jax.lax.optimization_barrier((kept, grads))
    )
    dtype, wider = queries.dtype, highest.dtype
    scores = _scores(layout, queries, keys, mask, bias)
    weights = (jnp.exp(scores - highest) / sums).astype(dtype)
    of_weights = jnp.einsum(f"BTNH,{layout}->BNTS", grads, values, preferred_element_type=wider)
    mean = jnp.einsum("BTNH,BTNH->BNT", grads, result, preferred_element_type=wider)[..., None]
    of_scores = (weights.astype(wider) * (of_weights - mean)).astype(dtype)
    of_scores = jnp.where(mask, of_scores, jnp.zeros((), dtype))
    # Written here, or each of the products below would compute it from two arrays of its size.
    of_scores = jax.lax.optimization_barrier(of_scores)
    of_bias = None
    if bias is not None:
        rows = [axis for axis, size in enumerate(bias.shape) if size == 1]
        of_bias = jnp.sum(of_scores, axis=rows, keepdims=True, dtype=bias.dtype)
    return (
        jnp.einsum(f"BNTS,{layout}->BTNH", of_scores, keys),
        jnp.einsum(f"BNTS,BTNH->{layout}", of_scores, queries),
        jnp.einsum(f"BNTS,BTNH->{layout}", weights, grads),
        None,
        of_bias,
    )


_attend.defvjp(_forward, _backward)
