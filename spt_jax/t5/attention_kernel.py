"""Self-attention of T5 as one program for TPU, in Pallas: the forward and the backward pass.

XLA computes attention in several programs, which pass scores and weights [B, N, T, S] to each other
through the main memory of the chip (HBM). A Pallas kernel is one program that runs once for each
cell of a grid. For a cell, Pallas copies a *block* of each operand into the small and fast memory
beside the arithmetic units (VMEM), and the blocks of the results out of it. Everything that the
kernel computes in between stays in VMEM, here the scores.

    grid              (groups of heads, rows)
    block             [S, group * H]: all positions of one row, for one group of heads
    block of bias     [group, S, S]: the same for all rows. The rows are the inner loop of the grid,
                      so that it is copied once for each group and not once for each row.

**Lanes.** The last axis of an array lies in lanes, 128 of them side by side in a register. Queries,
keys, values and their gradients are flat, [B, S, N * H], and a group is as many heads as fill the
lanes: two of 64. A block is not cut into its heads. A product of keys and queries sums over all
lanes, after those of other heads were set to zero in the keys.

**Scores are transposed**, [keys, queries]. The axis before the last lies in sublanes. The softmax
takes a maximum and a sum over keys. Over sublanes, these work on whole registers; over lanes, they
would move numbers within registers. Products with the weights need keys, values and queries
transposed, [H, S]. These are small; an array of S x S is never transposed.

**For the backward pass** the forward pass returns one number for each query, the logarithm of its
sum of exp(score). The backward pass computes the scores again, and a weight is
exp(score - logarithm).
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from spt_jax.t5.plain_attention import MASKED
from spt_jax.typing import Array, Float

LANES = 128
"""Lanes of a register. A block has a multiple of them, or as many as the whole array."""

VMEM = {
    "TPU v4": 16 * 2**20,
    "TPU v5 lite": 128 * 2**20,
    "TPU v5": 64 * 2**20,
    "TPU v5p": 64 * 2**20,
    "TPU v6 lite": 128 * 2**20,
}
"""Bytes of VMEM of a core, by jax's name of the chip. The kernels were compiled for these chips."""

LONGEST = 1152
"""Most positions S of a row, because VMEM and compile time grow with S * S."""


def group_size(heads: int, width: int) -> int | None:
    """Return the heads of a block, or None if heads of this width do not fill whole registers."""
    if heads * width <= LANES:
        return heads
    if LANES % width == 0:
        return LANES // width
    return 1 if width % LANES == 0 else None


def fits(length: int, heads: int, width: int, itemsize: int, kind: str | None) -> bool:
    """Return whether the kernels can be compiled for rows of this length.

    Args:
        length: Positions S of a row.
        heads: Heads N on one device.
        width: Width H of a head.
        itemsize: Bytes of a number of the queries.
        kind: jax's name of the chip, or None to interpret the kernels.
    """
    group = group_size(heads, width)
    if group is None or length > LONGEST:
        return False
    # The largest program is the backward pass with a gradient of the bias.
    sequences, logsumexp = 7 * length * group * width * itemsize, 8 * 4 * length
    blocks = 2 * (sequences + logsumexp + group * length**2 * itemsize) + group * length**2 * 4
    return kind is None or _vmem(blocks, length, backward=True) <= VMEM.get(kind, 0)


def _vmem(blocks: int, length: int, *, backward: bool) -> int:
    """Return the bytes of VMEM that a kernel may use: its `blocks`, and arrays of S x S.

    The compiler (libtpu 0.0.52) needed up to 19 bytes for each of S x S scores in the backward
    pass, and 6 in the forward pass, because it computes a part of the scores at a time.
    """
    return blocks + (20 if backward else 10) * length**2 + 2**19


def forward(
    queries: Float[Array, "B S NH"],
    keys: Float[Array, "B S NH"],
    values: Float[Array, "B S NH"],
    bias: Float[Array, "N S S"],
    mask: Float[Array, "B 1 S"],
    *,
    width: int,
    interpret: bool,
) -> tuple[Float[Array, "B S NH"], Float[Array, "B G n S"]]:
    """Return the weighted values of every query, and the logarithms for `backward`.

    Args:
        queries: Queries, in float32 or bfloat16.
        keys: Keys, in the same dtype.
        values: Values, in the same dtype.
        bias: Array that is added to the scores, [heads, keys, queries].
        mask: 1.0 where a key is seen and 0.0 where it is not, in float32.
        width: Width H of a head.
        interpret: Run the kernel as a jax program, which is slow, on any device.

    Returns:
        The result, and float32 logarithms of G groups of n heads. If G * n is more than N, the
        last ones are of no head and are undefined.
    """
    sequences = [("sequence", x) for x in (queries, keys, values)]
    result, logsumexp = _run(
        _forward_kernel,
        [*sequences, ("bias", bias), ("mask", mask)],
        ["sequence", "logsumexp"],
        name="t5_attention",
        width=width,
        products=2,
        interpret=interpret,
    )
    return result, logsumexp


