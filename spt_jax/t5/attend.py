"""Softmax attention, between the products with kernels.

    queries, keys, values = project(*operands)
    scores  = queries keys + bias, where the mask is True     [B, N, T, S], float32 or wider
    weights = softmax(scores)
    result  = weights values                                  [B, T, N, H]

Scores and weights are the largest arrays of a T5. On TPU memory is what time is lost on, and XLA
fuses what follows a product into it: there scores are never written but computed three times, and
nothing of their size outlives the pass that it is made in. Elsewhere the weights are kept for the
backward pass, before they are divided by their sums: what is divided instead is smaller, as is what
the gradient of a softmax needs beside the weights. Where all heads share keys it is the other way
round: there keys, values and results are as wide as the model, and weights are divided and summed.

Operands and queries are kept for the backward pass, which projects keys and values again. Where
that is too dear, they are operands themselves.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from spt_jax.t5.layers import wide
from spt_jax.typing import Array, Bool, Float


def attend(
    project: Partial,
    operands: tuple[Array, ...],
    mask: Bool[Array, "b 1 t S"],
    bias: Float[Array, "1 N t S"] | None,
    keep: Float[Array, "B N 1 S"] | None,
    *,
    layout: str,
    keep_weights: bool,
) -> Float[Array, "B T N H"]:
    """The values that each query attends to, weighted.

    Args:
        project: Takes the operands to queries [B, T, N, H], which are not scaled, keys and values,
            both with axes in the order of `layout`. Arrays that it needs beside, such as kernels,
            are its own arguments.
        operands: Activations.
        mask: What each query sees; it broadcasts over batch, heads and queries.
        bias: Added to the scores.
        keep: Multiplied with the weights: 0 where dropout drops a key for all queries of a head.
        layout: The axes B, S, N and H in any order, or B, S and H where all heads share keys.
        keep_weights: For the backward pass, which computes them again where they are not kept.
    """
    if keep is not None and "N" in layout:  # values are smaller than weights
        project, keep = Partial(_drop_values, project, jnp.einsum(f"BNHS->{layout}", keep)), None
    return _attend(layout, keep_weights, project, operands, mask, bias, keep)


def given(*queries_keys_values: Array) -> tuple[Array, ...]:
    """The `project` of operands that are queries, keys and values already."""
    return queries_keys_values


def _drop_values(project: Any, keep: Any, *operands: Any) -> Any:
    queries, keys, values = project(*operands)
    return queries, keys, values * keep


def _scores(layout: str, queries: Any, keys: Any, mask: Any, bias: Any) -> Any:
    scores = jnp.einsum(
        f"BTNH,{layout}->BNTS", queries, keys, preferred_element_type=wide(queries.dtype)
    )
    if bias is not None:
        scores = scores + bias
    # Not -inf: a row of padding alone must give finite weights, which nothing reads.
    return jnp.where(mask, scores, jnp.asarray(-1e9, scores.dtype))


def _divides_weights(layout: str, keep_weights: bool) -> bool:
    """Whether the weights themselves are divided by their sums, and not what is made of them."""
    return keep_weights and "N" not in layout


def _drop(weights: Any, keep: Any) -> Any:
    return weights if keep is None else weights * keep


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _attend(layout, keep_weights, project, operands, mask, bias, keep):
    return _forward(layout, keep_weights, project, operands, mask, bias, keep)[0]


def _forward(layout, keep_weights, project, operands, mask, bias, keep):
    queries, keys, values = project(*operands)
    scores = _scores(layout, queries, keys, mask, bias)
    highest = jnp.max(scores, axis=-1, keepdims=True)
    if keep_weights:
        weights = jnp.exp(scores - highest)
    else:
        # Computed again, so that scores are never written: the products fuse with the maximum
        # above, and with exp and the sum below. Behind a barrier, or the first would be found.
        queries_, keys_, highest_ = jax.lax.optimization_barrier((queries, keys, highest))
        weights = jnp.exp(_scores(layout, queries_, keys_, mask, bias) - highest_)
    sums = jnp.sum(weights, axis=-1, keepdims=True)
    divided = _divides_weights(layout, keep_weights)
    weights = (weights / sums if divided else weights).astype(values.dtype)
    result = jnp.einsum(
        f"BNTS,{layout}->BTNH",
        _drop(weights, keep),
        values,
        preferred_element_type=values.dtype if keep_weights else sums.dtype,
    )
    if not divided:
        result = result / jnp.swapaxes(sums, 1, 2)
    result = result.astype(queries.dtype)
    kept = weights if keep_weights else highest
    of_softmax = (None, None) if divided else (sums, result)
    return result, ((project, mask, bias, keep), (operands, queries, kept, *of_softmax))


def _backward(layout, keep_weights, kept, grads):
    (project, mask, bias, keep), activations = kept
    # Behind a barrier, or what is computed again would be found. Weights and the bias stay before
    # it: each layer would have a copy of them.
    (operands, queries, kept, sums, result), grads = jax.lax.optimization_barrier(
        (activations, grads)
    )
    (_, keys, values), pull = jax.vjp(lambda project, x: project(*x), project, operands)
    dtype, wider = queries.dtype, wide(queries.dtype)
    divided = _divides_weights(layout, keep_weights)
    if divided:
        weights = kept
    elif keep_weights:
        weights, grads = kept, (grads / jnp.swapaxes(sums, 1, 2)).astype(dtype)
    else:
        scores = _scores(layout, queries, keys, mask, bias)
        weights = (jnp.exp(scores - kept) / sums).astype(dtype)
    of_weights = jnp.einsum(
        f"BTNH,{layout}->BNTS",
        grads,
        values,
        preferred_element_type=dtype if keep_weights else wider,
    )
    of_weights = _drop(of_weights, keep)
    if divided:
        mean = jnp.sum(weights.astype(wider) * of_weights, axis=-1, keepdims=True)
    else:
        mean = jnp.sum(grads.astype(wider) * result, axis=-1).swapaxes(1, 2)[..., None]
    of_scores = (weights.astype(wider) * (of_weights - mean)).astype(dtype)
    of_scores = jnp.where(mask, of_scores, jnp.zeros((), dtype))
    # Written here, or each of the products below would compute it from two arrays of its size.
    of_scores = jax.lax.optimization_barrier(of_scores)
    of_bias = None
    if bias is not None:
        rows = [axis for axis, size in enumerate(bias.shape) if size == 1]
        of_bias = jnp.sum(of_scores, axis=rows, keepdims=True, dtype=bias.dtype)
    of_queries = jnp.einsum(f"BNTS,{layout}->BTNH", of_scores, keys)
    of_keys = jnp.einsum(f"BNTS,BTNH->{layout}", of_scores, queries)
    of_values = jnp.einsum(f"BNTS,BTNH->{layout}", _drop(weights, keep), grads)
    return *pull((of_queries, of_keys, of_values)), None, of_bias, None


_attend.defvjp(_forward, _backward)
