"""What XLA is told about a training step, beside the program.

On CPU, XLA hands matrix products to YNNPACK, which is slower than Eigen at the sizes of a T5. That
was measured on x86 alone (docs/benchmarks.md), so other processors are left as they are.
"""

import functools
import platform as machine

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from spt_jax.axes import platform

_EIGEN = {"xla_cpu_experimental_ynn_fusion_type": ""}


def step_options(mesh: Mesh | None) -> dict[str, str]:
    """The `compiler_options` of `jax.jit` for a training step; none where XLA has no such option.

    Args:
        mesh: The devices; those of jax where None.
    """
    on_x86 = platform(mesh) == "cpu" and machine.machine().lower() in ("x86_64", "amd64")
    return dict(_EIGEN) if on_x86 and _knows_eigen() else {}


@functools.cache
def _knows_eigen() -> bool:
    """Options change with XLA's version, and one that it does not know is an error."""
    try:
        jax.jit(jnp.negative, compiler_options=_EIGEN).lower(0.0).compile()
    except jax.errors.JaxRuntimeError:
        return False
    return True
