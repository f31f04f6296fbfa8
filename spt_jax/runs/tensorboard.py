"""Write the numbers of a log to TensorBoard's event files with tensorboardX, an optional package.

Resuming at step k tells TensorBoard to drop what is after k, as the JSONL log does.
"""

import importlib
import importlib.util
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any


def require_tensorboard(wanted: bool) -> None:
    """Raise ValueError if event files are wanted and tensorboardX is not installed."""
    if wanted and importlib.util.find_spec("tensorboardX") is None:
        raise ValueError(
            "log.tensorboard needs the package tensorboardX, which is not installed; "
            "pip install 'spt_jax[tensorboard]', or leave log.tensorboard out"
        )


class EventLog:
    """Event files open for writing.

    Args:
        folder: Folder of the files. It is created if it is missing.
        resume_at: Step that the run continues from, or 0 for a new run.
    """

    def __init__(self, folder: Path, resume_at: int):
        writer = importlib.import_module("tensorboardX").SummaryWriter
        self._writer = writer(
            str(folder),
            purge_step=resume_at + 1 if resume_at else None,
            flush_secs=10,
            filename_suffix=f".{resume_at}",  # two sessions in one second would share a file
        )

    def write(self, record: Mapping[str, Any]) -> None:
        """Add every number of a record of the log, as `train/loss` or `dev/score`."""
        step, split = record["step"], record.get("split", "train")
        for name, value in _numbers("", record):
            if name != "step":
                self._writer.add_scalar(f"{split}/{name}", value, step)

    def close(self) -> None:
        """Close the files. Closing again has no effect."""
        self._writer.close()


def _numbers(prefix: str, record: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for name, value in record.items():
        if isinstance(value, Mapping):
            yield from _numbers(f"{prefix}{name}/", value)
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            yield f"{prefix}{name}", float(value)