def backward(
    queries: Float[Array, "B S NH"],
    keys: Float[Array, "B S NH"],
    values: Float[Array, "B S NH"],
    bias: Float[Array, "N S S"],
    mask: Float[Array, "B 1 S"],
    logsumexp: Float[Array, "B G n S"],
    grads: Float[Array, "B S NH"],
    *,
    width: int,
    of_bias: bool,
    interpret: bool,
) -> tuple[Array, ...]:
    """Return the gradients of queries, keys and values, and with `of_bias` that of the bias.

    Args:
        queries: Argument of `forward`, like all that are not listed here.
        logsumexp: Logarithms that `forward` returned.
        grads: Gradient of the result, in the dtype of the queries.
        of_bias: Whether to return the gradient of the bias too, in float32, which takes more time.
    """
    sequences = [("sequence", x) for x in (queries, keys, values, grads)]
    return _run(
        _backward_kernel,
        [*sequences, ("bias", bias), ("mask", mask), ("logsumexp", logsumexp)],
        ["sequence"] * 3 + ["of_bias"] * of_bias,
        name="t5_attention_backward",
        width=width,
        products=5,
        interpret=interpret,
    )


def _run(
    kernel: Callable[..., None],
    operands: Sequence[tuple[str, Array]],
    results: Sequence[str],
    *,
    name: str,
    width: int,
    products: int,
    interpret: bool,
) -> tuple[Array, ...]:
    """Run a kernel on every cell of the grid and return its results.

    Args:
        kernel: Function of references to the blocks of all operands, then of all results.
        operands: Arrays, each with its kind: `sequence` for [B, S, N * H], `bias`, `mask` or
            `logsumexp`. The first one is a sequence.
        results: Kinds of the results.
        name: Name of the program in a profile.
        width: Width H of a head.
        products: Products of S x S x H for each head of a row.
        interpret: As in `forward`.
    """
    first = operands[0][1]
    rows, length, lanes = first.shape
    heads = lanes // width
    group = group_size(heads, width)
    assert group is not None, f"{heads} heads of width {width}"
    groups = pl.cdiv(heads, group)
    blocks: dict[str, Any] = {  # the shape of a block, and its place in units of blocks
        "sequence": pl.BlockSpec((1, length, group * width), lambda g, row: (row, 0, g)),
        "bias": pl.BlockSpec((group, length, length), lambda g, row: (g, 0, 0)),
        "of_bias": pl.BlockSpec(  # in one place, because it is large
            (group, length, length), lambda g, row: (g, 0, 0), pipeline_mode=pl.Buffered(1)
        ),
        "mask": pl.BlockSpec((1, 1, length), lambda g, row: (row, 0, 0)),
        "logsumexp": pl.BlockSpec((1, 1, group, length), lambda g, row: (row, g, 0, 0)),
    }
    arrays = {
        "sequence": jax.ShapeDtypeStruct(first.shape, first.dtype),
        "of_bias": jax.ShapeDtypeStruct((heads, length, length), jnp.float32),
        "logsumexp": jax.ShapeDtypeStruct((rows, groups, group, length), jnp.float32),
    }
    shapes = [arrays[kind] for kind in results]
    scores = rows * heads * length**2
    # Pallas copies the next block while the kernel works on this one, so that each has two places.
    kept = sum(
        math.prod(blocks[kind].block_shape) * x.dtype.itemsize * (1 if kind == "of_bias" else 2)
        for kind, x in [*operands, *zip(results, shapes)]
    )
    return pl.pallas_call(
        functools.partial(kernel, width=width, lanes=lanes),
        grid=(groups, rows),
        in_specs=[blocks[kind] for kind, _ in operands],
        out_specs=[blocks[kind] for kind in results],
        out_shape=shapes,
        compiler_params=pltpu.CompilerParams(
            # No cell depends on another group of heads. The gradient of the bias adds up rows.
            dimension_semantics=("parallel", "arbitrary"),
            vmem_limit_bytes=_vmem(kept, length, backward=products > 2),
        ),
        cost_estimate=pl.CostEstimate(
            flops=products * 2 * scores * width,
            transcendentals=scores,
            bytes_accessed=sum(x.size * x.dtype.itemsize for _, x in operands)
            + sum(x.size * x.dtype.itemsize for x in shapes),
        ),
        interpret=interpret,
        name=name,
    )(*(array for _, array in operands))


