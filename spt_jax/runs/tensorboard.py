"""The numbers of a log as TensorBoard's event files, by tensorboardX (an extra): no TensorFlow.

The JSONL log is the record of a run; these files are a view of it. Resuming at step k tells
TensorBoard to forget what is after k, as the JSONL log does.
"""

import importlib
import importlib.util
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any


def require_tensorboard(wanted: bool) -> None:
    """Raises ValueError where event files are wanted and tensorboardX is not installed."""
    if wanted and importlib.util.find_spec("tensorboardX") is None:
        raise ValueError(
            "log.tensorboard needs the package tensorboardX, which is not installed; "
            "pip install 'spt_jax[tensorboard]', or leave log.tensorboard out"
        )


class EventLog:
    """Event files open for writing.

    Args:
        folder: Of the files; made where it is missing.
        resume_at: The step that the run goes on from, 0 for a new one.
    """

    def __init__(self, folder: Path, resume_at: int):
        writer = importlib.import_module("tensorboardX").SummaryWriter
        self._writer = writer(
            str(folder),
            purge_step=resume_at + 1 if resume_at else None,
            flush_secs=10,
            filename_suffix=f".{resume_at}",  # or two sessions of one second were one file
        )

    def write(self, record: Mapping[str, Any]) -> None:
        """Adds every number of a record of the log, as `train/loss` or `dev/score`."""
        step, split = record["step"], record.get("split", "train")
        for name, value in _numbers("", record):
            if name != "step":
                self._writer.add_scalar(f"{split}/{name}", value, step)

    def close(self) -> None:
        """Closes the files; harmless when repeated."""
        self._writer.close()


def _numbers(prefix: str, record: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for name, value in record.items():
        if isinstance(value, Mapping):
            yield from _numbers(f"{prefix}{name}/", value)
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            yield f"{prefix}{name}", float(value)
