"""Measure the speed of a run: steps and examples per second, utilisation, and the wait for data.

A lap is the steps from one line of the log to the next. Timing it fetches nothing from the devices.
Laps exclude evaluations, saves and the first steps of a session, which compile.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from spt_jax.runs.log import RunLog

Batch = TypeVar("Batch", bound=Mapping[str, np.ndarray])


class Clock:
    """Times the steps of a run.

    Args:
        timing: Log that gets a record of each lap.
        flops: Function that returns the operations of a step on a batch.
        peak: Operations that the devices can do in a second, or None if unknown.
    """

    def __init__(self, timing: RunLog, flops: Callable[[Any], float], peak: float | None):
        self._timing, self._flops, self._peak = timing, flops, peak
        self._since: float | None = None
        self._waiting = 0.0
        self._running: deque[tuple[int, float]] = deque()  # (rows, operations) of a step

    def watch(self, batches: Iterator[tuple[Any, Batch]]) -> Iterator[tuple[Any, Batch]]:
        """Yield (labels, batch) of each step, and add up the time that batches are waited for.

        The devices may be busy with earlier steps meanwhile, so they wait as long at most.
        """
        while True:
            started = time.perf_counter()
            labelled = next(batches, None)
            self._waiting += time.perf_counter() - started
            if labelled is None:
                return
            batch = labelled[1]
            self._running.append((len(batch["targets"]), self._flops(batch)))
            yield labelled

    def lap(self, step: int, steps: int) -> dict[str, float]:
        """Log the `steps` that were finished since the last lap, and return their speed."""
        finished = [self._running.popleft() for _ in range(steps)]
        waiting, self._waiting = self._waiting, 0.0
        now, since = time.perf_counter(), self._since
        self._since = now
        if since is None or not steps:
            return {}
        seconds, examples = now - since, sum(rows for rows, _ in finished)
        speed, examples_speed = steps / seconds, examples / seconds
        record = {
            "step": step,
            "steps": steps,
            "examples": examples,
            "seconds": seconds,
            "waiting_seconds": waiting,
            "steps_per_second": speed,
            "examples_per_second": examples_speed,
        }
        shown = {"steps/s": speed, "examples/s": examples_speed}
        shown["waiting%"] = 100 * waiting / seconds
        if self._peak is not None:
            record["mfu"] = sum(flops for _, flops in finished) / seconds / self._peak
            shown["mfu%"] = 100 * record["mfu"]
        self._timing.write(record)
        return shown

    def restart(self) -> None:
        """Start a lap now."""
        self._since, self._waiting = time.perf_counter(), 0.0


def summarize(laps: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """Return the speed over all laps of a run, or None if there is no lap or no known peak.

    Args:
        laps: Records of timing.jsonl.
    """
    seconds = sum(lap["seconds"] for lap in laps)

    def rate(total: float) -> float | None:
        return total / seconds if seconds else None

    known = all("mfu" in lap for lap in laps)
    return {
        "steps_per_second": rate(sum(lap["steps"] for lap in laps)),
        "examples_per_second": rate(sum(lap["examples"] for lap in laps)),
        "waiting_share": rate(sum(lap["waiting_seconds"] for lap in laps)),
        "mfu": rate(sum(lap["mfu"] * lap["seconds"] for lap in laps)) if known else None,
    }
