"""Read the docstrings of installed packages, a text that no one has to download.

Packages are parsed with `ast` and never imported.

Invariant: the docstrings and their order depend on the installed files only.
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
    "test tests idlelib idle_test lib2to3 turtledemo site-packages dist-packages _bundled".split()
)

_SURROGATES = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class Docstring:
    """One docstring and its place.

    Args:
        package: A top-level package, or "python" for the standard library.
        module: Dotted name of the module.
        kind: "module", "class", "function" or "method".
        name: Qualified name in the module; empty for the module itself.
        text: The whole docstring without common indentation.
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
    """Return the docstrings of installed packages in a fixed order.

    Files are ordered by a hash of their path, so that the first ones are an unbiased sample of the
    package. Folders of tests and files that cannot be parsed are skipped.

    Args:
        packages: Top-level packages; "python" means the standard library.
        max_per_package: Largest number of docstrings read of a package.

    Raises:
        ValueError: A package is not installed.
    """
    return [d for package in packages for d in islice(iter_docstrings(package), max_per_package)]


def iter_docstrings(package: str) -> Iterator[Docstring]:
    """Yield the docstrings of one package in the order of `read_docstrings`."""
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
    """Return (root of the package, file) of each file, ordered by a hash of the path."""
    if package == "python":
        roots = [sysconfig.get_paths()["stdlib"]]
    else:
        # For a top-level name, this finds the folder without running any of its code.
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
                if name.endswith(".py") and not name.startswith("test_"):
                    path = Path(folder, name)
                    relative = path.relative_to(root).as_posix()
                    if not relative.endswith("_test.py"):
                        files.append((hashlib.sha256(relative.encode()).digest(), Path(root), path))
    return [(root, path) for _, root, path in sorted(files)]


def _walk(node: ast.AST, kind: str, name: str) -> Iterator[tuple[ast.AST, str, str, str]]:
    """Yield (node, kind, name, docstring) of a definition and of those inside, in source order."""
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
        else:  # such as if, try and with, which may contain definitions
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
