"""Docstrings of installed packages, and the built-in task made of them: which library is it from?

Text that every installation has is text that needs no download. Packages are read with `ast` and
never imported. The invariant that keeps the task honest: the split of a docstring is a function of
its content alone, so pretraining can leave out whatever falls into dev or test (`held_out`) without
knowing which rows the task ended up with.
"""

import ast
import contextlib
import functools
import hashlib
import importlib.metadata
import importlib.util
import inspect
import json
import logging
import os
import platform
import re
import sysconfig
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from spt_jax.data import duplicates
from spt_jax.data.duplicates import ShingleIndex, near_duplicates, words

SKIPPED_FOLDERS = frozenset(
    (
        *("test", "tests", "idlelib", "idle_test", "lib2to3", "turtledemo"),
        *("site-packages", "dist-packages", "_bundled"),
    )
)

# Label word -> (folder of the package, name it is installed by, names and import aliases).
# All the names of all the classes are removed from every text.
LIBRARIES: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "numpy": ("numpy", "numpy", ("numpy", "np")),
    "scipy": ("scipy", "scipy", ("scipy", "sp")),
    "jax": ("jax", "jax", ("jax", "jaxlib", "jaxpr", "jaxprs", "jnp", "jsp")),
    "python": ("python", "", ("python", "python2", "python3", "cpython", "pythonic")),
    "transformers": ("transformers", "transformers", ("transformers",)),
    "datasets": (
        "tensorflow_datasets",
        "tensorflow-datasets",
        ("tensorflow_datasets", "datasets", "tfds", "tensorflow", "tf"),
    ),
    "orbax": ("orbax", "orbax-checkpoint", ("orbax", "ocp")),
    "hub": (
        "huggingface_hub",
        "huggingface-hub",
        ("huggingface_hub", "huggingface hub", "hugging face", "huggingface", "hub", "hf"),
    ),
}

TEXT_LENGTH = 600  # characters kept of a docstring
MIN_LENGTH = 40  # characters that must be left of it
POOL_PER_CLASS = 1700  # different texts read per class, before near-duplicates are removed
ROWS_PER_CLASS = 1100  # rows per class at most, so that no class dominates
ROWS_PER_OPENING = 5  # rows of a class that open with the same three words: series are no variety
TEST_SHARE, DEV_SHARE = 0.15, 0.10

