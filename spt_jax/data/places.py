"""Where rows are: files and folders of this machine, or of a bucket as `gs://BUCKET/FOLDER`.

A `Folder` names its files and reads them; nothing that a bucket names is ever written, here or
anywhere. What is compressed is unpacked as it is read.
"""

import bz2
import fnmatch
import glob
import gzip
import io
import lzma
import os
import re
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from spt_jax.errors import suggest
from spt_jax.paths import require_safe_name

if TYPE_CHECKING:
    from spt_jax.runs.bucket import Bucket

_UNPACK: dict[str, Callable[..., Any]] = {
    ".gz": gzip.open,
    ".bz2": bz2.open,
    ".xz": lzma.open,
}
_BLOCK = 1 << 20
_SPLIT_WORDS = re.compile(r"(?:^|[^a-z])(train|valid|validation|val|dev|test)(?:[^a-z]|$)")


class File(NamedTuple):
    """A file of rows.

    Args:
        place: What to call it in a message: its path or address.
        read_packed: Gives its bytes as they are stored.
    """

    place: str
    read_packed: Callable[[], bytes]

    @property
    def unpacked(self) -> str:
        """The place without the suffix of a compression: `rows/a.JSONL` of `rows/a.JSONL.gz`."""
        suffix = Path(self.place).suffix
        return self.place.removesuffix(suffix) if suffix.lower() in _UNPACK else self.place

    @property
    def suffix(self) -> str:
        """The suffix in lower case, without that of a compression: `.jsonl` of `a.JSONL.gz`."""
        return Path(self.unpacked).suffix.lower()

    def read(self) -> bytes:
        """Return the bytes, unpacked.

        Raises:
            ValueError: The file cannot be read, or its compression is damaged.
        """
        try:
            data = self.read_packed()
        except OSError as error:
            raise ValueError(f"file '{self.place}' cannot be read: {error.strerror}") from None
        unpack = _UNPACK.get(Path(self.place).suffix.lower())
        if unpack is None:
            return data
        try:
            # Counted before anything is kept, so that a file which is refused takes no memory.
            size, most = 0, most_unpacked(len(data))
            with unpack(io.BytesIO(data)) as stream:
                while block := stream.read(_BLOCK):
                    if (size := size + len(block)) > most:
                        raise ValueError(f"it has more than {most:,} bytes; unpack it first")
            with unpack(io.BytesIO(data)) as stream:
                return stream.read()
        except (OSError, EOFError, ValueError, lzma.LZMAError, zlib.error) as error:
            raise ValueError(
                f"file '{self.place}' cannot be unpacked ({error}); expected the file as it was "
                "written, not cut short"
            ) from None


def most_unpacked(size: int) -> int:
    """Return the most bytes that a compressed file of so many bytes is read as.

    Text shrinks to a tenth or so. A few kB that become GB were made to fill the memory.
    """
    return max(1 << 24, 100 * size)


class Folder(NamedTuple):
    """The files below a folder or an address.

    Args:
        place: Its path or address.
        names: Of its files, those of folders in it as `folder/name`.
        open: Gives the file of a name.
    """

    place: str
    names: tuple[str, ...]
    open: Callable[[str], File]


def open_folder(place: str) -> Folder | None:
    """Return a folder with the files in it and in its folders; None where there is none.

    Raises:
        ValueError: It is an address of another kind than `gs://BUCKET/FOLDER`, or the bucket names
            what is no file.
        PermissionError, ConnectionError: The bucket cannot be read.
    """
    if address := _address(place):
        return _open_bucket(address)
    path = Path(place)
    if not os.path.isdir(path):
        return None
    below = [*path.iterdir(), *(file for inner in path.iterdir() for file in _inside(inner))]
    names = sorted(file.relative_to(path).as_posix() for file in below if file.is_file())
    return Folder(place, tuple(names), lambda name: _local(path / name))


