"""A local copy of a folder in a bucket. A run works in the copy and pushes its changes.

A bucket cannot append, rename or lock, and cannot change several objects at once. The run does all
of that in the copy. `push` then makes the bucket equal to the copy in three steps: it writes new
and changed files, it writes the index, and it deletes the files that the index no longer names.

    .index.json    {"session": ..., "files": [names]}

Invariant: every file that the index names is complete at every moment. A log may be longer than the
newest checkpoint in the index, as on a disk; resuming cuts it. A checkpoint never changes.

A copy writes an index only over the index version that it wrote or read last. Opening a copy writes
an index, so the address belongs to the copy that was opened last. An older copy notices this when
its next push starts, or at the end of a push that is already running, and writes no more.
"""

import contextlib
import json
import shutil
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from spt_jax.errors import RunError
from spt_jax.paths import safe_join
from spt_jax.runs.bucket import Bucket

INDEX = ".index.json"

_AT_ONCE = 8
"""Number of files transferred at the same time, each held in memory."""


class NotPushed(RunError):
    """The changes of the copy are not all in the bucket."""


class Mirror:
    """A local copy of a folder in a bucket.

    Args:
        address: `gs://BUCKET/FOLDER`.
        folder: Local folder of the copy. `pull` deletes what it contains.

    Raises:
        ValueError: The bucket's name is not valid.
    """

    def __init__(self, address: str, folder: Path):
        self.folder = folder
        self._bucket, self._patient = Bucket(address), Bucket(address, patient=True)
        self._session, self._version = uuid.uuid4().hex, b""
        self._pushed: dict[str, tuple[int, int]] = {}
        self._had_index = False

    def pull(self, folders: Sequence[str], only: str = "") -> None:
        """Download the files at the address and those in some of its folders.

        Args:
            folders: Names of the folders. Other folders below the address are ignored.
            only: Name of a single file to download instead of all.

        Raises:
            PermissionError, ConnectionError: The bucket cannot be read.
            RunError: The bucket changed during the download.
            ValueError: The index is damaged, or a name there could lead out of the folder. Nothing
                was downloaded.
        """
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        index, self._version = self._bucket.read_version(INDEX)
        self._had_index = index is not None
        if only:
            wanted = [only]
        else:
            names = self._bucket.names() if index is None else self._read_index(index)
            wanted = [n for n in names if _is_kept(n) and _is_in(n, folders)]
        # All names before the first download, since whoever wrote them may be a stranger.
        paths = {name: self._path_of(name) for name in wanted}
        for name in wanted:
            if name.rpartition("/")[0] in paths:
                raise ValueError(
                    f"{self._bucket.address} is not the address of a run: it has an object "
                    f"{name.rpartition('/')[0]!r} and others below it, which no folder can hold"
                )

        def fetch(name: str) -> None:
            data = self._bucket.read(name)
            if data is None and (only or index is None):
                return
            if data is None:
                raise RunError(
                    f"{self._bucket.address}/{name} is gone, but its index names it: a run goes on "
                    "there, or someone has deleted it; give the same command again"
                )
            path = paths[name]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
            self._pushed[name] = _stamp(path)

        _all_at_once(fetch, wanted)

    def claim(self, folders: Sequence[str]) -> None:
        """Make this copy the only one that may write to the address. Call `pull` first.

        Args:
            folders: Names of the folders that belong to the run alone. Files there that the index
                does not name are leftovers of an interrupted push, and are deleted.

        Raises:
            FileNotFoundError, PermissionError, ConnectionError: The bucket cannot be written or
                listed.
            RunError: Another process has written to the address since `pull`.
        """
        self._write_index(self._bucket, sorted(self._pushed))
        names = self._bucket.names()
        # A refused listing looks empty, and the run would start over instead of resuming.
        if INDEX not in names:
            refused = self._bucket.refused(
                f"listing {self._bucket.address}/", "it lacks what was just written there"
            )
            if not self._had_index:  # so that the next `pull` lists the objects again
                with contextlib.suppress(OSError):
                    self._bucket.delete(INDEX)
            raise refused
        if self._had_index:  # without an index these objects are not leftovers of ours
            own = [name for name in names if "/" in name and _is_in(name, folders)]
            _all_at_once(self._bucket.delete, sorted({*own} - self._pushed.keys()))

    def push(self) -> None:
        """Make the bucket equal to the copy.

        Raises:
            NotPushed: The bucket cannot be written, or another copy has claimed the address.
        """
        try:
            if self._patient.read_version(INDEX)[1] != self._version:
                raise self._taken()
            found = _stamps(self.folder)
            changed = [name for name, stamp in found.items() if self._pushed.get(name) != stamp]
            _all_at_once(
                lambda name: self._patient.write(name, (self.folder / name).read_bytes()), changed
            )
            gone = sorted(self._pushed.keys() - found.keys())
            if found.keys() != self._pushed.keys():
                self._write_index(self._patient, sorted(found))
            _all_at_once(self._patient.delete, gone)
            self._pushed = found
        except OSError as error:
            raise NotPushed(
                f"{error}; what was saved there before is untouched, and the same command goes on "
                "from it"
            ) from error

    def _read_index(self, index: bytes) -> list[str]:
        try:
            files = json.loads(index)["files"]
            if isinstance(files, list) and all(isinstance(name, str) for name in files):
                return files
        except (ValueError, TypeError, KeyError, RecursionError):
            pass
        raise ValueError(
            f"{self._bucket.address}/{INDEX} is damaged: expected a JSON object with the names of "
            "the run's files under 'files'; restore it from a copy, or delete it, so that the "
            "objects there are taken as they are"
        )

    def _path_of(self, name: str) -> Path:
        try:
            return safe_join(self.folder, name)
        except ValueError as error:
            raise ValueError(
                f"{self._bucket.address} is not the address of a run: {error}"
            ) from error

    def _write_index(self, bucket: Bucket, names: list[str]) -> None:
        index = {"session": self._session, "files": names}
        data = (json.dumps(index, indent=1) + "\n").encode()
        version = bucket.write(INDEX, data, over=self._version)
        if version is None:
            # TensorStore may have retried a write that had succeeded: the index is ours then.
            found, version = bucket.read_version(INDEX)
            if found != data:
                raise self._taken()
        self._version = version

    def _taken(self) -> RunError:
        return NotPushed(
            f"another process is writing to {self._bucket.address}; this one ends here, so that "
            "only one does"
        )


def _all_at_once(function: Callable[[str], object], names: Sequence[str]) -> None:
    with ThreadPoolExecutor(_AT_ONCE) as threads:
        for _ in threads.map(function, names):
            pass


def _stamps(folder: Path) -> dict[str, tuple[int, int]]:
    """Return the size and the modification time of every file of a copy, by name."""
    names = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return {name: _stamp(folder / name) for name in sorted(names) if _is_kept(name)}


def _is_in(name: str, folders: Sequence[str]) -> bool:
    return "/" not in name or name.split("/")[0] in folders


def _is_kept(name: str) -> bool:
    """Return False for hidden files (locks, drafts, the index) and for folder placeholders."""
    return not name.rpartition("/")[2].startswith(".") and not name.endswith("/")


def _stamp(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns
