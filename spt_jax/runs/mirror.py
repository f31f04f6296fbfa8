"""A folder in a bucket and its copy on this machine, in which a run works as in any other folder.

A bucket cannot append, rename or lock, and has no folder that changes at once. All of that is done
in the copy, and `push` brings the bucket to where the copy is: files that are new or changed are
written, then the index, then what the index no longer names is deleted.

    .index.json    {"session": ..., "files": [names]}

Invariant: what the index names is whole at every moment. A log may be longer than the newest
checkpoint in the index, as on a disk, and resuming cuts it; a checkpoint never changes.

An index is written over the one that this copy knows, or not at all. So the address belongs to the
copy that was opened last: an older one finds that out at its next push, or, where that has begun
already, at its end, and writes no more.
"""

import contextlib
import json
import shutil
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from spt_jax.errors import RunError
from spt_jax.runs.bucket import Bucket

INDEX = ".index.json"

_AT_ONCE = 8
"""Files on their way at the same time, each of them in memory."""


class NotPushed(RunError):
    """The bucket is not where the copy is."""


class Mirror:
    """A copy of a folder in a bucket.

    Args:
        address: `gs://BUCKET/FOLDER`.
        folder: Where the copy is made; what is there is deleted.

    Raises:
        ValueError: That is no name of a bucket.
    """

    def __init__(self, address: str, folder: Path):
        self.folder = folder
        self._bucket, self._patient = Bucket(address), Bucket(address, patient=True)
        self._session, self._version = uuid.uuid4().hex, b""
        self._pushed: dict[str, tuple[int, int]] = {}
        self._had_index = False

    def pull(self, folders: Sequence[str], only: str = "") -> None:
        """Makes the copy: the files at the address, and those in some folders there.

        Args:
            folders: Their names. Whatever else is below the address is not looked at.
            only: The one file that is wanted, instead of all.

        Raises:
            PermissionError, ConnectionError: The bucket cannot be read.
            RunError: It changes meanwhile.
        """
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        index, self._version = self._bucket.read_version(INDEX)
        self._had_index = index is not None
        if only:
            wanted = [only]
        else:
            names = self._bucket.names() if index is None else json.loads(index)["files"]
            wanted = [n for n in names if _is_kept(n) and _is_in(n, folders)]

        def fetch(name: str) -> None:
            data = self._bucket.read(name)
            if data is None and (only or index is None):
                return
            if data is None:
                raise RunError(
                    f"{self._bucket.address}/{name} is gone, but its index names it: a run goes on "
                    "there, or someone has deleted it; give the same command again"
                )
            path = self.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
            self._pushed[name] = _stamp(path)

        _all_at_once(fetch, wanted)

    def claim(self, folders: Sequence[str]) -> None:
        """Takes the address for this copy, after `pull`.

        Args:
            folders: Those that are all its own, in which nothing remains that the index lacks: a
                push that was cut short has left it.

        Raises:
            FileNotFoundError, PermissionError, ConnectionError: It cannot be written or listed.
            RunError: Another process has written there since.
        """
        self._write_index(self._bucket, sorted(self._pushed))
        names = self._bucket.names()
        # A listing that is refused looks empty, and a run would start over where it should go on.
        if INDEX not in names:
            refused = self._bucket.refused(
                f"listing {self._bucket.address}/", "it lacks what was just written there"
            )
            if not self._had_index:  # and the next `pull` looks at what is there again
                with contextlib.suppress(OSError):
                    self._bucket.delete(INDEX)
            raise refused
        if self._had_index:  # without one, what is there is from someone else, and no remainder
            own = [name for name in names if "/" in name and _is_in(name, folders)]
            _all_at_once(self._bucket.delete, sorted({*own} - self._pushed.keys()))

    def push(self) -> None:
        """Brings the bucket to where the copy is.

        Raises:
            NotPushed: The bucket cannot be written, or the address belongs to another copy now.
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

    def _write_index(self, bucket: Bucket, names: list[str]) -> None:
        index = {"session": self._session, "files": names}
        data = (json.dumps(index, indent=1) + "\n").encode()
        version = bucket.write(INDEX, data, over=self._version)
        if version is None:
            # Of a write that was repeated, the first may have been done.
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
    """The files of a copy by name, each with what changes when it changes."""
    names = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return {name: _stamp(folder / name) for name in sorted(names) if _is_kept(name)}


def _is_in(name: str, folders: Sequence[str]) -> bool:
    return "/" not in name or name.split("/")[0] in folders


def _is_kept(name: str) -> bool:
    """Locks, drafts and the index are no part of the copy, nor are the marks of made-up folders."""
    return not name.rpartition("/")[2].startswith(".") and not name.endswith("/")


def _stamp(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns
