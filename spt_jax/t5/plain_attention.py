"""Attention by its definition, which every faster version is tested to equal.

    scores  = query key + bias, where the mask is True     [B, N, T, S], float32 or wider
    weights = softmax(scores)
    result  = weights value                                [B, T, N, H]

T5 does not divide the scores by sqrt(H); its initial query kernel is smaller by that factor.
"""

import jax
import jax.numpy as jnp

from spt_jax.t5.layers import wide
from spt_jax.typing import Array, Bool, Float

MASKED = -1e9
"""The score of a masked key. It is not -inf, so that a row of padding alone has finite weights."""


def plain_attention(
    query: Float[Array, "B T N H"],
    key: Array,
    value: Array,
    bias: Float[Array, "#B #N #T #S"] | None = None,
    mask: Bool[Array, "#B #N #T #S"] | None = None,
    *,
    keep: Float[Array, "B N 1 S"] | None = None,
    layout: str = "BSNH",
) -> Float[Array, "B T N H"]:
    """Return the weighted values; the arguments are those of `attention.dot_product_attention`."""
    weights = jax.nn.softmax(attention_scores(query, key, bias, mask, layout), axis=-1)
    if keep is not None:
        weights = weights * keep
    return jnp.einsum(f"BNTS,{layout}->BTNH", weights.astype(value.dtype), value)


def attention_scores(
    query: Array, key: Array, bias: Array | None, mask: Array | None, layout: str
) -> Float[Array, "B N T S"]:
    """Return the score of every key for every query, `MASKED` where the mask is False."""
    scores = jnp.einsum(
        f"BTNH,{layout}->BNTS", query, key, preferred_element_type=wide(query.dtype)
    )
    if bias is not None:
        scores = scores + bias
    return scores if mask is None else jnp.where(mask, scores, jnp.asarray(MASKED, scores.dtype))
