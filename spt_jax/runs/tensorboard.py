"""Write the numbers of a log to TensorBoard's event files with tensorboardX, an optional package.

Resuming at step k tells TensorBoard to drop what is after k, as the JSONL log does.
"""

import importlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any


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
        for name, value in numbers_of(record).items():
            self._writer.add_scalar(name, value, record["step"])

    def close(self) -> None:
        """Close the files. Closing again has no effect."""
        self._writer.close()


def numbers_of(record: Mapping[str, Any]) -> dict[str, float]:
    """Return every number of a record of the log but its step, as `train/loss` or `dev/score`."""
    split = record.get("split", "train")
    return {f"{split}/{name}": value for name, value in _numbers("", record) if name != "step"}


def _numbers(prefix: str, record: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for name, value in record.items():
        if isinstance(value, Mapping):
            yield from _numbers(f"{prefix}{name}/", value)
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            yield f"{prefix}{name}", float(value)
