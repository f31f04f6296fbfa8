"""Docstrings of installed packages: text that every installation has needs no download.

Packages are read with `ast` and never imported. The invariant: what is read depends on the
installed files alone, and so does its order.
"""

import ast
import hashlib
import importlib.util
import inspect
import os
import re
import sysconfig
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

SKIPPED_FOLDERS = frozenset(
    (
        *("test", "tests", "idlelib", "idle_test", "lib2to3", "turtledemo"),
        *("site-packages", "dist-packages", "_bundled"),
    )
)

_SURROGATES = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class Docstring:
    """One docstring and where it stands.

    Args:
        package: As asked for: a top-level package, or "python" for the standard library.
        module: Dotted name of the module.
        kind: "module", "class", "function" or "method".
        name: Qualified name in the module; empty for the module itself.
        text: The whole docstring with its indentation removed.
        annotations: {name: type as written} of the arguments of a function, or of the fields and
            `__init__` of a class.
    """

    package: str
    module: str
    kind: str
    name: str
    text: str
    annotations: dict[str, str] = field(default_factory=dict, compare=False)


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
    return [d for package in packages for d in islice(iter_docstrings(package), max_per_package)]


def iter_docstrings(package: str) -> Iterator[Docstring]:
    """The docstrings of one package, as `read_docstrings` orders them, read as they are needed."""
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
        for node, kind, name, text in _walk(tree, "module", ""):
            yield Docstring(package, module, kind, name, text, _annotations(node))


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


def _walk(node: ast.AST, kind: str, name: str) -> Iterator[tuple[ast.AST, str, str, str]]:
    text = ast.get_docstring(node, clean=False)  # type: ignore[arg-type]
    if text and not _SURROGATES.search(text):  # a lone surrogate cannot be written to a file
        yield node, kind, name, inspect.cleandoc(text)
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


def _annotations(node: ast.AST) -> dict[str, str]:
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
        arguments = (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)
        return {a.arg: ast.unparse(a.annotation) for a in arguments if a.annotation is not None}
    found = {}
    for child in node.body if isinstance(node, ast.ClassDef) else ():
        if isinstance(child, ast.AnnAssign) and isinstance(child.target, ast.Name):
            found[child.target.id] = ast.unparse(child.annotation)
        elif isinstance(child, ast.FunctionDef) and child.name == "__init__":
            found |= _annotations(child)
    return found
