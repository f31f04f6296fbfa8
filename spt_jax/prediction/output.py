"""Where the rows of `spt-jax predict` go: a stream, or a file that a killed run continues.

    OUT                 the rows, once they are all there
    OUT.partial         the rows so far
    OUT.errors.jsonl    the lines that could not be answered: {"line", "error", "row"}
    OUT.run.json        what the rows depend on, and how much of the files is on the disk

OUT.run.json is written after the files that it describes. A run that continues cuts the files to
the sizes in it and reads the input from there, so that no row is lost and none is written twice.
"""

import contextlib
import dataclasses
import fcntl
import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from spt_jax.errors import RunError
from spt_jax.prediction.rows import Window
from spt_jax.runs.log import write_json_atomic

Identity = Mapping[str, str | int | float | bool | None]
"""What the rows depend on. `input_bytes` is the size of the input, None for a stream."""


@dataclass(frozen=True)
class Done:
    """Progress of a run: lines and bytes read; rows, errors and bytes written."""

    lines: int = 0
    input_bytes: int = 0
    answered: int = 0
    output_bytes: int = 0
    failed: int = 0
    errors_bytes: int = 0

    def plus(self, window: Window) -> "Done":
        """Return the progress after one more window."""
        return Done(
            self.lines + window.lines,
            self.input_bytes + window.nbytes,
            self.answered + len(window.answered),
            self.output_bytes + sum(map(len, window.answered)),
            self.failed + len(window.failed),
            self.errors_bytes + sum(map(len, window.failed)),
        )


class OutputStream:
    """Writes rows to a stream as they come, and errors as lines on stderr."""

    path = errors = None
    finished = False

    def __init__(self, stream: IO[bytes]):
        self._stream, self.done = stream, Done()

    def commit(self, window: Window) -> None:
        """Write the rows of a window."""
        self._stream.writelines(window.answered)
        self._stream.flush()
        for line in window.failed:
            bad = json.loads(line)
            print(f"spt-jax: line {bad['line']}: {bad['error']}", file=sys.stderr)
        self.done = self.done.plus(window)

    def finish(self) -> None:
        """Do nothing; every row has been written."""


