"""Where the frozen weights, the rows and the trained leaves go on a mesh of devices.

    mesh = make_mesh(MeshConfig(data=2, fsdp=2, model=2))        8 devices
    params = jax.device_put(params, param_shardings(params, mesh))
    state = jax.device_put(state, state_shardings(state, mesh))  a prompt is whole on every device
    batch = place_batch(batch, mesh)                             rows over data and fsdp

Weights are cut by `RULES`; what is trained is cut like the weight that it is, or not at all. XLA's
partitioner does the rest: `T5` says by `axes.constrain` how its activations lie.
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental.mesh_utils import create_device_mesh
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from spt_jax.axes import CUTS, MESH_AXES, spec
from spt_jax.config.devices import MeshConfig
from spt_jax.pytree import leaf_name, named_leaves
from spt_jax.typing import PyTree

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
"""T5's parameters and their axes: N is N * H, heads first; `.` is an axis that is never cut."""

WEIGHT_CUTS = {"D": "fsdp", "N": "model", "F": "model", "V": "model"}
"""The mesh axis that an axis of a weight is cut along where it is kept."""

_CALLED = {"D": "d_model", "N": "heads", "F": "d_ff", "V": "vocab_size"}


def make_mesh(config: MeshConfig, devices: Sequence[Any] | None = None) -> Mesh:
    """The mesh of a config.

    Args:
        config: Its axes; one may be -1, for what the others leave.
        devices: All that there are by default. Where the axes need fewer, the first are taken.

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
    # jax.make_mesh refuses axes that are no product of a slice's own, such as fsdp=2 on v6e:4x4.
    placed = create_device_mesh(sizes, devices[:needed], allow_split_physical_axes=True)
    return Mesh(placed, MESH_AXES, axis_types=(AxisType.Auto,) * 3)


def param_shardings(params: PyTree, mesh: Mesh) -> PyTree:
    """How the parameters of a T5 are kept: cut over `fsdp` and `model` by `RULES`.

    Args:
        params: Of a T5, or their `ShapeDtypeStruct`s.
        mesh: The devices.

    Raises:
        ValueError: A leaf has no rule or several, or an axis of the mesh does not divide it.
    """

    def place(path, leaf):
        return param_sharding(leaf_name(path), leaf.shape, mesh)

    return jax.tree_util.tree_map_with_path(place, params)


def param_sharding(name: str, shape: tuple[int, ...], mesh: Mesh) -> NamedSharding:
    """How one parameter is kept.

    Args:
        name: Its path, such as `encoder/layers/mlp/wo/kernel`.
        shape: Its shape.
        mesh: The devices.

    Raises:
        ValueError: See `param_shardings`.
    """
    found = [axes for pattern, axes in RULES if re.fullmatch(pattern, name)]
    if len(found) != 1:
        raise ValueError(
            f"parameter {name} has {len(found)} rules of sharding, expected one; "
            "its path must match one line of sharding.RULES"
        )
    [axes] = found
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
    """How a train state is kept: a prompt and its slots whole on every device.

    Where the model is tuned, its weights and the slots of their shape are cut as `param_shardings`
    has them. The other slots are whole: they are those that Adafactor keeps of rows and columns.

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
    """Whole on every device."""
    return NamedSharding(mesh, PartitionSpec())


def row_devices(mesh: Mesh | None) -> int:
    """Over how many devices the rows of a batch are spread; 1 where there is no mesh."""
    return 1 if mesh is None else math.prod(mesh.shape[axis] for axis in CUTS["B"])


def spreadable_rows(mesh: Mesh | None, rows: int) -> int:
    """The least number of rows, `rows` or more, that spreads evenly over the devices."""
    return -(-rows // row_devices(mesh)) * row_devices(mesh)


def require_rows(mesh: Mesh, rows: int, what: str) -> None:
    """Raises ValueError where the rows of a batch cannot be spread evenly.

    Args:
        mesh: The devices.
        rows: Of a batch.
        what: How the user calls this number, such as `data.batch_size`.
    """
    if rows % row_devices(mesh):
        sizes = [mesh.shape[axis] for axis in MESH_AXES]
        raise ValueError(
            f"{what} {rows} does not divide over data * fsdp = {row_devices(mesh)} of the mesh "
            f"{_show(sizes)}; expected a multiple, or another --mesh.data"
        )


def place_batch(batch: Mapping[str, np.ndarray], mesh: Mesh | None) -> dict[str, Any]:
    """A batch on its devices, rows over `data` and `fsdp`; each process transfers its rows alone.

    Returns at once: the rows travel while the devices compute. Without a mesh the batch stays as
    it is.
    """
    if mesh is None:
        return dict(batch)
    placed = {}
    for name, array in batch.items():
        sharding = NamedSharding(mesh, spec("B" + "." * (array.ndim - 1)))
        placed[name] = jax.make_array_from_callback(array.shape, sharding, array.__getitem__)
    return placed


def _divisors(size: int) -> str:
    *others, last = [str(n) for n in range(1, min(size, 256) + 1) if size % n == 0]
    return f"{', '.join(others)} or {last}" if others else last


def _show(sizes: Sequence[int]) -> str:
    return " ".join(f"{axis}={size}" for axis, size in zip(MESH_AXES, sizes))
