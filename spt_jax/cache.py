"""Compiled programs, kept on disk from one command to the next by jax's compilation cache.

They lie in the folder `jax` of the cache that rows lie in too (`SPT_JAX_CACHE`, by default
`~/.cache/spt_jax`). Whoever has set one of jax's own variables (`JAX_COMPILATION_CACHE_DIR`,
`JAX_ENABLE_COMPILATION_CACHE=false`) has it their way. jax's key has the program, the versions and
the features of the processor, so that a home that several machines share is no danger.

Invariant: only commands call this, before they import jax; the library leaves jax as it finds it.
"""

import contextlib
import glob
import logging
import os
import re
import sys
import warnings
from pathlib import Path

MOST_BYTES = 2 << 30
"""The oldest programs go when there are more; they cost their compilation, if they are needed."""

LEAST_SECONDS = "0.2"
"""What compiles sooner is not kept: jax's 1 s leaves out most programs of a small model."""


def cache_folder() -> Path:
    """The root of what is kept between runs and can be made again."""
    return Path(os.environ.get("SPT_JAX_CACHE") or "~/.cache/spt_jax").expanduser()


def keep_programs() -> None:
    """Has jax keep what it compiles; a folder that cannot be written is a warning."""
    if "JAX_COMPILATION_CACHE_DIR" in os.environ or "jax" in sys.modules:
        return
    folder = cache_folder() / "jax"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(0, "no permission")
        _make_room(folder, MOST_BYTES)
    except OSError as error:
        logging.getLogger("spt_jax").warning(
            "cannot keep compiled programs in %s (%s), so the next command compiles again; "
            "name another folder in SPT_JAX_CACHE",
            folder,
            error.strerror,
        )
        return
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder)
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", LEAST_SECONDS)
    _replace_damaged(folder)


def keep_no_programs() -> None:
    """Has jax compile afresh: what is compiled for absent devices cannot be read back."""
    if "jax" not in sys.modules:
        os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"


def _replace_damaged(folder: Path) -> None:
    """Has jax write a program again that a process did not finish writing when it was killed.

    jax compiles such a program, but warns of it and leaves the file as it is, for good. The warning
    comes between the two, and names the function: all programs of that name are written again.
    """
    show = warnings.showwarning

    def delete_or_show(message, *args, **kwargs):
        found = re.match(
            r"Error reading persistent compilation cache entry for '([^']*)'", str(message)
        )
        if found is None:
            return show(message, *args, **kwargs)
        for path in folder.glob(f"{glob.escape(found[1])}-*"):
            path.unlink(missing_ok=True)

    warnings.showwarning = delete_or_show


def _make_room(folder: Path, most: int) -> None:
    """Deletes the oldest files until no more than `most` bytes are left.

    jax could do that by itself, but where it is killed between two writes it never keeps anything
    in that folder again.
    """
    files = []
    with os.scandir(folder) as entries:
        for entry in entries:
            with contextlib.suppress(FileNotFoundError):  # another process makes room too
                if entry.is_file():
                    stat = entry.stat()
                    files.append((stat.st_mtime, stat.st_size, entry.path))
    total = sum(size for _, size, _ in files)
    for _, size, path in sorted(files):
        if total <= most:
            return
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        total -= size
