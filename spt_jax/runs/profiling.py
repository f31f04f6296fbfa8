"""A trace of a few training steps by `jax.profiler`, which xprof and TensorBoard open.

The devices are waited for where the trace begins and where it ends, so that it holds whole steps;
at every other step nothing is waited for.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import jax

from spt_jax.distributed.main_process import is_main
from spt_jax.runs.progress import say
from spt_jax.typing import PyTree

WARM_UP = 10
"""Steps of a session before the first that is traced: these compile, and fill the queues."""


def libtpu_without_tpu() -> bool:
    """Whether this process has loaded libtpu and runs on other devices: jax 0.10.2's profiler ends
    such a process by SIGSEGV."""
    maps = Path("/proc/self/maps")
    loaded = maps.exists() and "libtpu.so" in maps.read_text()
    return loaded and jax.default_backend() != "tpu"


class StepTrace:
    """Traces steps of a training loop, on process 0. A context manager.

    Args:
        folder: Where the trace is written, in `plugins/profile/<time>/<host>.xplane.pb`.
        steps: How many steps are traced; 0 traces none.
        start: Steps done before the session.
        stop: Steps done after it. Where it is short, the warm-up is shorter.
        place: Where the trace will be kept, if that is elsewhere.

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
        """Around the dispatch of the step `number`.

        Args:
            number: From 1.
            state: What the step before has made.
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
