"""Saves of a run: when one is due, and the last one of a run that must leave.

Process 0 saves; all processes call these functions, as a state may be spread over them.

Invariant: when a step is saved, the logs hold everything up to it, on the disk.
"""

import time
from collections.abc import Mapping, Sequence
from typing import Any

from spt_jax.config.train import LogConfig
from spt_jax.distributed.main_process import broadcast
from spt_jax.runs.checkpoints import Checkpoints, Restored
from spt_jax.runs.log import RunLog
from spt_jax.typing import PyTree


class Saver:
    """Saves the steps of one run.

    Args:
        checkpoints: Where to.
        logs: What must be on the disk before.
        config: How often.
        metadata: JSON values that describe the run.
    """

    def __init__(
        self,
        checkpoints: Checkpoints,
        logs: Sequence[RunLog],
        config: LogConfig,
        metadata: Mapping[str, Any],
    ):
        self._checkpoints, self._logs, self._metadata = checkpoints, logs, metadata
        self._config = config
        self._since = time.monotonic()

    def due(self, step: int) -> bool:
        """Whether it is time for a save: by steps or, where a line of the log is due, by the clock.

        The clock is that of process 0, and all processes ask at the same steps.
        """
        if step % self._config.checkpoint_every == 0:
            return True
        minutes = self._config.checkpoint_minutes
        if minutes is None or step % self._config.every:
            return False
        return broadcast(time.monotonic() - self._since >= 60 * minutes)

    def save(self, step: int, state: PyTree, *, evaluated: bool = True) -> None:
        """Starts saving a step.

        Args:
            step: Its number.
            state: After it.
            evaluated: Nothing that the run does at this step is left to do.

        Raises:
            RunError: A log could not be written, or the save before this one failed.
        """
        for log in self._logs:
            log.sync()
        metadata = {**self._metadata, "evaluated": evaluated}
        self._checkpoints.save(step, state, metadata)
        self._since = time.monotonic()

    def save_and_wait(self, step: int, state: PyTree, *, evaluated: bool) -> None:
        """Save a step, and return when it is saved. The arguments are those of `save`.

        Raises:
            RunError: It could not be saved.
        """
        self.save(step, state, evaluated=evaluated)
        self._checkpoints.wait()


def was_evaluated(restored: Restored | None) -> bool:
    """Whether a resumed run has nothing left to do at the step that it goes on from."""
    return restored is None or restored.metadata.get("evaluated", True)
