"""Options of devices and of processes, as frozen dataclasses. None of them changes a result."""

import dataclasses
from dataclasses import dataclass
from typing import Annotated, Literal

from spt_jax.config.fields import Config, Count, Rule
from spt_jax.errors import require

Remat = Literal["none", "light", "minimal", "full"]
"""Values of a layer that the backward pass computes again, so that they need not be kept.

    none       those that cost little beside their size: norms, gates, on TPU the attention weights
    light      also keys and values of the encoder; meant for TPU
    minimal    all but the products with kernels, and on GPU the attention weights
    full       all but the layer's input
"""

AttentionVersion = Literal["auto", "plain", "fused"]
"""What computes the encoder's attention.

    auto       `fused` on TPU, `plain` elsewhere
    plain      programs of XLA, which pass the scores to each other through the memory of the device
    fused      a kernel that does not write scores, where the shapes allow it: rows are not packed,
               and at most 1,152 positions with the prompt. It is written for TPU; on other devices
               it is interpreted, which is slow and meant for tests.
"""

Axis = Annotated[int, Rule(lambda n: n >= 1 or n == -1, "1 or more, or -1 for what is left")]


@dataclass(frozen=True, kw_only=True)
class MeshConfig(Config, section="mesh"):
    """Devices on a grid of three axes. One axis may be -1: all devices that the others leave.

    Args:
        data: Number of devices that share the rows of a batch.
        fsdp: Number of devices that share the rows and keep a part of every weight each.
        model: Number of devices that share attention heads, MLP features and vocabulary.
    """

    data: Axis = -1
    fsdp: Axis = 1
    model: Axis = 1

    def check(self) -> None:
        left = [f.name for f in dataclasses.fields(self) if getattr(self, f.name) == -1]
        require(
            len(left) <= 1,
            f"mesh.{' and mesh.'.join(left)} are -1, expected at most one axis that is what is "
            "left; give the others a number",
        )


@dataclass(frozen=True, kw_only=True)
class DistributedConfig(Config, section="distributed"):
    """Processes on several hosts. On a TPU slice and under SLURM nothing has to be set.

    Args:
        coordinator: HOST:PORT, an address of process 0 that all processes reach.
        num_processes: Number of processes; set together with the coordinator.
        process_id: Number of this process, from 0; set together with the coordinator.
        detect: Without a coordinator, ask the machine for the other processes; false runs this
            process alone.
        timeout: Seconds to wait for the other processes at the start.
        heartbeat: Seconds after which a machine that does not answer counts as gone.
    """

    coordinator: str | None = None
    num_processes: Count | None = None
    process_id: int | None = None
    detect: bool = True
    timeout: Count = 300
    heartbeat: Annotated[int, Rule(lambda n: n >= 3, "3 or more")] = 20

    def check(self) -> None:
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