_NAMES = sorted({name for *_, names in LIBRARIES.values() for name in names}, key=len, reverse=True)
_IN_CAMEL = "NumPy|Numpy|SciPy|Scipy|JAX|Jax|Orbax|TFDS|Tfds|HuggingFace|Transformers|HF|Hf|Hub"
_CAMEL = re.compile(
    rf"(?<![A-Za-z0-9])(?:{_IN_CAMEL})+(?=[A-Z])|(?<=[a-z])(?<!Git)(?:{_IN_CAMEL})+(?![a-z])"
)
_SURROGATES = re.compile("[\ud800-\udfff]")
_WHOLE = re.compile(
    rf"(?<![A-Za-z0-9])(?:{'|'.join(map(re.escape, _NAMES))})(?![A-Za-z0-9])(?:\.(?=\w)|_+)?",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Docstring:
    """One docstring and where it stands.

    Args:
        package: As asked for: a top-level package, or "python" for the standard library.
        module: Dotted name of the module.
        kind: "module", "class", "function" or "method".
        name: Qualified name in the module; empty for the module itself.
        text: The whole docstring with its indentation removed.
    """

    package: str
    module: str
    kind: str
    name: str
    text: str


class LibraryRow(NamedTuple):
    """A text without the names of the libraries, and the label word of the library it is from."""

    text: str
    label: str


def read_docstrings(
    packages: Sequence[str], *, max_per_package: int | None = None
) -> list[Docstring]:
    """Docstrings of installed packages in a fixed order, read with `ast` and without importing.

    The files of a package come in the order of a hash of their path, so that a cap takes an
    unbiased sample. Folders of tests and files that do not parse are skipped.

    Args:
        packages: Top-level packages; "python" means the standard library.
        max_per_package: Stop reading a package after this many docstrings.

    Raises:
        ValueError: A package is not installed.
    """
    found = []
    for package in packages:
        of_package = []
        for docstring in _iter_docstrings(package):
            if len(of_package) == max_per_package:
                break
            of_package.append(docstring)
        found.extend(of_package)
    return found


def clean_text(text: str) -> str:
    """A docstring as the task shows it: no library names, one line, at most 600 characters."""
    text = _anonymous(" ".join(text.split())[: 5 * TEXT_LENGTH])
    if len(text) > TEXT_LENGTH:
        text = text[: TEXT_LENGTH + 1].rpartition(" ")[0] or text[:TEXT_LENGTH]
    return text


def split_of(text: str) -> str:
    """The split ("train", "dev" or "test") that a docstring, raw or cleaned, belongs to."""
    return _split_of_cleaned(clean_text(text))


def held_out(text: str) -> bool:
    """True where a docstring falls into dev or test, so that pretraining has to leave it out."""
    return split_of(text) != "train"


def library_rows(*, cache: bool = True) -> dict[str, list[LibraryRow]]:
    """The rows of the library task as {"train", "dev", "test"}, in a fixed shuffled order.

    Exact and near duplicates are removed; a text that near-duplicates one of another class says
    nothing about its library, so both go. Each class is capped at the same number of rows.

    Args:
        cache: Keep the rows in one file below `SPT_JAX_CACHE` (`~/.cache/spt_jax` by default),
            named by the versions of the packages and of these rules.

    Raises:
        ValueError: One of the packages in `LIBRARIES` is not installed.
    """
    folder = Path(os.environ.get("SPT_JAX_CACHE") or "~/.cache/spt_jax").expanduser()
    path = folder / f"library-{_cache_key()}.json"
    rows = _read_cache(path) if cache else None
    if rows is None:
        rows = _select_rows()
        if cache:
            _write_cache(path, rows)
    splits: dict[str, list[LibraryRow]] = {"train": [], "dev": [], "test": []}
    for row in rows:
        splits[_split_of_cleaned(row.text)].append(row)
    return splits


def drop_held_out(
    texts: Iterable[str], splits: dict[str, list[LibraryRow]] | None = None
) -> list[str]:
    """The texts that pretraining may see: none that is held out, contains or resembles such a row.

    Args:
        texts: Whole docstrings, before they are cut into pieces.
        splits: What `library_rows` returned; called where not given.
    """
    splits = library_rows() if splits is None else splits
    index = ShingleIndex(either_way=False)
    for number, row in enumerate([*splits["dev"], *splits["test"]]):
        index.add(number, row.text)
    return [t for t in texts if not held_out(t) and not index.alike(_anonymous(t))]


def _iter_docstrings(package: str) -> Iterator[Docstring]:
    for root, path in _python_files(package):
        parts = list(path.relative_to(root).with_suffix("").parts)
        if parts[-1] == "__init__":
            parts.pop()
        module = ".".join(parts if package == "python" else [package, *parts])
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # invalid escapes in other people's strings
                tree = ast.parse(path.read_bytes())
        except (SyntaxError, ValueError, RecursionError, OSError):
            continue
        for kind, name, text in _walk(tree, "module", ""):
            yield Docstring(package, module, kind, name, text)


def _python_files(package: str) -> list[tuple[Path, Path]]:
    if package == "python":
        roots = [sysconfig.get_paths()["stdlib"]]
    else:
        # Of a top-level name this finds the folder and runs none of its code.
        spec = importlib.util.find_spec(package) if package.isidentifier() else None
        if spec is None or not spec.submodule_search_locations:
            raise ValueError(
                f"package '{package}' is not installed, but its docstrings are needed; install it"
            )
        roots = list(spec.submodule_search_locations)
    files = []
    for root in roots:
        for folder, folders, names in os.walk(root):
            folders[:] = [name for name in folders if name not in SKIPPED_FOLDERS]
            for name in names:
                if not name.endswith(".py") or name.startswith("test_"):
                    continue
                path = Path(folder, name)
                relative = path.relative_to(root).as_posix()
                if not relative.endswith("_test.py"):
                    files.append((hashlib.sha256(relative.encode()).digest(), Path(root), path))
    return [(root, path) for _, root, path in sorted(files)]


def _walk(node: ast.AST, kind: str, name: str) -> Iterator[tuple[str, str, str]]:
    text = ast.get_docstring(node, clean=False)  # type: ignore[arg-type]
    if text and not _SURROGATES.search(text):  # a lone surrogate cannot be written to a file
        yield kind, name, inspect.cleandoc(text)
    pending = list(reversed(node.body))  # type: ignore[attr-defined]
    while pending:
        child = pending.pop()
        if isinstance(child, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            inner = "method" if isinstance(node, ast.ClassDef) else "function"
            inner = "class" if isinstance(child, ast.ClassDef) else inner
            yield from _walk(child, inner, f"{name}.{child.name}".lstrip("."))
        else:  # definitions also stand below if, try and with
            for block in ("finalbody", "orelse", "handlers", "cases", "body"):
                pending.extend(reversed(getattr(child, block, ())))


def _anonymous(text: str) -> str:
    return " ".join(_WHOLE.sub("", _CAMEL.sub("", " ".join(text.split()))).split())


def _split_of_cleaned(cleaned: str) -> str:
    share = int.from_bytes(_digest(cleaned)[8:16], "big") / 2**64
    if share < TEST_SHARE:
        return "test"
    return "dev" if share < TEST_SHARE + DEV_SHARE else "train"


def _digest(cleaned: str) -> bytes:
    # Of the words alone, so that reflowing a docstring does not move it to another split.
    return hashlib.sha256(" ".join(words(cleaned)).encode()).digest()


def _select_rows() -> list[LibraryRow]:
    pool: dict[bytes, LibraryRow] = {}
    copied: set[LibraryRow] = set()  # word for word in another class too
    for label, (package, _, _) in LIBRARIES.items():
        size = len(pool) + POOL_PER_CLASS
        for docstring in _iter_docstrings(package):
            text = clean_text(docstring.text)
            if len(text) < MIN_LENGTH:
                continue
            key = _digest(text)
            first = pool.setdefault(key, LibraryRow(text, label))
            if first.label != label:
                copied.add(first)
            if len(pool) == size:
                break
    rows = [pool[key] for key in sorted(pool)]
    unclear = near_duplicates([row.text for row in rows], [row.label for row in rows])
    unclear |= {number for number, row in enumerate(rows) if row in copied}
    of_class: Counter[str] = Counter()
    of_opening: Counter[tuple[str, ...]] = Counter()
    selected = []
    for number, row in enumerate(rows):
        opening = (row.label, *words(row.text)[:3])
        if number in unclear or of_opening[opening] == ROWS_PER_OPENING:
            continue
        if of_class[row.label] < ROWS_PER_CLASS:
            of_class[row.label] += 1
            of_opening[opening] += 1
            selected.append(row)
    return selected


@functools.cache
def _cache_key() -> str:
    parts = [platform.python_version()]
    for rules in (__file__, duplicates.__file__):
        parts.append(hashlib.sha256(Path(rules).read_bytes()).hexdigest())
    for label, (_, distribution, _) in LIBRARIES.items():
        if distribution:
            try:
                parts.append(f"{distribution} {importlib.metadata.version(distribution)}")
            except importlib.metadata.PackageNotFoundError:
                raise ValueError(
                    f"the task 'library' needs docstrings of {distribution} for its label "
                    f"'{label}', and it is not installed; install {distribution}"
                ) from None
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _read_cache(path: Path) -> list[LibraryRow] | None:
    try:
        stored_hash, _, body = path.read_text(encoding="utf-8").partition("\n")
        if hashlib.sha256(body.encode()).hexdigest() != stored_hash:
            raise ValueError("its hash does not match")
        return [LibraryRow(text, label) for text, label in json.loads(body)]
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        logging.getLogger("spt_jax").warning("%s is unusable (%s); reading again", path, error)
        return None


def _write_cache(path: Path, rows: list[LibraryRow]) -> None:
    body = json.dumps(rows, ensure_ascii=False)
    part = path.with_suffix(f".{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(f"{hashlib.sha256(body.encode()).hexdigest()}\n{body}", encoding="utf-8")
        os.replace(part, path)
    except OSError as error:  # a cache that cannot be written costs seconds, not the run
        logging.getLogger("spt_jax").warning("cannot write the cache %s (%s)", path, error)
        with contextlib.suppress(OSError):
            part.unlink()
