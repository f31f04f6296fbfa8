"""Multi-head attention of T5, and its relative position bias.

T5 does not scale scores by 1/sqrt(H): the scale is folded into the initial query kernel. The bias
depends on the distance between key and query alone, and one table serves all layers of a stack, so
it is computed once per stack and handed to each layer.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.tree_util import Partial

from spt_jax.sharding import constrain, platform
from spt_jax.t5.attend import attend, given
from spt_jax.t5.config import T5Config
from spt_jax.t5.layers import Dense, DType, RMSNorm, dropout
from spt_jax.typing import Array, Bool, Float, Int


def relative_position_bucket(
    distance: np.ndarray, *, bidirectional: bool, buckets: int, max_distance: int
) -> np.ndarray:
    """The bucket of each distance key - query (Raffel et al. 2020, section 2.1).

    Half of the buckets hold one distance each, the others grow logarithmically up to
    `max_distance`. An encoder gives keys to the right their own half; a decoder puts them in
    bucket 0, where its causal mask hides them.
    """
    offset = np.zeros_like(distance)
    if bidirectional:
        buckets //= 2
        offset = np.where(distance > 0, buckets, 0)
        distance = np.abs(distance)
    else:
        distance = np.maximum(-distance, 0)
    exact = buckets // 2
    # float32 as in the original, so that a distance on the edge falls on the same side.
    ratio = np.log(np.maximum(distance, 1).astype(np.float32) / np.float32(exact))
    ratio = ratio / np.float32(np.log(max_distance / exact)) * np.float32(buckets - exact)
    large = np.minimum(exact + ratio.astype(np.int32), buckets - 1)
    return (offset + np.where(distance < exact, distance, large)).astype(np.int32)


class RelativePositionBias(nn.Module):
    """The bias of every head for every distance; `rel_embedding` is [N, buckets]."""

    config: T5Config
    bidirectional: bool
    dtype: DType
    mesh: Mesh | None

    def setup(self):
        c = self.config
        init = nn.initializers.normal(c.d_model**-0.5)
        self.rel_embedding = self.param("rel_embedding", init, (c.num_heads, c.relpos_buckets))

    def by_distance(self, queries: int, keys: int) -> Float[Array, "N R"]:
        """The bias of the R = queries + keys - 1 distances from 1 - queries to keys - 1."""
        buckets = relative_position_bucket(
            np.arange(1 - queries, keys),
            bidirectional=self.bidirectional,
            buckets=self.config.relpos_buckets,
            max_distance=self.config.relpos_max_distance,
        )
        # In the dtype of the table: it is added to wide scores, and in bfloat16 half as large.
        return constrain(self.rel_embedding[:, buckets], "NR", self.mesh)

    def __call__(self, queries: int, keys: int) -> Float[Array, "1 N T S"]:
        """The bias of each query and key, both numbered from 0."""
        place = np.arange(keys)[None, :] - np.arange(queries)[:, None] + queries - 1
        return constrain(self.by_distance(queries, keys)[:, place][None], "1NTS", self.mesh)

    def row(self, query: Int[Array, ""], keys: int) -> Float[Array, "1 N 1 S"]:
        """The bias of the one query at the traced position `query` < `keys`."""
        bias = self.by_distance(keys, keys)
        row = jax.lax.dynamic_slice_in_dim(bias, keys - 1 - query, keys, axis=1)
        return row[None, :, None, :]


class Attention(nn.Module):
    """Queries from one sequence, keys and values from another; all kernels [in, out]."""

    config: T5Config
    dtype: DType
    dropout_rate: float
    mesh: Mesh | None

    def setup(self):
        c = self.config
        inner = c.num_heads * c.d_kv

        def dense(shape: tuple[int, int], stddev: float, axes: str) -> Dense:
            return Dense(shape, self.dtype, stddev, axes, self.mesh)

        self.query = dense((c.d_model, inner), (c.d_model * c.d_kv) ** -0.5, "DN")
        self.key = dense((c.d_model, inner), c.d_model**-0.5, "DN")
        self.value = dense((c.d_model, inner), c.d_model**-0.5, "DN")
        self.out = dense((inner, c.d_model), inner**-0.5, "ND")

    def _split_heads(self, x: Float[Array, "B T NH"]) -> Float[Array, "B T N H"]:
        x = x.reshape(*x.shape[:-1], self.config.num_heads, self.config.d_kv)
        return constrain(x, "BTNH", self.mesh)

    def keys_values(
        self, x: Float[Array, "B S D"]
    ) -> tuple[Float[Array, "B S N H"], Float[Array, "B S N H"]]:
        """What a sequence offers to be attended to."""
        return self._split_heads(self.key(x)), self._split_heads(self.value(x))

    def within(
        self,
        x: Float[Array, "B T D"],
        norm: RMSNorm,
        *,
        mask: Bool[Array, "b 1 t T"],
        bias: Float[Array, "1 N t T"],
        train: bool,
        again: bool,
    ) -> Float[Array, "B T D"]:
        """Attends from `x`, after its norm, to itself; arguments as for `__call__`.

        `again` keeps neither keys nor values for the backward pass, which computes them again.
        """
        if not again:
            y = norm(x)
            return self(y, self.keys_values(y), mask=mask, bias=bias, train=train)

        dense = self.query, self.key, self.value

        # Runs again in the backward pass, when modules have no parameters: they are arguments.
        def project(scale, kernels, x, inverse):
            y = norm.scaled(x, inverse, scale)
            return tuple(self._split_heads(d.product(y, k)) for d, k in zip(dense, kernels))

        project = Partial(project, norm.scale, [d.kernel for d in dense])
        return self._out(self._weigh(project, (x, norm.inverse(x)), mask, bias, train))

    def __call__(
        self,
        x: Float[Array, "B T D"],
        others: tuple[Float[Array, "..."], Float[Array, "..."]] | Float[Array, "B S D"],
        *,
        mask: Bool[Array, "b 1 t S"],
        bias: Float[Array, "1 N t S"] | None = None,
        train: bool = False,
        layout: str = "BSNH",
    ) -> Float[Array, "B T D"]:
        """Attends from `x`.

        Args:
            x: Where queries come from.
            others: What is attended to: keys and values, or the sequence that has them. A key is a
                product of the sequence with a kernel, and so is a value; where the sequence is
                given, the kernels are applied to the queries and to the result instead, which is
                cheaper for fewer than H queries of a sequence.
            mask: What each query sees; it broadcasts over batch, heads and queries.
            bias: Added to the scores.
            train: Whether to drop weights.
            layout: The axes B, S, N and H of keys and values in any order.
        """
        c, queries = self.config, self._split_heads(self.query(x))
        if isinstance(others, tuple):
            x = self._weigh(Partial(given), (queries, *others), mask, bias, train, layout)
        else:
            queries = self.key.by_head(queries, "BTNH,DNH->BTND", c.d_kv)
            # Adds up the gradient of keys and that of values, or both would be kept until those of
            # all layers are there.
            others = jax.lax.optimization_barrier(others)
            operands = queries, others, others
            x = self._weigh(Partial(given), operands, mask, bias, train, "BSH")
            x = constrain(self.value.by_head(x, "BTND,DNH->BTNH", c.d_kv), "BTNH", self.mesh)
        return self._out(x)

    def _out(self, x: Float[Array, "B T N H"]) -> Float[Array, "B T D"]:
        return self.out(x.reshape(*x.shape[:-2], -1))

    def _weigh(
        self, project, operands, mask, bias, train, layout="BSNH"
    ) -> Float[Array, "B T N H"]:
        """`attend`, with dropout on the weights; the first operand has axes B and T first."""
        batch, targets, *_ = operands[0].shape
        keep = None
        if train and self.dropout_rate:
            shape = batch, self.config.num_heads, 1, mask.shape[-1]
            keep = jnp.ones(shape, self.dtype)
            keep = dropout(self.dropout_rate, keep, broadcast=-2, module=self, train=train)
        on_tpu, few = platform(self.mesh) == "tpu", targets < self.config.d_kv
        weigh = functools.partial(attend, layout=layout, keep_weights=few or not on_tpu)
        if few and on_tpu:  # small enough to be written, not to be kept for every layer
            weigh = jax.checkpoint(weigh, prevent_cse=False)
        x = weigh(project, operands, mask, bias, keep)
        return constrain(x, "BTNH", self.mesh)
