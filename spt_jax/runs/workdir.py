"""Where a run is kept: in a folder of this machine, or in a bucket of Google Cloud Storage.

    with open_workdir(Path("gs://bucket/run")) as folder:    to work in
        ...
        folder.publish()                                      it is in the bucket
    with open_run(Path("gs://bucket/run")) as place:         to read
        prompt, _ = load_prompt(place / "prompt.safetensors")

Whoever has opened it sees a folder of this machine and knows of no bucket: an address has a copy,
see `mirror.py`, and errors name the address instead. A folder of this machine is used as it is.

The objects at the address are the files of the folder, with one index beside. gcloud copies them,
and where gcsfs is installed, Orbax alone restores a checkpoint from its address.
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
"""Where an address ends so, it is that of one file, a prompt."""


def find_address(path: Path) -> str | None:
    """The address that a path stands for, as `gs://bucket/folder`; None for one of this machine.

    Args:
        path: As it was given; `Path` makes one slash of two.

    Raises:
        ValueError: It is an address of another kind, or a bucket alone.
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
    """The folder of a run to work in, on all processes; in a bucket it is whole when this ends.

    Args:
        workdir: A folder, or an address.

    Raises:
        ValueError: It is an address of another kind.
        FileNotFoundError, PermissionError, ConnectionError: The bucket cannot be used.
        RunError: Another process is working there.
    """
    address = find_address(workdir)
    if address is None:
        yield RunFolder(workdir)
        return
    # Always at the same place, so that what a killed process has left is found and deleted.
    root = cache_folder() / "runs" / hashlib.sha256(address.encode()).hexdigest()[:16]
    copy, mirrors = root / "run", []
    with contextlib.ExitStack() as stack, _naming(root, address), _naming(copy, address):
        on_main(lambda: mirrors.append(_open_mirror(address, root, copy, stack)))
        push = mirrors[0].push if mirrors else _nothing
        try:
            yield RunFolder(copy, address, push)
        except NotPushed:
            _keep(copy)
            raise
        except BaseException:
            with contextlib.suppress(NotPushed):  # what has ended the run is the error to show
                _push_or_keep(push, copy)
            raise
        on_main(lambda: _push_or_keep(push, copy))


@contextlib.contextmanager
def open_run(path: Path, *, model: bool = False) -> Iterator[Path]:
    """A run or a prompt to read; each process has its own copy of what is in a bucket.

    Args:
        path: A folder or a file, or an address of one.
        model: Whether the model is wanted, of a run that has tuned it; it may be large.

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
    """The copy of an address, which is this process's alone until the stack ends."""
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
    """Moves a copy that could not be pushed to where no later run deletes it, and says where."""
    if copy.exists():
        kept = copy.parents[1] / "kept" / f"{time.strftime('%Y%m%d-%H%M%S')}-{copy.parent.name}"
        kept.parent.mkdir(exist_ok=True)
        copy.rename(kept)
        logging.getLogger("spt_jax").warning("what the bucket lacks of this run is in %s", kept)


@contextlib.contextmanager
def _naming(copy: Path, address: str) -> Iterator[None]:
    """Errors that name the copy name the address instead."""
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


def _nothing() -> None:
    """What a process has to push that has no copy."""