def _forward_kernel(
    q_ref, k_ref, v_ref, bias_ref, mask_ref, result_ref, logsumexp_ref, *, width, lanes
):
    """Attend in one cell: from all queries of a row, in each head of a group.

    Args:
        q_ref: Reference to the block of the queries in VMEM; the others likewise.
        width: Width H of a head.
        lanes: N * H of the whole array.
    """
    q, k, v = (_read(ref, lanes) for ref in (q_ref, k_ref, v_ref))
    seen, hidden = _read_mask(mask_ref)
    values, results = v.T, []
    for head in range(len(bias_ref)):
        scores = _scores(q, _lanes(k, head, width), bias_ref[head], seen, hidden)
        highest = jnp.max(scores, axis=0, keepdims=True)
        weights = jnp.exp(scores - highest)
        sums = jnp.sum(weights, axis=0, keepdims=True)
        logsumexp_ref[0, 0, pl.ds(head, 1)] = highest + jnp.log(sums)
        results.append(_dot(_rows(values, head, width), weights.astype(v.dtype)) / sums)
    result_ref[0] = _join(results, result_ref.dtype)


def _backward_kernel(
    q_ref, k_ref, v_ref, grads_ref, bias_ref, mask_ref, logsumexp_ref, *results, width, lanes
):
    """Compute the gradients of one cell. See `_forward_kernel`."""
    of_q_ref, of_k_ref, of_v_ref, *of_bias_ref = results
    q, k, v, grads = (_read(ref, lanes) for ref in (q_ref, k_ref, v_ref, grads_ref))
    seen, hidden = _read_mask(mask_ref)
    # In a row of padding alone hidden keys have weights. As keys that are zero they give the
    # queries no gradient.
    keys, queries, grads_ = jnp.where(seen, k, jnp.zeros_like(k)).T, q.T, grads.T
    of_q, of_k, of_v = [], [], []
    for head in range(len(bias_ref)):
        scores = _scores(q, _lanes(k, head, width), bias_ref[head], seen, hidden)
        weights = jnp.exp(scores - logsumexp_ref[0, 0, pl.ds(head, 1)])
        of_weights = _dot(_lanes(v, head, width), grads, transpose=True)
        # Gradient of a softmax: weights * (of_weights - their mean under the weights).
        mean = jnp.sum(weights * of_weights, axis=0, keepdims=True)
        wide = weights * (of_weights - mean)
        of_scores = wide.astype(q.dtype)
        of_q.append(_dot(_rows(keys, head, width), of_scores))
        of_k.append(_dot(_rows(queries, head, width), of_scores, transpose=True))
        of_v.append(_dot(_rows(grads_, head, width), weights.astype(v.dtype), transpose=True))
        if of_bias_ref:
            _add_row(of_bias_ref[0], head, jnp.where(seen, wide, 0.0))
    of_q_ref[0] = _join(of_q, q.dtype)
    of_k_ref[0] = jnp.where(seen, _join(of_k, k.dtype), jnp.zeros_like(k))
    of_v_ref[0] = _join(of_v, v.dtype)


def _read(ref, lanes):
    """Return a block [S, lanes] of an array that has so many `lanes`, zero beyond its end."""
    x = ref[0]
    if lanes % x.shape[1] == 0:
        return x
    inside = _lane(x) < lanes - pl.program_id(0) * x.shape[1]
    return jnp.where(inside, x, jnp.zeros_like(x))


def _read_mask(ref):
    """Return which keys are seen as a column [S, 1], and the score of the others [1, 1].

    Where no key is seen, the score is 0. The weights are the same for any number, but only near 0
    does float32 distinguish it from the logarithm of a sum of exp of it.
    """
    row = ref[0]
    hidden = jnp.where(jnp.max(row, axis=1, keepdims=True) > 0, MASKED, 0.0)
    return jnp.broadcast_to(row, (8, row.shape[1])).T[:, :1] > 0, hidden


def _scores(q, k, bias, seen, hidden):
    scores = _dot(k, q, transpose=True) + bias.astype(jnp.float32)
    return jnp.where(seen, scores, hidden)


def _dot(a, b, *, transpose=False):
    """Return a b, or a b^T, in float32."""
    axes = ((1,), (1,)) if transpose else ((1,), (0,))
    return jax.lax.dot_general(a, b, (axes, ((), ())), preferred_element_type=jnp.float32)


def _lane(x):
    return jax.lax.broadcasted_iota(jnp.int32, x.shape, 1)


def _lanes(x, head, width):
    """Return `x` [S, lanes] with zero in the lanes of other heads."""
    if x.shape[1] == width:
        return x
    # Compared and not divided: a division asks jax which TPU this is, and the machine that
    # compiles for one may have none.
    own = (_lane(x) >= head * width) & (_lane(x) < (head + 1) * width)
    return jnp.where(own, x, jnp.zeros_like(x))


def _rows(x, head, width):
    """Return the rows of a head of `x` [lanes, S]."""
    return x[head * width : (head + 1) * width]


def _join(heads, dtype):
    """Return [S, lanes] of one [H, S] for each head."""
    return jnp.concatenate(heads).T.astype(dtype)


def _add_row(ref, head, x):
    """Add `x` to what the cells of the rows before this one have added."""

    @pl.when(pl.program_id(1) == 0)
    def _():
        ref[head] = x

    @pl.when(pl.program_id(1) > 0)
    def _():
        ref[head] += x
