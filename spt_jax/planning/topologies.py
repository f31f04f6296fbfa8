"""TPU chips, and slices of them that programs can be compiled for without a TPU.

`libtpu` contains the compiler of every generation and compiles for a slice by its name.
"""

import importlib.util
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax

from spt_jax.errors import suggest
from spt_jax.t5.flops import PEAK_FLOPS

GIB = 2**30
_FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_CUBES = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8")
_OLD = ("2x2", "4x4", "4x8", "8x8", "8x16", "16x16")


@dataclass(frozen=True)
class Chip:
    """A device of jax: a chip, or in v2 and v3 one of a chip's two cores.

    Args:
        kind: jax's name of the device.
        memory: Bytes that the compiler lets a program use.
        bandwidth: Bytes per second from and to the memory.
        links: Bytes per second over all links to other chips, in both directions together.
        shapes: Shapes of slices, in chips.
        options: Options for the compiler.
    """

    kind: str
    memory: int
    bandwidth: float
    links: float
    shapes: tuple[str, ...]
    options: tuple[tuple[str, str], ...] = ()

    @property
    def flops(self) -> float:
        """Return the bfloat16 operations per second."""
        return PEAK_FLOPS[self.kind]


CHIPS = {
    "v2": Chip("TPU v2", int(7.48 * GIB), 350e9, 124e9, _OLD),
    "v3": Chip("TPU v3", int(15.48 * GIB), 450e9, 164e9, _OLD),
    # A program runs on both cores of a v4 as one device, as Cloud TPU sets it up.
    "v4": Chip(
        "TPU v4", int(30.75 * GIB), 1228e9, 300e9, _CUBES, (("chip_config_name", "megacore"),)
    ),
    "v5e": Chip("TPU v5 lite", int(15.75 * GIB), 819e9, 200e9, _FLAT),
    "v5p": Chip("TPU v5", int(95.73 * GIB), 2765e9, 600e9, _CUBES),
    "v6e": Chip("TPU v6 lite", int(31.24 * GIB), 1640e9, 448e9, _FLAT),
}
"""Speeds are Google Cloud's per chip, and half of them for v2 and v3, whose devices are cores. The
memory is what the compiler of libtpu 0.0.52 reports as available."""


def load_topology(name: str) -> tuple[Chip, Sequence[Any]]:
    """Return the chip and the devices of a slice, for compiling only.

    This removes `XLA_FLAGS` from the environment of the process.

    Args:
        name: Generation and shape, such as `v5e:4x4`.

    Raises:
        ValueError: The slice does not exist, or `libtpu` is not installed.
    """
    generation, _, shape = name.partition(":")
    known = [f"{chip}:{shape}" for chip, row in CHIPS.items() for shape in row.shapes]
    if generation not in CHIPS or not shape:
        raise ValueError(
            f"unknown topology '{name}'; expected a generation of {', '.join(CHIPS)} and a shape "
            f"in chips, such as v5e:4x4 or v4:2x2x4{suggest(name, known)}"
        )
    if importlib.util.find_spec("libtpu") is None:
        raise ValueError(
            "compiling for a TPU needs the package libtpu, which is not installed; "
            "pip install 'spt_jax[tpu-plan]'"
        )
    # Without a TPU, libtpu must not ask for its type, and several processes may load libtpu.
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    from jax.experimental import topologies

    # libtpu ends the process if it finds a flag that only jaxlib's compiler knows.
    os.environ.pop("XLA_FLAGS", None)
    chip = CHIPS[generation]
    try:
        found = topologies.get_topology_desc(
            platform="tpu", topology_name=name, **dict(chip.options)
        )
    except jax.errors.JaxRuntimeError as error:
        if "INVALID_ARGUMENT" not in str(error):
            raise
        raise ValueError(
            f"unknown topology '{name}'; slices of {generation} have the shapes "
            f"{', '.join(chip.shapes)}{suggest(name, known)}"
        ) from error
    return chip, found.devices
