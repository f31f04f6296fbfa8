"""Open the place of a run: a local folder, or a bucket of Google Cloud Storage.

    with open_workdir(Path("gs://bucket/run")) as folder:    for working
        ...
        folder.publish()                                      writes to the bucket
    with open_run(Path("gs://bucket/run")) as place:         for reading
        prompt, _ = load_prompt(place / "prompt.safetensors")

Both give a local folder. For an address it is a copy (see `mirror.py`), and errors name the address
instead of the copy.

The objects at an address are the files of the folder and one index. gcloud can copy them. If gcsfs
is installed, Orbax can restore a checkpoint from its address.
"""

import contextlib
import hashlib
import logging
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from spt_jax.cache import cache_folder
from spt_jax.distributed.main_process import on_main
from spt_jax.runs.folder import FOLDERS, RunFolder
from spt_jax.runs.log import lock_folder
from spt_jax.runs.mirror import Mirror, NotPushed

_FILES = (".safetensors", ".npy")
"""Ends of an address that names a prompt file and not a folder."""


def find_address(path: Path) -> str | None:
    """Return the address `gs://bucket/folder` that a path means, or None for a local path.

    Args:
        path: The path, in which `Path` has replaced two slashes by one.

    Raises:
        ValueError: It is an address of another kind, or names a bucket without a folder.
    """
    found = re.fullmatch(r"([a-z0-9]+):/+(.+)", str(path))
    if found is None:
        return None
    scheme, rest = found.groups()
    if scheme != "gs" or "/" not in rest:
        raise ValueError(
            f"'{scheme}://{rest}' is no place of a run, expected a folder of this machine or "
            "gs://BUCKET/FOLDER"
        )
    return f"gs://{rest}"


@contextlib.contextmanager
def open_workdir(workdir: Path) -> Iterator[RunFolder]:
    """Open the folder of a run for writing, on all processes, and publish it at the end.

    Args:
        workdir: A local folder, or an address.

    Raises:
        ValueError: It is an address of another kind.
        FileNotFoundError, PermissionError, ConnectionError: The bucket cannot be used.
        RunError: Another process is working there.
    """
    address = find_address(workdir)
    if address is None:
        yield RunFolder(workdir)
        return
    # The copy of an address has a fixed place, so that leftovers of a killed process are deleted.
    root = cache_folder() / "runs" / hashlib.sha256(address.encode()).hexdigest()[:16]
    copy, mirrors = root / "run", []
    with contextlib.ExitStack() as stack, _naming(root, address), _naming(copy, address):
        on_main(lambda: mirrors.append(_open_mirror(address, root, copy, stack)))
        push = mirrors[0].push if mirrors else lambda: None
        try:
            yield RunFolder(copy, address, push)
        except NotPushed:
            _keep(copy)
            raise
        except BaseException:
            with contextlib.suppress(NotPushed):  # show the error that ended the run
                _push_or_keep(push, copy)
            raise
        on_main(lambda: _push_or_keep(push, copy))


@contextlib.contextmanager
def open_run(path: Path, *, model: bool = False) -> Iterator[Path]:
    """Open a run or a prompt for reading. Each process has its own copy of a bucket's files.

    Args:
        path: A folder or a file, or the address of one.
        model: Whether to copy the tuned model of the run, which may be large.

    Raises:
        ValueError: It is an address of another kind.
        FileNotFoundError, PermissionError, ConnectionError: The bucket cannot be read.
    """
    address = find_address(path)
    if address is None:
        yield path
        return
    with tempfile.TemporaryDirectory() as root:
        copy = Path(root) / "run"
        is_file = address.endswith(_FILES)
        place, _, name = address.rpartition("/") if is_file else (address, "", "")
        with _naming(copy, place):
            Mirror(place, copy).pull(("model",) if model else (), only=name)
            yield copy / name


def _open_mirror(address: str, root: Path, copy: Path, stack: contextlib.ExitStack) -> Mirror:
    """Return the copy of an address, locked for this process until the stack is closed."""
    stack.enter_context(lock_folder(root))
    stack.callback(shutil.rmtree, copy, ignore_errors=True)
    mirror = Mirror(address, copy)
    mirror.pull(FOLDERS)
    mirror.claim(FOLDERS)
    return mirror


def _push_or_keep(push: Callable[[], None], copy: Path) -> None:
    try:
        push()
    except NotPushed:
        _keep(copy)
        raise


def _keep(copy: Path) -> None:
    """Move a copy that could not be pushed to a place where no later run deletes it, and log it."""
    if copy.exists():
        kept = copy.parents[1] / "kept" / f"{time.strftime('%Y%m%d-%H%M%S')}-{copy.parent.name}"
        kept.parent.mkdir(exist_ok=True)
        copy.rename(kept)
        logging.getLogger("spt_jax").warning("what the bucket lacks of this run is in %s", kept)


@contextlib.contextmanager
def _naming(copy: Path, address: str) -> Iterator[None]:
    """Replace the path of the copy by the address in errors."""
    try:
        yield
    except Exception as error:
        error.args = tuple(
            part.replace(str(copy), address) if isinstance(part, str) else part
            for part in error.args
        )
        if isinstance(error, OSError) and isinstance(error.filename, str | Path):
            error.filename = str(error.filename).replace(str(copy), address)
        raise
