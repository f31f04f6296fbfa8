"""Trace a few training steps with `jax.profiler`, for xprof and TensorBoard.

The trace begins and ends when the devices have finished a step, so that it has whole steps. No
other step waits for the devices.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import jax

from spt_jax.distributed.main_process import is_main
from spt_jax.runs.progress import say
from spt_jax.typing import PyTree

WARM_UP = 10
"""Steps of a session before the first traced one. They compile and fill the queues."""


def libtpu_without_tpu() -> bool:
    """Return whether this process has loaded libtpu but runs on other devices.

    The profiler of jax 0.10.2 ends such a process by SIGSEGV.
    """
    maps = Path("/proc/self/maps")
    loaded = maps.exists() and "libtpu.so" in maps.read_text()
    return loaded and jax.default_backend() != "tpu"


class StepTrace:
    """Traces steps of a training loop, on process 0. A context manager.

    Args:
        folder: Folder of the trace, `plugins/profile/<time>/<host>.xplane.pb`.
        steps: Number of traced steps, or 0 for no trace.
        start: Steps done before the session.
        stop: Steps done after it. A short session has a shorter warm-up.
        place: Folder or address shown to the user, by default `folder`.

    Raises:
        ValueError: jax cannot trace in this process.
    """

    def __init__(self, folder: Path, steps: int, *, start: int, stop: int, place: str = ""):
        if steps and libtpu_without_tpu():
            raise ValueError(
                "cannot trace: libtpu is loaded and there is no TPU, and jax's profiler would end "
                "the process; set JAX_PLATFORMS=cpu, or cuda, before it starts, or uninstall libtpu"
            )
        self._folder, self._place = folder, place or str(folder)
        steps = min(steps, stop - start) if is_main() else 0
        self._first = start + 1 + min(WARM_UP, stop - start - steps)
        self._last = self._first + steps - 1
        self._running = False

    @contextlib.contextmanager
    def step(self, number: int, state: PyTree) -> Iterator[None]:
        """Enclose the dispatch of a step.

        Args:
            number: Number of the step, from 1.
            state: State that the step before returned.
        """
        if self._running and number > self._last:
            self._stop(state)
        elif number == self._first and self._last >= self._first:
            jax.block_until_ready(state)
            jax.profiler.start_trace(self._folder)
            self._running = True
        with jax.profiler.StepTraceAnnotation("train", step_num=number):
            yield

    def __enter__(self) -> "StepTrace":
        return self

    def __exit__(self, *exc_info) -> None:
        if self._running:
            self._stop(None)

    def _stop(self, state: PyTree) -> None:
        jax.block_until_ready(state)
        jax.profiler.stop_trace()
        self._running = False
        say(
            f"traced steps {self._first} to {self._last}; to see them: "
            f"pip install xprof && xprof --logdir {self._place}"
        )
