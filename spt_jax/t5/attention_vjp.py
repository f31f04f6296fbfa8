"""Attention with a gradient of its own, which says what is kept for the backward pass.

Scores and weights [B, N, T, S] are the largest arrays of a T5. Autodiff of `plain_attention` keeps
the weights and a mask for every layer. There are two ways here:

    keep_weights=True     Keep the weights, unnormalized: exp(scores - max). The result is divided
                          by their sums instead, because it is smaller. For CPU and GPU.
    keep_weights=False    Keep only the maximum and the sum of each query, and compute the scores
                          again. Nothing of the size of the weights outlives a pass. For TPU, where
                          memory is scarcer than arithmetic.

XLA still writes arrays of that size within a pass. On a TPU v5e it writes one per layer in the
forward pass and two in the backward pass (docs/benchmarks.md).

If all heads share keys (layout `BSH`), the values and the result are as wide as the model. The
result is then the larger array, so that the weights are normalized instead.

The custom gradient also covers the projection of the operands to queries, keys and values. The
operands and the queries are kept; keys and values are projected again in the backward pass. To
keep keys and values, pass them as operands and a projection that returns its arguments.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from spt_jax.t5.layers import wide
from spt_jax.t5.plain_attention import attention_scores
from spt_jax.typing import Array, Bool, Float


def attention_vjp(
    project: Callable[..., tuple[Array, Array, Array]],
    operands: tuple[Array, ...],
    bias: Float[Array, "#B #N #T #S"] | None,
    mask: Bool[Array, "#B #N #T #S"] | None,
    keep: Float[Array, "B N 1 S"] | None,
    *,
    layout: str,
    keep_weights: bool,
) -> Float[Array, "B T N H"]:
    """Return the weighted values of every query.

    `project` is a `Partial`, so that the arrays it holds, such as kernels, get gradients. `bias`,
    `mask`, `keep` and `layout` are those of `attention.dot_product_attention`.
    """
    if keep is not None and "N" in layout:  # the values are smaller than the weights
        project, keep = drop_values(project, jnp.einsum(f"BNHS->{layout}", keep)), None
    return _attend(layout, keep_weights, project, operands, bias, mask, keep)


def drop_values(project: Any, keep: Array) -> Partial:
    """Return a projection like `project` whose values are multiplied by `keep`."""
    return Partial(_drop_values, project, keep)


def _drop_values(project: Any, keep: Array, *operands: Array) -> tuple[Array, Array, Array]:
    queries, keys, values = project(*operands)
    return queries, keys, values * keep


def _drop(weights: Array, keep: Array | None) -> Array:
    return weights if keep is None else weights * keep


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _attend(layout, keep_weights, project, operands, bias, mask, keep):
    return _forward(layout, keep_weights, project, operands, bias, mask, keep)[0]


def _forward(layout, keep_weights, project, operands, bias, mask, keep):
    queries, keys, values = project(*operands)
    scores = attention_scores(queries, keys, bias, mask, layout)
    highest = jnp.max(scores, axis=-1, keepdims=True)
    if keep_weights:
        weights = jnp.exp(scores - highest)
    else:
        # The scores are computed a second time, so that XLA fuses each product with what reads it:
        # the maximum above, exp and the sum below. The barrier stops XLA from reusing the first
        # ones (common-subexpression elimination), which would write them in float32. On a v5e that
        # is 1.7 GB of traffic less for each layer of T5 1.1 base, for 2.7% more operations of the
        # encoder (32 rows of 612, by the compiler's count).
        queries_, keys_, highest_ = jax.lax.optimization_barrier((queries, keys, highest))
        weights = jnp.exp(attention_scores(queries_, keys_, bias, mask, layout) - highest_)
    sums = jnp.sum(weights, axis=-1, keepdims=True)
    normalized = _normalizes_weights(layout, keep_weights)
    weights = (weights / sums if normalized else weights).astype(values.dtype)
    result = jnp.einsum(
        f"BNTS,{layout}->BTNH",
        _drop(weights, keep),
        values,
        preferred_element_type=values.dtype if keep_weights else sums.dtype,
    )
    if not normalized:
        result = result / jnp.swapaxes(sums, 1, 2)
    result = result.astype(queries.dtype)
    kept = weights if keep_weights else highest
    of_softmax = (None, None) if normalized else (sums, result)
    return result, ((project, bias, mask, keep), (operands, queries, kept, *of_softmax))


def _normalizes_weights(layout: str, keep_weights: bool) -> bool:
    return keep_weights and "N" not in layout


def _backward(layout, keep_weights, residuals, grads):
    (project, bias, mask, keep), activations = residuals
    # The barrier stops XLA from reusing the forward values of what is computed again below
    # (common-subexpression elimination), which would keep them alive: 0.7 GiB a layer in the case
    # above. Kernels and the bias stay outside, because a barrier would copy them for every layer.
    (operands, queries, kept, sums, result), grads = jax.lax.optimization_barrier(
        (activations, grads)
    )
    (_, keys, values), pull = jax.vjp(lambda project, x: project(*x), project, operands)
    dtype, wider = queries.dtype, wide(queries.dtype)
    normalized = _normalizes_weights(layout, keep_weights)
    if normalized:
        weights = kept
    elif keep_weights:
        weights, grads = kept, (grads / jnp.swapaxes(sums, 1, 2)).astype(dtype)
    else:
        scores = attention_scores(queries, keys, bias, mask, layout)
        weights = (jnp.exp(scores - kept) / sums).astype(dtype)
    of_weights = jnp.einsum(
        f"BTNH,{layout}->BNTS",
        grads,
        values,
        preferred_element_type=dtype if keep_weights else wider,
    )
    of_weights = _drop(of_weights, keep)
    # Gradient of a softmax: weights * (of_weights - mean), where `mean` is the mean of `of_weights`
    # under the weights. It equals the product of the result and its gradient, which is smaller.
    if normalized:
        mean = jnp.sum(weights.astype(wider) * of_weights, axis=-1, keepdims=True)
    else:
        mean = jnp.sum(grads.astype(wider) * result, axis=-1).swapaxes(1, 2)[..., None]
    of_scores = (weights.astype(wider) * (of_weights - mean)).astype(dtype)
    if mask is not None:
        of_scores = jnp.where(mask, of_scores, jnp.zeros((), dtype))
    # The barrier makes XLA write this array once. Without it XLA fuses the computation into each
    # product below, and each reads two arrays of this size.
    of_scores = jax.lax.optimization_barrier(of_scores)
    of_bias = None
    if bias is not None:
        broadcast = [axis for axis, size in enumerate(bias.shape) if size == 1]
        of_bias = jnp.sum(of_scores, axis=broadcast, keepdims=True, dtype=bias.dtype)
    of_queries = jnp.einsum(f"BNTS,{layout}->BTNH", of_scores, keys)
    of_keys = jnp.einsum(f"BNTS,BTNH->{layout}", of_scores, queries)
    of_values = jnp.einsum(f"BNTS,BTNH->{layout}", _drop(weights, keep), grads)
    return *pull((of_queries, of_keys, of_values)), of_bias, None, None


_attend.defvjp(_forward, _backward)
