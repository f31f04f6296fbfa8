"""The axes of the device mesh, and which of them an array's own axes are cut along.

    data     rows of a batch
    fsdp     rows of a batch as well; the frozen weights are cut along it too, and each layer's are
             gathered when the layer runs
    model    heads, MLP features and the vocabulary: tensor parallelism

Letters are those of `typing`. An axis that is not in `CUTS` is whole on every device.
"""

from typing import TypeVar

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

MESH_AXES = ("data", "fsdp", "model")

CUTS: dict[str, str | tuple[str, ...]] = {
    "B": ("data", "fsdp"),
    "N": "model",
    "F": "model",
    "V": "model",
}
"""Of activations, and of weights when they are used. `sharding.RULES` says how weights are kept."""

Tree = TypeVar("Tree")


def spec(axes: str) -> PartitionSpec:
    """Where an array with these axes goes: `spec("BSD")` is P(("data", "fsdp"), None, None)."""
    return PartitionSpec(*(CUTS.get(axis) for axis in axes))


def constrain(x: Tree, axes: str, mesh: Mesh | None) -> Tree:
    """`x` laid out over the mesh by its axes, in a traced function; `x` itself on one device."""
    if mesh is None or mesh.size == 1:
        return x
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec(axes)))


def platform(mesh: Mesh | None) -> str:
    """`cpu`, `gpu` or `tpu`: of the mesh, or of jax where there is none."""
    return jax.default_backend() if mesh is None else mesh.devices.flat[0].platform
