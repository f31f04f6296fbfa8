"""Commands run by several real processes on this machine, each as if it were a host of its own."""

import atexit
import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn


@dataclass
class Ended:
    """How one process ended."""

    code: int
    out: str
    err: str


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


class Host:
    """A process that runs `spt-jax`; its methods are those of `subprocess.Popen`."""

    def __init__(self, argv: Sequence[str], folder: Path, number: int):
        self._process = _SERVER.Process(target=_run, args=([*argv], folder, number))
        self._process.start()

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self.returncode

    def wait(self, seconds: float | None = None) -> None:
        self._process.join(seconds)
        if self.returncode is None:
            raise TimeoutError(f"process {self._process.pid} runs after {seconds} s")

    def send_signal(self, number: int) -> None:
        os.kill(self._process.pid, number)


# Importing takes a process longer than what it then does here. So one process imports what the
# commands need, without starting jax, and each host is a fork of it.
_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(
    [f"spt_jax.{name}" for name in ("train", "evaluation.evaluate", "prediction.jsonl", "cli.main")]
)


def _run(argv: Sequence[str], folder: Path, number: int) -> NoReturn:
    """Run a command in a folder, with the files `out` and `err` there as its output."""
    import jax

    from spt_jax.cli.main import main

    os.chdir(folder)
    for stream, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(f"{name}{number}", os.O_WRONLY | os.O_TRUNC), stream)
    jax.config.update("jax_num_cpu_devices", 1)
    code = main(argv)
    atexit._run_exitfuncs()  # jax leaves the other processes there; multiprocessing skips it
    sys.exit(code)


def start(argv: Sequence[str], folders: Sequence[Path], *, heartbeat: int = 6) -> list[Host]:
    """Start `spt-jax` once in each folder, which stands for the disk of a host."""
    port = free_port()
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
        for name in ("out", "err"):
            (folder / f"{name}{index}").touch()
        processes.append(Host([*argv, *flags], folder, index))
    return processes


def finish(processes: Sequence[Host], folders: Sequence[Path], seconds: float = 600) -> list[Ended]:
    """Wait for the processes; kill what is left after `seconds`, and fail."""
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


def wait_for(found: Callable[[], bool], processes: Sequence[Host]) -> None:
    """Wait until something is so, while the processes run."""
    deadline = time.monotonic() + 400
    while not found():
        assert all(process.poll() is None for process in processes), "a process has ended"
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)
