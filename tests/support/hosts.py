"""Commands run by several real processes on this machine, each as if it were a host of its own."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass
class Ended:
    """How one process ended."""

    code: int
    out: str
    err: str


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def start(
    argv: Sequence[str], folders: Sequence[Path], *, heartbeat: int = 6, devices: int = 1
) -> list[subprocess.Popen]:
    """Starts `spt-jax` once in each folder, which stands for the disk of a host."""
    port = free_port()
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": str(devices)}
    processes = []
    for index, folder in enumerate(folders):
        folder.mkdir(parents=True, exist_ok=True)
        flags = [
            f"--distributed.coordinator=127.0.0.1:{port}",
            f"--distributed.num_processes={len(folders)}",
            f"--distributed.process_id={index}",
            f"--distributed.heartbeat={heartbeat}",
            "--distributed.timeout=120",
        ]
        if len(folders) == 1:
            flags = ["--distributed.detect=false"]
        with open(folder / f"out{index}", "w") as out, open(folder / f"err{index}", "w") as err:
            command = [sys.executable, "-m", "spt_jax", *argv, *flags]
            processes.append(
                subprocess.Popen(
                    command,
                    cwd=folder,
                    env=environment,
                    stdout=out,
                    stderr=err,
                    stdin=subprocess.DEVNULL,
                )  # fmt: skip
            )
    return processes


def finish(
    processes: Sequence[subprocess.Popen], folders: Sequence[Path], seconds: float = 600
) -> list[Ended]:
    """Waits for the processes; kills what is left after `seconds`, and fails."""
    deadline = time.monotonic() + seconds
    try:
        for process in processes:
            process.wait(max(0.1, deadline - time.monotonic()))
    finally:
        for process in processes:
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
                process.wait()
    return [
        Ended(process.returncode, (f / f"out{i}").read_text(), (f / f"err{i}").read_text())
        for i, (process, f) in enumerate(zip(processes, folders))
    ]


def wait_for(found: Callable[[], bool], processes: Sequence[subprocess.Popen]) -> None:
    """Waits until something is so, while the processes run."""
    deadline = time.monotonic() + 400
    while not found():
        assert all(process.poll() is None for process in processes), "a process has ended"
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)
