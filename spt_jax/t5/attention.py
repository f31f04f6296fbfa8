"""Multi-head attention of T5: the entrance, the Flax module and the relative position bias.

`dot_product_attention` computes what `plain_attention` defines. `project_and_attend` chooses the
version of it that is fastest on the platform: `attention_vjp`, which leaves the programs to XLA, or
`fused_attention`, a kernel for TPU. Another version is added there.

T5 does not divide the scores by sqrt(H): the initial query kernel is smaller by that factor. The
bias depends only on the distance between key and query, and one table serves all layers of a
stack, so that it is computed once per stack and passed to each layer.
"""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.tree_util import Partial

from spt_jax.config.devices import AttentionVersion
from spt_jax.errors import choose
from spt_jax.sharding import constrain, platform
from spt_jax.t5.attention_vjp import attention_vjp
from spt_jax.t5.config import T5Config
from spt_jax.t5.fused_attention import MULTIPLE, fits_kernel, fused_attention
from spt_jax.t5.layers import Dense, DType, RMSNorm
from spt_jax.t5.plain_attention import plain_attention
from spt_jax.typing import Array, Bool, Float, Int


def dot_product_attention(
    query: Float[Array, "B T N H"],
    key: Array,
    value: Array,
    bias: Float[Array, "#B #N #T #S"] | None = None,
    mask: Bool[Array, "#B #N #T #S"] | None = None,
    *,
    keep: Float[Array, "B N 1 S"] | None = None,
    layout: str = "BSNH",
    mesh: Mesh | None = None,
    version: AttentionVersion = "auto",
) -> Float[Array, "B T N H"]:
    """Attend, as `jax.nn.dot_product_attention` with `scale=1.0` does.

    Args:
        query: Queries.
        key: Keys, with their axes in the order of `layout`.
        value: Values, likewise.
        bias: Array that is added to the scores [B, N, T, S]; its axes broadcast.
        mask: Keys that each query sees (True); its axes broadcast like those of the bias.
        keep: Factors of the weights, for dropout: 0 drops a key for all queries of a head.
        layout: The axes B, S, N and H of keys and values in any order, or B, S and H in any order
            if all heads share them.
        mesh: The devices; jax's default where None.
        version: What computes it, see `config.devices.AttentionVersion`.
    """
    return project_and_attend(
        Partial(_as_given),
        (query, key, value),
        bias,
        mask,
        keep=keep,
        layout=layout,
        mesh=mesh,
        version=version,
    )


def _as_given(*operands: Array) -> tuple[Array, ...]:
    return operands


def project_and_attend(
    project: Callable[..., tuple[Array, Array, Array]],
    operands: tuple[Array, ...],
    bias: Float[Array, "#B #N #T #S"] | None = None,
    mask: Bool[Array, "#B #N #T #S"] | None = None,
    *,
    keep: Float[Array, "B N 1 S"] | None = None,
    layout: str = "BSNH",
    mesh: Mesh | None = None,
    version: AttentionVersion = "auto",
) -> Float[Array, "B T N H"]:
    """Return `dot_product_attention(*project(*operands), ...)` by the platform's fastest version.

    The backward pass projects keys and values again instead of keeping them. `project` is a
    `Partial` that holds all arrays it needs besides the operands, such as kernels.
    """
    queries, keys, _ = jax.eval_shape(project, *operands)
    few = queries.shape[1] < queries.shape[3]
    kind = platform(mesh)
    interpret = kind != "tpu"
    # For few queries the scores are small beside the keys.
    fused = uses_kernel(version, mesh) and not few
    if fused and fits_kernel(queries, keys, bias, mask, layout, mesh, interpret):
        result = fused_attention(
            project, operands, bias, mask, keep, mesh=mesh, interpret=interpret
        )
    elif kind not in ("cpu", "gpu", "tpu"):  # the versions below were not measured there
        result = plain_attention(*project(*operands), bias, mask, keep=keep, layout=layout)
    else:
        kept = few or kind != "tpu"
        attend = functools.partial(attention_vjp, layout=layout, keep_weights=kept)
        if few and kind == "tpu":  # the weights are small, but not those of all layers together
            attend = jax.checkpoint(attend, prevent_cse=False)
        result = attend(project, operands, bias, mask, keep)
    return constrain(result, "BTNH", mesh)


