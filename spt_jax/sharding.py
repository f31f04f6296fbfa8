"""The device mesh, and how arrays are cut over it.

    mesh = make_mesh(MeshConfig(data=2, fsdp=2, model=2))        8 devices
    params = jax.device_put(params, param_shardings(params, mesh))
    state = jax.device_put(state, state_shardings(state, mesh))  a prompt is whole on every device
    batch = place_batch(batch, mesh)                             rows over data and fsdp

The mesh has three axes:

    data     rows of a batch
    fsdp     rows of a batch as well; each device also stores only a part of every frozen weight,
             and a layer's weights are gathered when the layer runs
    model    heads, MLP features and the vocabulary: tensor parallelism

`RULES` says how weights are stored, and `CUTS` how activations lie and how weights lie while they
are used. A trained weight is cut like a frozen one. T5 marks its activations with `constrain`, and
XLA's partitioner derives everything else. Axis letters are those of `typing`.
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental.mesh_utils import create_device_mesh
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from spt_jax.config.devices import MeshConfig
from spt_jax.pytree import leaf_name, named_leaves
from spt_jax.typing import PyTree

MESH_AXES = ("data", "fsdp", "model")

CUTS: dict[str, str | tuple[str, ...]] = {
    "B": ("data", "fsdp"),
    "N": "model",
    "F": "model",
    "V": "model",
}
"""The mesh axes that an axis of an activation, or of a weight in use, is cut along.

An axis that is not listed is whole on every device.
"""

RULES = (
    ("token_embedder/embedding", "VD"),
    ("(encoder|decoder)/relpos_bias/rel_embedding", "N."),
    ("encoder/layers/attention/(query|key|value)/kernel", "LDN"),
    ("encoder/layers/attention/out/kernel", "LND"),
    ("decoder/layers/(self|encoder_decoder)_attention/(query|key|value)/kernel", "LDN"),
    ("decoder/layers/(self|encoder_decoder)_attention/out/kernel", "LND"),
    ("(encoder|decoder)/layers/mlp/(wi|wi_0|wi_1)/kernel", "LDF"),
    ("(encoder|decoder)/layers/mlp/wo/kernel", "LFD"),
    (r"(encoder|decoder)/layers/pre_\w+_layer_norm/scale", "L."),
    ("(encoder|decoder)/(encoder|decoder)_norm/scale", "."),
    ("decoder/logits_dense/kernel", "DV"),
)
"""The axes of every parameter of T5. N stands for N * H, heads first; `.` is never cut.

A matrix in int8 is two arrays: `.../values` has these axes, and `.../scales` has them without the
input axis (`t5.quantize`), which is D of the embedding table VD and the last but one of a kernel.
"""

WEIGHT_CUTS = {"D": "fsdp", "N": "model", "F": "model", "V": "model"}
"""The mesh axis that an axis of a stored weight is cut along."""

_CALLED = {"D": "d_model", "N": "heads", "F": "d_ff", "V": "vocab_size"}

Tree = TypeVar("Tree")


def spec(axes: str) -> PartitionSpec:
    """Return how an array with these axes is cut.

    `spec("BSD")` is P(("data", "fsdp"), None, None).
    """
    return PartitionSpec(*(CUTS.get(axis) for axis in axes))


def constrain(x: Tree, axes: str, mesh: Mesh | None) -> Tree:
    """Lay `x` out over the mesh by its axes, in a traced function; on one device return `x`."""
    if mesh is None or mesh.size == 1:
        return x
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec(axes)))


def platform(mesh: Mesh | None) -> str:
    """Return `cpu`, `gpu` or `tpu`: that of the mesh, or jax's default without a mesh."""
    return jax.default_backend() if mesh is None else mesh.devices.flat[0].platform


