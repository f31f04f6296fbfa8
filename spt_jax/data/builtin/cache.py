"""Rows of the built-in tasks, and the files that keep them.

Selecting rows takes seconds to half a minute, so a selection is kept in one file below
`SPT_JAX_CACHE` (`~/.cache/spt_jax` by default). Its name holds a hash of all that decides the rows:
the versions of Python and of the packages they are made of, and the modules with the rules. Its
first line is a hash of the rest, and a file that is missing or broken is made again.
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
    """A row of a built-in task: what is read, and what is to be answered."""

    text: str
    label: str


def cached(name: str, rules: Iterable[str], distributions: Iterable[str], make: Callable[[], Any]):
    """What `make` returns, from a file where it was made before by the same rules.

    Args:
        name: Of the task or tasks; the file's name begins with it.
        rules: Modules of this folder that decide what is made.
        distributions: Names by which the packages read for it are installed.
        make: Makes lists and dicts of strings. Tuples come back as lists from a file.

    Raises:
        ValueError: One of the packages is not installed.
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