def uses_kernel(version: AttentionVersion, mesh: Mesh | None) -> bool:
    """Return whether attention runs as a kernel where its shapes allow that (`fits_kernel`).

    Raises:
        ValueError: `version` is no `config.devices.AttentionVersion`.
    """
    choices = {"auto": platform(mesh) == "tpu", "plain": False, "fused": True}
    return choose("attention", version, choices)


def padded_length(length: int, version: AttentionVersion, mesh: Mesh | None) -> int:
    """Return the positions that the encoder's input should have: `length`, or some padding more."""
    return -(-length // MULTIPLE) * MULTIPLE if uses_kernel(version, mesh) else length


def relative_position_bucket(
    distance: np.ndarray, *, bidirectional: bool, buckets: int, max_distance: int
) -> np.ndarray:
    """Return the bucket of each distance key - query (Raffel et al. 2020, section 2.1).

    Half of the buckets hold one distance each; the others grow logarithmically up to
    `max_distance`. In an encoder, which is bidirectional, keys to the right of the query have half
    of all buckets. In a decoder they are in bucket 0, where its causal mask hides them.
    """
    offset = np.zeros_like(distance)
    if bidirectional:
        buckets //= 2
        offset = np.where(distance > 0, buckets, 0)
        distance = np.abs(distance)
    else:
        distance = np.maximum(-distance, 0)
    exact = buckets // 2
    # In float32, as in the original, so that a distance at the edge of a bucket is in the same one.
    ratio = np.log(np.maximum(distance, 1).astype(np.float32) / np.float32(exact))
    ratio = ratio / np.float32(np.log(max_distance / exact)) * np.float32(buckets - exact)
    large = np.minimum(exact + ratio.astype(np.int32), buckets - 1)
    return (offset + np.where(distance < exact, distance, large)).astype(np.int32)


class RelativePositionBias(nn.Module):
    """The bias of every head for every distance; the parameter `rel_embedding` is [N, buckets]."""

    config: T5Config
    bidirectional: bool
    dtype: DType
    mesh: Mesh | None

    def setup(self):
        c = self.config
        init = nn.initializers.normal(c.d_model**-0.5)
        self.rel_embedding = self.param("rel_embedding", init, (c.num_heads, c.relpos_buckets))

    def by_distance(self, queries: int, keys: int) -> Float[Array, "N R"]:
        """Return the bias of the R = queries + keys - 1 distances 1 - queries to keys - 1."""
        buckets = relative_position_bucket(
            np.arange(1 - queries, keys),
            bidirectional=self.bidirectional,
            buckets=self.config.relpos_buckets,
            max_distance=self.config.relpos_max_distance,
        )
        # Not cast to float32: the sum with the scores is, and a bfloat16 bias is half as large.
        return constrain(self.rel_embedding[:, buckets], "NR", self.mesh)

    def __call__(self, queries: int, keys: int) -> Float[Array, "1 N T S"]:
        """Return the bias of each query and key, both numbered from 0."""
        place = np.arange(keys)[None, :] - np.arange(queries)[:, None] + queries - 1
        return constrain(self.by_distance(queries, keys)[:, place][None], "1NTS", self.mesh)

    def row(self, query: Int[Array, ""], keys: int) -> Float[Array, "1 N 1 S"]:
        """Return the bias of the one query at the traced position `query` < `keys`."""
        bias = self.by_distance(keys, keys)
        row = jax.lax.dynamic_slice_in_dim(bias, keys - 1 - query, keys, axis=1)
        return row[None, :, None, :]


class Attention(nn.Module):
    """Queries from one sequence, keys and values from another; all kernels are [in, out]."""

    config: T5Config
    dtype: DType
    dropout_rate: float
    mesh: Mesh | None
    version: AttentionVersion = "auto"

    def setup(self):
        c = self.config
        inner = c.num_heads * c.d_kv

        def dense(shape: tuple[int, int], stddev: float, axes: str) -> Dense:
            return Dense(shape, self.dtype, stddev, axes, self.mesh)

        self.query = dense((c.d_model, inner), (c.d_model * c.d_kv) ** -0.5, "DN")
        self.key = dense((c.d_model, inner), c.d_model**-0.5, "DN")
        self.value = dense((c.d_model, inner), c.d_model**-0.5, "DN")
        self.out = dense((inner, c.d_model), inner**-0.5, "ND")

    def keys_values(
        self, x: Float[Array, "B S D"]
    ) -> tuple[Float[Array, "B S N H"], Float[Array, "B S N H"]]:
        """Return the keys and values of a sequence."""
        return self._split_heads(self.key(x)), self._split_heads(self.value(x))

    def within(
        self,
        x: Float[Array, "B T D"],
        norm: RMSNorm,
        *,
        mask: Bool[Array, "b 1 t T"],
        bias: Float[Array, "1 N t T"],
        train: bool,
        project_again: bool,
    ) -> Float[Array, "B T D"]:
        """Attend from `norm(x)` to itself; mask, bias and train are those of `__call__`.

        With `project_again` the backward pass computes keys and values again instead of keeping
        them.
        """
        if not project_again:
            y = norm(x)
            return self(y, self.keys_values(y), mask=mask, bias=bias, train=train)

        dense = self.query, self.key, self.value

        # The parameters are arguments, because the backward pass calls this function again, when
        # modules have none.
        def project(scale, kernels, x, inverse):
            y = norm.scaled(x, inverse, scale)
            return tuple(self._split_heads(d.product(y, k)) for d, k in zip(dense, kernels))

        project = Partial(project, norm.scale, [d.kernel for d in dense])
        operands, keep = (x, norm.inverse(x)), self._keep(x, mask, train)
        x = project_and_attend(
            project, operands, bias, mask, keep=keep, mesh=self.mesh, version=self.version
        )
        return self._out(x)

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
        """Attend from `x` to `others`.

        Args:
            x: The sequence that has the queries.
            others: Keys and values, or the sequence [B, S, D] itself. In the second case the key
                kernel is applied to the queries and the value kernel to the result, so that all
                heads share the sequence as keys and values. The result is the same, and it is
                cheaper if there are fewer than H queries.
            mask: Keys that each query sees; it broadcasts over batch, heads and queries.
            bias: Array that is added to the scores.
            train: Whether dropout is on.
            layout: The axes B, S, N and H of given keys and values in any order.
        """
        width, queries = self.config.d_kv, self._split_heads(self.query(x))
        attend = functools.partial(
            dot_product_attention,
            bias=bias,
            mask=mask,
            keep=self._keep(x, mask, train),
            mesh=self.mesh,
            version=self.version,
        )
        if isinstance(others, tuple):
            return self._out(attend(queries, *others, layout=layout))
        queries = self.key.by_head(queries, "BTNH,DNH->BTND", width)
        # The barrier makes XLA add the gradient of keys and that of values in each layer. Without
        # it XLA keeps both of every layer until all are there, which takes 0.4 GiB more for T5 1.1
        # base (docs/benchmarks.md).
        sequence = jax.lax.optimization_barrier(others)
        x = attend(queries, sequence, sequence, layout="BSH")
        x = self.value.by_head(x, "BTND,DNH->BTNH", width)
        return self._out(constrain(x, "BTNH", self.mesh))

    def _split_heads(self, x: Float[Array, "B T NH"]) -> Float[Array, "B T N H"]:
        x = x.reshape(*x.shape[:-1], self.config.num_heads, self.config.d_kv)
        return constrain(x, "BTNH", self.mesh)

    def _out(self, x: Float[Array, "B T N H"]) -> Float[Array, "B T D"]:
        return self.out(x.reshape(*x.shape[:-2], -1))

    def _keep(self, x: Array, mask: Array, train: bool) -> Float[Array, "B N 1 S"] | None:
        """Draw the dropout of the weights: 0 or 1 / (1 - rate), the same for all queries.

        What is drawn for a key depends on its row and on its distance from the first key that the
        last query sees. So padding on either side changes no draw of the other keys, and the draws
        for a prompt are the same beside longer prompts as alone (`step.train_steps`).
        """
        if not train or self.dropout_rate == 0:
            return None
        rows, keys = len(x), mask.shape[-1]
        first = jnp.broadcast_to(jnp.argmax(mask[:, 0, -1], axis=-1), rows)
        place = jnp.arange(keys)[None] - first[:, None]
        fold = jax.vmap(jax.random.fold_in, in_axes=(None, 0))
        of_row = fold(self.make_rng("dropout"), jnp.arange(rows))
        of_key = jax.vmap(fold)(of_row, place)
        rate, heads = self.dropout_rate, self.config.num_heads
        kept = jax.vmap(jax.vmap(lambda key: jax.random.bernoulli(key, 1 - rate, (heads,))))(of_key)
        scale = jnp.asarray(1 / (1 - rate), self.dtype)
        keep = jnp.where(kept, scale, jnp.zeros((), self.dtype))
        return keep.transpose(0, 2, 1)[:, :, None]
