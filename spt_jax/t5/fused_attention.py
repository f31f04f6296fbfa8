"""The kernels of `attention_kernel` as one differentiable function, on one device or on a mesh.

On a mesh, each device runs the kernels on its own rows and heads (`shard_map`), because XLA cannot
cut a kernel by itself. Nothing is sent between devices, except to add up the gradient of the bias.

As in `attention_vjp`, the function includes the projection of its operands. It keeps the operands,
the queries and one number for each query for the backward pass; it does not keep the result.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_derivatives import CustomVJPPrimal
from jax.sharding import Mesh

from spt_jax.sharding import CUTS, row_devices, spec
from spt_jax.t5 import attention_kernel
from spt_jax.t5.attention_vjp import drop_values
from spt_jax.typing import Array, Bool, Float

MULTIPLE = 8
"""Sublanes of a register. If they do not divide S, XLA copies all operands of a kernel."""


def fits_kernel(
    queries: jax.ShapeDtypeStruct,
    keys: jax.ShapeDtypeStruct,
    bias: Array | None,
    mask: Array | None,
    layout: str,
    mesh: Mesh | None,
    interpret: bool,
) -> bool:
    """Return whether `fused_attention` can compute attention of these shapes on these devices.

    It is self-attention with a bias that all rows share and a mask that all queries of a row share,
    in float32 or bfloat16, of as many positions as fit into the chip's VMEM.
    """
    rows, length, heads, width = queries.shape
    if layout != "BSNH" or keys.shape != queries.shape or bias is None or mask is None:
        return False
    if bias.shape != (1, heads, length, length) or mask.shape[1:] != (1, 1, length):
        return False
    if queries.dtype not in (jnp.float32, jnp.bfloat16) or bias.dtype.itemsize > 4:
        return False
    cut = 1 if mesh is None else mesh.shape["model"]
    if rows % row_devices(mesh) or heads % cut:
        return False
    device = jax.devices()[0] if mesh is None else mesh.devices.flat[0]
    itemsize = max(queries.dtype.itemsize, bias.dtype.itemsize)
    kind = None if interpret else device.device_kind
    return attention_kernel.fits(length, heads // cut, width, itemsize, kind)


def fused_attention(
    project: Callable[..., tuple[Array, Array, Array]],
    operands: tuple[Array, ...],
    bias: Float[Array, "1 N S S"] | None,
    mask: Bool[Array, "#B 1 1 S"] | None,
    keep: Float[Array, "B N 1 S"] | None,
    *,
    mesh: Mesh | None,
    interpret: bool,
) -> Float[Array, "B S N H"]:
    """Return the weighted values of every query.

    Args:
        project: `Partial` that makes queries, keys and values [B, S, N, H] of the operands, and
            holds all other arrays that it needs.
        operands: Arguments of `project`.
        bias: Array that is added to the scores. Its gradient is computed only if it is needed.
        mask: Keys that the queries of each row see. Neither is None where `fits_kernel` is true.
        keep: Factors of the weights, for dropout.
        mesh: The devices; jax's default where None.
        interpret: Run the kernels as jax programs, which is slow, on any device.
    """
    assert bias is not None and mask is not None
    if keep is not None:  # the values are smaller than the weights
        project = drop_values(project, jnp.einsum("BNHS->BSNH", keep))
    queries, _, _ = jax.eval_shape(project, *operands)
    rows, length, _, width = queries.shape
    row = jnp.broadcast_to(mask[:, 0], (rows, 1, length)).astype(jnp.float32)
    # What is kept for the backward pass is flat. XLA would store operands with heads in another
    # order of axes, and copy them for the kernel.
    in_heads = tuple(x.ndim == 4 for x in operands)
    operands = tuple(_flat(x) if split else x for x, split in zip(operands, in_heads))
    static = _Static(width, in_heads, mesh, interpret)
    result: Any = _attend(static, project, operands, jnp.swapaxes(bias[0], 1, 2), row)
    return result.reshape(queries.shape)


class _Static(NamedTuple):
    """What is known when the program is traced.

    Args:
        width: Width H of a head.
        in_heads: Which operands `project` takes as [B, S, N, H]; they are given flat.
        mesh: The devices.
        interpret: Run the kernels as jax programs.
    """

    width: int
    in_heads: tuple[bool, ...]
    mesh: Mesh | None
    interpret: bool

    @property
    def one_device(self) -> bool:
        return self.mesh is None or self.mesh.size == 1

    def project(self, project: Any, operands: tuple[Array, ...]) -> tuple[Array, ...]:
        """Return queries, keys and values, flat."""
        given = [
            x.reshape(*x.shape[:2], -1, self.width) if split else x
            for x, split in zip(operands, self.in_heads)
        ]
        return tuple(map(_flat, project(*given)))

    def run(self, kernel: Callable[..., Any], operands: str, results: str, *arrays: Array) -> Any:
        """Run a kernel on the part of each device.

        Args:
            kernel: Function of `attention_kernel`.
            operands: Axes of each operand; N stands for N * H and for the groups of heads as well.
            results: Axes of each result.
            arrays: The operands.
        """
        kernel = functools.partial(kernel, width=self.width, interpret=self.interpret)
        if not self.one_device:
            specs = [tuple(map(spec, axes.split())) for axes in (operands, results)]
            kernel = jax.shard_map(
                kernel, mesh=self.mesh, in_specs=specs[0], out_specs=specs[1], check_vma=False
            )
        return kernel(*arrays)


def _flat(x: Array) -> Array:
    return x.reshape(*x.shape[:2], -1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(static, project, operands, bias, mask):
    return _run_forward(static, static.project(project, operands), bias, mask)[0]


def _run_forward(static, sequences, bias, mask):
    axes = "BSN BSN BSN N.. B.."
    return static.run(attention_kernel.forward, axes, "BSN BN..", *sequences, bias, mask)


def _is_primal(x: Any) -> bool:
    return isinstance(x, CustomVJPPrimal)


def _forward(static, project, operands, bias, mask):
    # With `symbolic_zeros` every array comes with whether its gradient is needed.
    trained = () if bias.perturbed else None  # a tree without arrays, which may be a residual
    project, operands, bias, mask = jax.tree.map(
        lambda x: x.value, (project, operands, bias, mask), is_leaf=_is_primal
    )
    sequences = static.project(project, operands)
    result, logsumexp = _run_forward(static, sequences, bias, mask)
    return result, (trained, project, bias, mask, (operands, sequences[0], logsumexp))


def _backward(static, residuals, grads):
    trained, project, bias, mask, activations = residuals
    # The barrier stops XLA from reusing the forward values of what is projected again below
    # (common-subexpression elimination), which would keep them alive. Kernels and the bias stay
    # outside, because a barrier would copy them for every layer.
    (operands, queries, logsumexp), grads = jax.lax.optimization_barrier((activations, grads))
    (_, keys, values), pull = jax.vjp(static.project, project, operands)

    def run(*arrays, **options):
        results = attention_kernel.backward(*arrays, of_bias=trained is not None, **options)
        if trained is None or static.one_device:
            return results
        *of_sequences, of_bias = results
        return *of_sequences, jax.lax.psum(of_bias, CUTS["B"])  # each device has other rows

    of_q, of_k, of_v, *of_bias = static.run(
        run,
        "BSN BSN BSN N.. B.. BN.. BSN",
        "BSN BSN BSN" if trained is None else "BSN BSN BSN N..",
        *(queries, keys, values, bias, mask, logsumexp, grads),
    )
    of_bias = of_bias[0].astype(bias.dtype) if of_bias else None
    return *pull((of_q, of_k, of_v)), of_bias, None


_attend.defvjp(_forward, _backward, symbolic_zeros=True)