def find_files(source: str, suffixes: tuple[str, ...]) -> list[File]:
    """Return the files of rows that a path, a pattern or an address stands for, in order.

    Args:
        source: A file; a folder, whose files of rows are shards of one table; or a pattern such as
            `data/train-*.jsonl.gz`.
        suffixes: What files of rows end with.

    Raises:
        FileNotFoundError: There is no such file, or none that matches.
        ValueError: A folder holds splits or several kinds of files.
        PermissionError, ConnectionError: The bucket cannot be read.
    """
    if _address(source) is None and os.path.isfile(source):
        return [_local(Path(source))]
    if re.search(r"[*?[]", source) and not os.path.exists(source):
        files = [file for file in _match(source) if file.suffix in suffixes]
        if not files:
            raise FileNotFoundError(
                f"no file matches '{source}'; expected files in {', '.join(suffixes)}, maybe "
                f"compressed (looked from {Path.cwd()})"
            )
        return _one_kind(source, files)
    if (address := _address(source)) is not None:
        parent, _, name = address.rpartition("/")
        data = _bucket(parent).read(name)
        if data is not None:
            return [File(address, lambda: data)]
    folder = open_folder(source)
    if folder is None:
        raise FileNotFoundError(f"file '{source}' does not exist{_neighbour(source, suffixes)}")
    shown = [name for name in folder.names if "/" not in name and name[0] not in "._"]
    files = [file for file in map(folder.open, shown) if file.suffix in suffixes]
    if not files:
        raise ValueError(
            f"'{source}' is a folder, expected a file in {', '.join(suffixes)}, or a folder of "
            "such files, and it has none"
        )
    splits = {word for name in shown for word in _SPLIT_WORDS.findall(name.lower())}
    if len(splits) > 1:
        raise ValueError(
            f"folder '{source}' has files of several splits ({', '.join(sorted(splits))}); name "
            f"one by a pattern, such as {source.rstrip('/')}/{sorted(splits)[-1]}*"
        )
    return _one_kind(source, files)


def _match(pattern: str) -> list[File]:
    address = _address(pattern)
    if address is None:
        found = map(Path, sorted(glob.glob(pattern, recursive=True)))
        files = [path for path in found if path.is_file()]  # a named pipe would wait
        # A link to a folder above leads to the same files again and again.
        once: dict[Path, Path] = {}
        for path in files:
            once.setdefault(path.resolve(), path)
        return [_local(path) for path in once.values()]
    parent, _, _ = re.split(r"[*?[]", address)[0].rpartition("/")
    bucket = _open_bucket(parent)
    wanted = address.removeprefix(f"{parent}/")
    names = () if bucket is None else bucket.names
    depth = wanted.count("/")
    found = [n for n in names if fnmatch.fnmatchcase(n, wanted) and n.count("/") == depth]
    return [bucket.open(name) for name in found] if bucket else []


def _one_kind(source: str, files: list[File]) -> list[File]:
    kinds = sorted({file.suffix for file in files})
    if len(kinds) > 1:
        raise ValueError(
            f"'{source}' has files in {' and '.join(kinds)}; name those of one kind by a pattern, "
            f"such as '{source.rstrip('/')}/*{kinds[0]}'"
        )
    seen: dict[str, File] = {}
    for file in files:
        other = seen.setdefault(file.unpacked, file)
        if other is not file:
            raise ValueError(
                f"'{source}' has the same rows twice, in '{other.place}' and in '{file.place}'; "
                "name one of them, or remove it"
            )
    return files


def _address(place: str) -> str | None:
    """Return an address of a bucket; None for a path of this machine."""
    found = re.match(r"([a-z][a-z0-9+.-]+)://", place)
    if found is None:
        return None
    if found[1] != "gs" or not re.fullmatch(r"gs://[^/]+/.+", place):
        raise ValueError(
            f"'{place}' is an address that rows cannot be read from; expected a path of this "
            "machine or gs://BUCKET/FOLDER"
        )
    return place.rstrip("/")


def _bucket(address: str) -> "Bucket":
    from spt_jax.runs.bucket import Bucket  # imports TensorStore, which a local file has no use for

    return Bucket(address)


def _open_bucket(address: str) -> Folder | None:
    bucket = _bucket(address)
    # Names that end with a slash are folders, which consoles make as empty objects.
    names = [require_safe_name(name) for name in bucket.names() if name[-1:] not in ("", "/")]
    if not names:
        return None

    def read(name: str) -> bytes:
        data = bucket.read(name)
        if data is None:
            raise ValueError(f"object '{address}/{name}' was deleted while rows were read")
        return data

    return Folder(address, tuple(names), lambda n: File(f"{address}/{n}", lambda: read(n)))


def _local(path: Path) -> File:
    return File(str(path), path.read_bytes)


def _inside(path: Path) -> list[Path]:
    return list(path.iterdir()) if path.is_dir() else []


def _neighbour(source: str, suffixes: tuple[str, ...]) -> str:
    if _address(source) is not None:
        return "; check the address, and that this account may list the bucket"
    parent = Path(source).parent
    if os.path.lexists(source):
        return " as a file; it is a link to nothing, a pipe or a device"
    if not os.path.isdir(parent):
        return f", nor does its folder (looked from {Path.cwd()})"
    names = [path.name for path in parent.iterdir() if _local(path).suffix in suffixes]
    return suggest(Path(source).name, names) or f" (looked from {Path.cwd()})"