def make_mesh(config: MeshConfig, devices: Sequence[Any] | None = None) -> Mesh:
    """Arrange devices in the mesh of a config.

    Args:
        config: Sizes of the axes. One may be -1: it gets the devices that the others leave.
        devices: Devices to use, by default all. If the axes need fewer, the first are taken.

    Raises:
        ValueError: The axes do not fit the devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = [getattr(config, axis) for axis in MESH_AXES]
    fixed = math.prod(size for size in sizes if size != -1)
    kind = f"{len(devices)} ({devices[0].device_kind})"
    if -1 in sizes:
        if len(devices) % fixed:
            raise ValueError(
                f"mesh {_show(sizes)} does not divide the number of devices, {kind}; the fixed "
                f"axes multiply to {fixed}, expected a divisor of {len(devices)}"
            )
        sizes[sizes.index(-1)] = len(devices) // fixed
    needed = math.prod(sizes)
    if needed > len(devices) or (needed < len(devices) and jax.process_count() > 1):
        raise ValueError(
            f"mesh {_show(sizes)} needs {needed} devices but there are {kind}; "
            "change an axis, or set one to -1 for what is left"
        )
    # jax.make_mesh refuses an axis that does not match the axes of the TPU slice, such as fsdp=2 on
    # v6e:4x4.
    placed = create_device_mesh(sizes, devices[:needed], allow_split_physical_axes=True)
    return Mesh(placed, MESH_AXES, axis_types=(AxisType.Auto,) * 3)


def param_shardings(params: PyTree, mesh: Mesh) -> PyTree:
    """Return how the parameters of a T5 are stored: cut over `fsdp` and `model` by `RULES`.

    Args:
        params: Parameters of a T5, or their `ShapeDtypeStruct`s.
        mesh: The devices.

    Raises:
        ValueError: A leaf has no rule or several, or a mesh axis does not divide an axis of it.
    """

    def place(path, leaf):
        return param_sharding(leaf_name(path), leaf.shape, mesh)

    return jax.tree_util.tree_map_with_path(place, params)


def param_sharding(name: str, shape: tuple[int, ...], mesh: Mesh) -> NamedSharding:
    """Return how one parameter is stored.

    Args:
        name: Path of the parameter, such as `encoder/layers/mlp/wo/kernel`.
        shape: Shape of the parameter.
        mesh: The devices.

    Raises:
        ValueError: See `param_shardings`.
    """
    matrix = re.sub("/(values|scales)$", "", name)
    found = [axes for pattern, axes in RULES if re.fullmatch(pattern, matrix)]
    if len(found) != 1:
        raise ValueError(
            f"parameter {name} has {len(found)} rules of sharding, expected one; "
            "its path must match one line of sharding.RULES"
        )
    [axes] = found
    if name == f"{matrix}/scales":
        axes = "V" if axes == "VD" else axes[:-2] + axes[-1]
    if len(axes) != len(shape):
        raise ValueError(
            f"parameter {name} has shape {list(shape)} but its rule of sharding has the "
            f"{len(axes)} axes {axes}"
        )
    for axis, size in zip(axes, shape):
        cut = WEIGHT_CUTS.get(axis)
        if cut is not None and size % mesh.shape[cut]:
            raise ValueError(
                f"mesh axis '{cut}' ({mesh.shape[cut]}) does not divide {_CALLED[axis]} {size} of "
                f"{name}; use {cut}={_divisors(size)}"
            )
    return NamedSharding(mesh, PartitionSpec(*(WEIGHT_CUTS.get(axis) for axis in axes)))


def state_shardings(state: PyTree, mesh: Mesh) -> PyTree:
    """Return how a train state is stored: a prompt and its slots are whole on every device.

    In model tuning, weights and optimizer slots of a weight's shape are cut as in
    `param_shardings`. The other slots, Adafactor's means over rows and columns, are whole.

    Args:
        state: A `TrainState`, or its `ShapeDtypeStruct`s.
        mesh: The devices.
    """
    shapes = dict(named_leaves(state.trained))

    def place(path, leaf):
        _, tuned, name = f"/{leaf_name(path)}".rpartition("/t5/")
        if tuned and leaf.shape == shapes[f"t5/{name}"].shape:
            return param_sharding(name, leaf.shape, mesh)
        return replicated(mesh)

    return jax.tree_util.tree_map_with_path(place, state)


def replicated(mesh: Mesh) -> NamedSharding:
    """Return the sharding of an array that is whole on every device."""
    return NamedSharding(mesh, PartitionSpec())


def row_devices(mesh: Mesh | None) -> int:
    """Return how many devices share the rows of a batch: data * fsdp, or 1 without a mesh."""
    return 1 if mesh is None else math.prod(mesh.shape[axis] for axis in CUTS["B"])


def spreadable_rows(mesh: Mesh | None, rows: int) -> int:
    """Round `rows` up to a multiple of `row_devices`."""
    return -(-rows // row_devices(mesh)) * row_devices(mesh)


def require_rows(mesh: Mesh, rows: int, what: str) -> None:
    """Require that the rows of a batch spread evenly over the devices.

    Args:
        mesh: The devices.
        rows: Rows of a batch.
        what: Name of this number for the user, such as `data.batch_size`.

    Raises:
        ValueError: `rows` is no multiple of `row_devices`.
    """
    if rows % row_devices(mesh):
        sizes = [mesh.shape[axis] for axis in MESH_AXES]
        raise ValueError(
            f"{what} {rows} does not divide over data * fsdp = {row_devices(mesh)} of the mesh "
            f"{_show(sizes)}; expected a multiple, or another --mesh.data"
        )


def place_batch(
    batch: Mapping[str, np.ndarray], mesh: Mesh | None, axes: str = "B"
) -> dict[str, Any]:
    """Put a batch on the devices, its rows cut over `data` and `fsdp`.

    Each process transfers only its own rows. The call returns before the transfer is done, so
    that it overlaps with computation. Without a mesh the arrays stay as they are.

    Args:
        batch: The arrays.
        mesh: The devices.
        axes: The first axes of each array: `B`, or `.B` for the batches of several runs.
    """
    if mesh is None:
        return dict(batch)
    placed = {}
    for name, array in batch.items():
        sharding = NamedSharding(mesh, spec(axes + "." * (array.ndim - len(axes))))
        placed[name] = jax.make_array_from_callback(array.shape, sharding, array.__getitem__)
    return placed


def _divisors(size: int) -> str:
    *others, last = [str(n) for n in range(1, min(size, 256) + 1) if size % n == 0]
    return f"{', '.join(others)} or {last}" if others else last


def _show(sizes: Sequence[int]) -> str:
    return " ".join(f"{axis}={size}" for axis, size in zip(MESH_AXES, sizes))
