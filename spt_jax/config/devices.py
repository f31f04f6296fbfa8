"""Options of devices and of processes, as frozen dataclasses. None of them changes a result."""

import dataclasses
from dataclasses import dataclass
from typing import Literal

from spt_jax.errors import require

Remat = Literal["none", "light", "minimal", "full"]
"""What of a layer is computed again in the backward pass.

    none       what costs little beside its size: norms, gates, on TPU the weights of attention
    light      and keys and values of the encoder; meant for TPU
    minimal    all but the products with kernels, on GPU the weights of attention as well
    full       all but the layer's input
"""


@dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """Devices on a grid of three axes; -1, for one of them, is what the others leave.

    Args:
        data: Devices that share the rows of a batch.
        fsdp: Devices that share the rows, and keep a part of every weight each.
        model: Devices that share heads, MLP features and vocabulary.
    """

    data: int = -1
    fsdp: int = 1
    model: int = 1

    def __post_init__(self):
        sizes = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        for name, size in sizes.items():
            require(
                size >= 1 or size == -1,
                f"mesh.{name} is {size}, expected 1 or more, or -1 for what is left",
            )
        left = [name for name, size in sizes.items() if size == -1]
        require(
            len(left) <= 1,
            f"mesh.{' and mesh.'.join(left)} are -1, expected at most one axis that is what is "
            "left; give the others a number",
        )


@dataclass(frozen=True, kw_only=True)
class DistributedConfig:
    """Processes on several hosts. On a TPU slice and under SLURM nothing has to be set.

    Args:
        coordinator: HOST:PORT, an address of process 0 that all processes reach.
        num_processes: How many there are; set with the coordinator.
        process_id: Which of them this one is, from 0; set with the coordinator.
        detect: Without a coordinator, ask the machine; false runs this process alone.
        timeout: Seconds to wait for the other processes at the start.
        heartbeat: Seconds after which a machine that does not answer counts as gone.
    """

    coordinator: str | None = None
    num_processes: int | None = None
    process_id: int | None = None
    detect: bool = True
    timeout: int = 300
    heartbeat: int = 20

    def __post_init__(self):
        names = ("coordinator", "num_processes", "process_id")
        given = [name for name in names if getattr(self, name) is not None]
        require(
            len(given) in (0, len(names)),
            f"distributed.{' and distributed.'.join(given)} is given alone; set "
            f"{', '.join(f'distributed.{name}' for name in names)} together, or none of them",
        )
        if self.coordinator is not None:
            host, _, port = self.coordinator.rpartition(":")
            require(
                bool(host) and port.isdecimal() and 0 < int(port) < 2**16,
                f"distributed.coordinator is '{self.coordinator}', expected HOST:PORT such as "
                "10.0.0.2:8476",
            )
        if self.num_processes is not None and self.process_id is not None:
            require(
                0 <= self.process_id < self.num_processes,
                f"distributed.process_id is {self.process_id}, expected 0 to "
                f"{self.num_processes - 1} with distributed.num_processes {self.num_processes}",
            )
        require(self.timeout >= 1, f"distributed.timeout is {self.timeout}, expected 1 or more")
        require(
            self.heartbeat >= 3, f"distributed.heartbeat is {self.heartbeat}, expected 3 or more"
        )
