"""Write the files of a run: JSONL logs, files that are replaced atomically, and a folder's lock.

What is logged is decided elsewhere: values of a step in `step.step_metrics`, of an evaluation in
`evaluation/scores.py`, of speed in `runs/timing.py`.

Resuming at step k drops every record after k from a log, so that an interrupted run has the same
bytes in its log as an undisturbed one.

Invariant: a line reaches the operating system before `write` returns, and a reader never sees half
of a line.
"""

import fcntl
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Protocol

from spt_jax.errors import RunError


def write_atomic(path: str | os.PathLike, data: bytes) -> None:
    """Replace a file so that it has the old bytes or the new ones, whenever the process dies.

    Args:
        path: The file. Its folder exists.
        data: The new content.

    Raises:
        RunError: The file could not be written (disk full, no permission). The old one remains.
    """
    path = Path(path)
    draft = path.with_name(f".{path.name}.tmp")
    try:
        with open(draft, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
        _sync(path.parent)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise _cannot_write(path, error) from error


def write_json_atomic(path: str | os.PathLike, obj: Any) -> None:
    """Write a JSON document as `write_atomic` does. Numbers that are not finite become strings.

    Raises:
        RunError: The file could not be written.
        TypeError: A value in `obj` has no JSON form.
    """
    write_atomic(path, (json.dumps(_plain(obj), indent=2, allow_nan=False) + "\n").encode())


def sync_tree(folder: str | os.PathLike) -> None:
    """Wait until a folder, all of its files and its own name are on the disk.

    Args:
        folder: The folder. Any library may have written the files or renamed the folder.

    Raises:
        OSError: The disk failed.
    """
    for place, _, files in os.walk(folder, topdown=False):
        for name in files:
            _sync(Path(place) / name)
        _sync(Path(place))
    _sync(Path(folder).parent)


def lock_folder(directory: str | os.PathLike) -> IO:
    """Make a folder and lock it. The lock ends with the process, however that dies.

    Returns:
        The open lock file. Closing it unlocks the folder. File systems that do not support locks
        lock nothing.

    Raises:
        RunError: Another process has the lock, or the folder cannot be written.
        ValueError: There is a file instead of the folder.
    """
    directory = Path(directory)
    whole = directory.absolute()
    try:
        new = [place for place in (whole, *whole.parents) if not place.exists()]
        directory.mkdir(parents=True, exist_ok=True)
        for place in new:
            _sync(place.parent)
        file = open(directory / ".lock", "w")
    except (FileExistsError, NotADirectoryError) as error:
        raise ValueError(
            f"{directory} cannot be a folder: a file is in its place; choose another --workdir"
        ) from error
    except OSError as error:
        raise _cannot_write(directory, error) from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.close()
        raise RunError(
            f"another process is using {directory}; wait for it to end or choose another --workdir"
        ) from error
    except OSError:  # some network file systems
        pass
    return file


def read_log(path: str | os.PathLike) -> list[dict]:
    """Return the records of a log, without the incomplete last line of a killed process.

    Raises:
        FileNotFoundError: The file does not exist.
        ValueError: A line is not a record.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"log {path} does not exist; expected a .jsonl file of a run")
    return [record for _, record in _lines(path)]


class Listener(Protocol):
    """Another log, which gets every record that a log has written."""

    def write(self, record: Mapping[str, Any]) -> None:
        """Take one record, with Python's own numbers."""
        ...

    def close(self) -> None:
        """End the log. Closing again has no effect."""
        ...


class RunLog:
    """A log open for writing. Of several processes, only process 0 writes.

    Args:
        path: The .jsonl file. Its folder exists.
        resume_at: Step that the run continues from. Later records and an incomplete last line are
            dropped. None starts an empty log.
        evaluated: Whether to keep the evaluation of that step, because it will not be repeated.
        listeners: Function that opens what gets the same records. Process 0 alone calls it.

    Raises:
        RunError: The file cannot be written.
        ValueError: A line before the last is not a record.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        *,
        resume_at: int | None = None,
        evaluated: bool = True,
        listeners: Callable[[], Sequence[Listener]] = tuple,
    ):
        self._path = Path(path)
        self._file: IO[bytes] | None = None
        self._listeners: Sequence[Listener] = ()
        # Imported here, so that reading a log needs no jax.
        from spt_jax.distributed.main_process import on_main

        on_main(lambda: self._open(resume_at, evaluated, listeners))

    def _open(
        self,
        resume_at: int | None,
        evaluated: bool,
        listeners: Callable[[], Sequence[Listener]],
    ) -> None:
        kept = []
        if resume_at is not None and self._path.exists():
            # A record with a split is an evaluation, and follows the metrics of its step.
            last = (resume_at, evaluated)
            kept = [
                line
                for line, record in _lines(self._path)
                if (record["step"], "split" in record) <= last
            ]
        write_atomic(self._path, b"".join(kept))
        self._file = open(self._path, "ab", buffering=0)
        self._listeners = listeners()

    def write(self, record: Mapping[str, Any]) -> None:
        """Add one line, which a SIGKILL right after this call does not lose.

        Args:
            record: JSON values and scalars of numpy or jax, with an integer "step".

        Raises:
            RunError: The line could not be written.
            ValueError: There is no integer "step", which resuming needs.
        """
        if self._file is None:
            return
        plain = _plain(record)
        if type(plain.get("step")) is not int:
            raise ValueError(
                f"log record {plain} has step {plain.get('step')!r}, expected an integer step"
            )
        line = (json.dumps(plain, allow_nan=False) + "\n").encode()
        try:
            written = self._file.write(line)
        except OSError as error:
            raise _cannot_write(self._path, error) from error
        if written != len(line):
            raise RunError(
                f"{self._path} could not be written: {written} of {len(line)} bytes fit on the "
                "disk; free space there and run the same command again"
            )
        for listener in self._listeners:
            listener.write(plain)

    def sync(self) -> None:
        """Wait until every line is on the disk, so that a power cut loses none.

        Raises:
            RunError: The disk failed.
        """
        if self._file is None:
            return
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            raise _cannot_write(self._path, error) from error

    def close(self) -> None:
        """Close the file. Closing again has no effect."""
        for file in (self._file, *self._listeners):
            if file is not None:
                file.close()

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(self, *exc_info) -> None:
        self.close()


def _sync(path: Path) -> None:
    """Wait until the bytes of a file, or the names in a folder, are on the disk."""
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def _lines(path: Path) -> list[tuple[bytes, dict]]:
    """Return each complete line with its record."""
    *lines, _half = path.read_bytes().split(b"\n")
    pairs = []
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
            if type(record["step"]) is not int:
                raise TypeError
        except (ValueError, TypeError, KeyError):
            shown = line[:60].decode(errors="replace")
            raise ValueError(
                f"{path}:{number} is {shown!r}, expected a JSON object with an integer step; "
                "the log is damaged: remove that line, or start over with --overwrite"
            ) from None
        pairs.append((line + b"\n", record))
    return pairs


def _plain(value: Any) -> Any:
    """Convert scalars of numpy and jax to numbers, and numbers that are not finite to strings."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if hasattr(value, "item") and getattr(value, "ndim", None) == 0:
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def _cannot_write(path: Path, error: OSError) -> RunError:
    return RunError(
        f"{path} could not be written ({error.strerror}); "
        "free space or fix the folder, and run the same command again"
    )