class OutputFile:
    """The output file of one run; a context manager that keeps other processes out.

    After it is entered, `done` is the progress so far, and `finished` tells whether that is all.

    Args:
        path: Path of the output.
        identity: What the rows depend on.
        overwrite: Whether to delete what another run has left at this path.
    """

    def __init__(self, path: Path, identity: Identity, *, overwrite: bool):
        self.path, self._identity, self._overwrite = path, identity, overwrite
        self.partial, self.errors, self._state = _beside(path)
        self.done, self.finished = Done(), False

    def __enter__(self) -> "OutputFile":
        with contextlib.ExitStack() as files:
            with self._reporting():
                self._rows = files.enter_context(open(self.partial, "ab"))
            self._lock()
            try:
                self._start()
            except BaseException:  # a run that is refused leaves the folder as it was
                if _size(self.partial) == 0:
                    self.partial.unlink(missing_ok=True)
                raise
            self._files = files.pop_all()
        return self

    def __exit__(self, *exc_info) -> None:
        self._files.close()

    def commit(self, window: Window) -> None:
        """Write the rows and errors of a window, and then the progress.

        Raises:
            RunError: The disk is full or the folder is gone.
        """
        with self._reporting():
            _append(self._rows, window.answered)
            if window.failed:
                with open(self.errors, "ab") as errors:
                    _append(errors, window.failed)
        self._record(self.done.plus(window))

    def finish(self) -> None:
        """Rename the partial file to the output.

        Raises:
            RunError: The input is not as long as it was when the run began.
        """
        expected = self._identity["input_bytes"]
        if expected not in (None, self.done.input_bytes):
            raise RunError(
                f"the input of {self.path} had {expected} bytes when the run began and "
                f"{self.done.input_bytes} were read; "
                "leave it as it is and give the same command with --overwrite"
            )
        with self._reporting():
            os.replace(self.partial, self.path)
        self.finished = True

    def _lock(self) -> None:
        try:
            fcntl.flock(self._rows, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RunError(
                f"another process is writing {self.partial}; "
                "wait for it to end or give another --output"
            ) from error
        except OSError:  # some network file systems
            pass

    def _start(self) -> None:
        if self._overwrite:
            with self._reporting():
                for file in (self._state, self.errors, self.path):
                    file.unlink(missing_ok=True)
                self._rows.truncate(0)
        done = self._read_done()
        if self.path.exists():
            self.done, self.finished = done, True
            self.partial.unlink()
            return
        lost = _size(self.partial) < done.output_bytes or _size(self.errors) < done.errors_bytes
        if lost or self._identity["input_bytes"] is None:  # from the start
            done = Done()
        with self._reporting():
            self._rows.truncate(done.output_bytes)
            if done.errors_bytes:
                os.truncate(self.errors, done.errors_bytes)
            else:
                self.errors.unlink(missing_ok=True)
        self._record(done)

    def _read_done(self) -> Done:
        """Read the progress; raise FileExistsError if the files there are of another run."""
        files = (self.path, *(file for file in (self.partial, self.errors) if _size(file)))
        there = next((file for file in files if file.exists()), self.path)
        advice = "give another --output, or --overwrite to delete it and start over"
        if not self._state.exists():
            if there.exists():
                raise FileExistsError(f"output {there} exists and is of no known run; {advice}")
            return Done()
        try:
            state = json.loads(self._state.read_text())
            old, done = dict(state["identity"]), Done(**state["done"])
        except (ValueError, KeyError, TypeError) as error:
            raise FileExistsError(
                f"{self._state} does not describe a run ({error}); {advice}"
            ) from None
        if changed := _differences(old, self._identity):
            raise FileExistsError(f"output {there} is from another run: {changed}; {advice}")
        sizes = self._identity["input_bytes"], _size(self.path)
        if self.path.exists() and sizes != (done.input_bytes, done.output_bytes):
            raise FileExistsError(f"output {self.path} exists; {advice}")
        return done

    def _record(self, done: Done) -> None:
        state = {"identity": dict(self._identity), "done": dataclasses.asdict(done)}
        write_json_atomic(self._state, state)
        self.done = done

    @contextlib.contextmanager
    def _reporting(self) -> Iterator[None]:
        """Turn an OSError, which may not name a file, into a RunError that does."""
        try:
            yield
        except OSError as error:
            raise RunError(
                f"{self.path} could not be written ({error.strerror}); "
                "free space or fix the folder, and give the same command again"
            ) from error


def check_output(path: Path, source: Path | None) -> None:
    """Raise an error if an output file cannot be written, or would replace the input.

    Raises:
        FileNotFoundError: Its folder does not exist.
        IsADirectoryError: It is a folder itself.
        ValueError: It is a device, or it or a file beside it is the input.
    """
    if not path.parent.is_dir():
        raise FileNotFoundError(f"folder {path.parent} of output {path} does not exist; make it")
    if path.is_dir():
        raise IsADirectoryError(f"output {path} is a folder; give a file such as {path}/out.jsonl")
    if path.exists() and not path.is_file():  # os.replace would make /dev/null a file
        raise ValueError(f"output {path} is a device; redirect standard output to it instead")
    for file in (path, *_beside(path)):
        if source is not None and file.exists() and source.exists() and file.samefile(source):
            raise ValueError(f"input {source} would be written as output {path}; give another one")


def _beside(path: Path) -> tuple[Path, Path, Path]:
    partial, errors, state = (
        path.with_name(path.name + end) for end in (".partial", ".errors.jsonl", ".run.json")
    )
    return partial, errors, state


def _append(file: IO[bytes], lines: Iterable[bytes]) -> None:
    file.writelines(lines)
    file.flush()
    os.fsync(file.fileno())


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _differences(old: Identity, new: Identity) -> str:
    """Describe the values that differ."""
    return ", ".join(
        f"{name} ({_show(old.get(name))} there, {_show(new.get(name))} now)"
        for name in {**old, **new}
        if old.get(name) != new.get(name)
    )


def _show(value: str | int | float | bool | None) -> str:
    text = "none" if value is None else str(value)
    return text if len(text) <= 24 else text[:12] + "..."
