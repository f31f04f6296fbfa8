"""Keep compiled programs on disk from one command to the next, with jax's compilation cache.

The programs are in the folder `jax` of the cache folder, where prepared rows are kept too
(`SPT_JAX_CACHE`, by default `~/.cache/spt_jax`). A user who sets one of jax's own variables
(`JAX_COMPILATION_CACHE_DIR`, `JAX_ENABLE_COMPILATION_CACHE=false`,
`JAX_COMPILATION_CACHE_MAX_SIZE`) overrides the setting made here. jax's keys contain the program,
the versions and the features of the processor, so several machines can share one home folder.

Invariant: only commands change jax's settings, and before jax is imported. Importing the library
changes nothing.
"""

import logging
import os
import sys
from pathlib import Path

SETTINGS = {
    # jax deletes the programs that were used longest ago when there are more bytes.
    "JAX_COMPILATION_CACHE_MAX_SIZE": str(2 << 30),
    # Programs that compile faster are not kept. jax's 1 s omits most programs of a small model.
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
}


def cache_folder() -> Path:
    """Return the folder of files that later commands reuse and that can be made again."""
    return Path(os.environ.get("SPT_JAX_CACHE") or "~/.cache/spt_jax").expanduser()


def keep_programs() -> None:
    """Let jax keep what it compiles. Warn if the folder cannot be written."""
    if "JAX_COMPILATION_CACHE_DIR" in os.environ or "jax" in sys.modules:
        return
    folder = cache_folder() / "jax"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(0, "no permission")
        _delete_unfinished(folder)
    except OSError as error:
        logging.getLogger("spt_jax").warning(
            "cannot keep compiled programs in %s (%s), so the next command compiles again; "
            "name another folder in SPT_JAX_CACHE",
            folder,
            error.strerror,
        )
        return
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder)
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)


def keep_no_programs() -> None:
    """Let jax compile every program again, because programs for absent devices cannot be loaded."""
    if "jax" not in sys.modules:
        os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"


def _delete_unfinished(folder: Path) -> None:
    """Delete the programs that a killed process did not finish writing.

    jax writes NAME-cache and then NAME-atime. A program without the second file may be incomplete,
    and jax can neither replace it nor make room in a folder that contains it.
    """
    names = {path.name for path in folder.iterdir()}
    for name in names:
        program, found, _ = name.partition("-cache")
        if found and f"{program}-atime" not in names:
            (folder / name).unlink(missing_ok=True)
