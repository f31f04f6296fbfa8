"""Keep the rows of the built-in tasks in files.

Selecting rows takes up to half a minute, so each selection is kept in a file below `SPT_JAX_CACHE`
(`~/.cache/spt_jax` by default). The file's name contains a hash of all that decides the rows: the
versions of Python and of the packages that are read, and the source of the modules that select. The
first line is a hash of the rest. A missing or damaged file is made again.
"""

import contextlib
import hashlib
import importlib.metadata
import json
import logging
import os
import platform
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from spt_jax.cache import cache_folder


class LabeledText(NamedTuple):
    """A row of a built-in task: the text, and the answer."""

    text: str
    label: str


def cached(name: str, rules: Iterable[str], distributions: Iterable[str], make: Callable[[], Any]):
    """Return what `make` returns, from a file if the same rules made it before.

    Args:
        name: Start of the file's name.
        rules: Names of the modules of this folder that decide what is made.
        distributions: Distributions whose packages are read.
        make: Function that makes lists and dicts of strings. A file returns tuples as lists.

    Raises:
        ValueError: A distribution is not installed.
    """
    path = cache_folder() / f"{name}-{_key(name, rules, distributions)}.json"
    made = _read(path)
    if made is None:
        made = make()
        _write(path, made)
    return made


def _key(name: str, rules: Iterable[str], distributions: Iterable[str]) -> str:
    parts = [platform.python_version()]
    for rule in rules:
        source = Path(__file__).with_name(f"{rule}.py").read_bytes()
        parts.append(hashlib.sha256(source).hexdigest())
    for distribution in distributions:
        try:
            parts.append(f"{distribution} {importlib.metadata.version(distribution)}")
        except importlib.metadata.PackageNotFoundError:
            raise ValueError(
                f"the rows of '{name}' are made of docstrings of {distribution}, which is not "
                f"installed; install {distribution}"
            ) from None
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _read(path: Path) -> Any:
    try:
        stored_hash, _, body = path.read_text(encoding="utf-8").partition("\n")
        if hashlib.sha256(body.encode()).hexdigest() != stored_hash:
            raise ValueError("its hash does not match")
        return json.loads(body)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        logging.getLogger("spt_jax").warning("%s is unusable (%s); reading again", path, error)
        return None


def _write(path: Path, made: Any) -> None:
    body = json.dumps(made, ensure_ascii=False)
    part = path.with_suffix(f".{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(f"{hashlib.sha256(body.encode()).hexdigest()}\n{body}", encoding="utf-8")
        os.replace(part, path)
    except OSError as error:  # a cache that cannot be written costs seconds, not the run
        logging.getLogger("spt_jax").warning("cannot write the cache %s (%s)", path, error)
        with contextlib.suppress(OSError):
            part.unlink()
