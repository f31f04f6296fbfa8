"""The import graph of the package: few rooms at its top, and no import that runs up or in circles.

A room is a module or a folder at the top of `spt_jax/`. Every import statement counts, also the
imports in functions and for type checkers. The lazy public names of `spt_jax/__init__.py` do not.
"""

import ast
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import pytest

import spt_jax

PACKAGE = Path(spt_jax.__file__).parent
MOST_ROOMS = 30
NO_ROOMS = {"__init__", "__main__", "backbones"}


class Import(NamedTuple):
    """Module `source` imports module `target`, on `line` of its file."""

    source: str
    target: str
    line: int


def read_imports(package: Path) -> list[Import]:
    """All imports between modules below a package's folder, `__init__` and `__main__` left out."""
    files = {_module(package, path): path for path in package.rglob("*.py")}
    return [
        Import(source, target, line)
        for source, path in files.items()
        if path.parent != package or path.stem not in NO_ROOMS
        for target, line in _targets(ast.parse(path.read_text()), package.name, files)
    ]


def _module(package: Path, path: Path) -> str:
    parts = path.relative_to(package.parent).with_suffix("").parts
    return ".".join(parts).removesuffix(".__init__")


def _targets(tree: ast.AST, package: str, modules: Iterable[str]) -> Iterable[tuple[str, int]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: write the import as from {package}.x"
            found = [(node.module or "", f"{node.module}.{alias.name}") for alias in node.names]
            names = [name if name in modules else module for module, name in found]
        else:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        for name in names:
            if name.startswith(f"{package}."):
                yield name, node.lineno


def room(module: str) -> str:
    """`models` of `spt_jax.models.formats.zarr_array`."""
    return module.split(".")[1]


def find_circle(imports: Iterable[Import], place: Callable[[str], str]) -> list[Import]:
    """Imports that lead from a place back to it, or an empty list.

    Args:
        imports: The graph.
        place: Where a module is; imports within one place are left out.
    """
    arrows: dict[str, dict[str, Import]] = {}
    for found in imports:
        if place(found.source) != place(found.target):
            arrows.setdefault(place(found.source), {}).setdefault(place(found.target), found)
    done: set[str] = set()

    def search(start: str, path: list[Import], on_path: list[str]) -> list[Import]:
        for target, found in arrows.get(start, {}).items():
            if target in on_path:
                return [*path, found][on_path.index(target) :]
            if target not in done and (
                circle := search(target, [*path, found], [*on_path, target])
            ):
                return circle
        done.add(start)
        return []

    return next((circle for start in arrows if (circle := search(start, [], [start]))), [])


def explain(circle: list[Import]) -> str:
    """The circle, one import a line."""
    lines = [f"{found.source} imports {found.target} in line {found.line}" for found in circle]
    return "imports run in a circle:\n" + "\n".join(lines)


def count_floors(imports: Iterable[Import]) -> dict[str, int]:
    """The floor of every room, without circles: 0, or one above the highest room it imports."""
    below: dict[str, set[str]] = {}
    for found in imports:
        below.setdefault(room(found.target), set())
        if room(found.source) != room(found.target):
            below.setdefault(room(found.source), set()).add(room(found.target))

    def floor(name: str) -> int:
        return max((floor(other) + 1 for other in below[name]), default=0)

    return {name: floor(name) for name in below}


@pytest.fixture(scope="module")
def imports():
    """All imports of the package, read once."""
    return read_imports(PACKAGE)


def test_the_package_has_few_rooms():
    rooms = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or path.is_dir()}
    rooms -= NO_ROOMS | {"__pycache__"}
    assert len(rooms) <= MOST_ROOMS, sorted(rooms)
    assert {"cli", "t5", "train"} <= rooms


def test_no_import_runs_up_or_in_a_circle_between_rooms(imports):
    circle = find_circle(imports, room)
    assert not circle, explain(circle)
    floors = count_floors(imports)
    assert floors["cli"] == max(floors.values()) and floors["errors"] == 0
    for found in imports:
        if room(found.source) != room(found.target):
            assert floors[room(found.source)] > floors[room(found.target)], found


def test_no_import_runs_in_a_circle_between_modules(imports):
    circle = find_circle(imports, str)
    assert not circle, explain(circle)


def test_no_module_imports_a_public_name_from_the_package_itself():
    """`from spt_jax import fit` would hide that its module imports `train`."""
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module == "spt_jax":
                assert [alias.name for alias in node.names] == ["__version__"], path


@pytest.fixture
def house(tmp_path):
    """A package: cli, above it train, above that t5/model and t5/layers."""
    files = {
        "__init__": "from house.train import fit",
        "cli": "def main():\n    from house.train import fit",
        "train": "import house.t5.model",
        "t5/__init__": "from house.t5.model import T5",
        "t5/model": "from house.t5 import layers",
        "t5/layers": "",
    }
    for name, text in files.items():
        path = tmp_path / "house" / f"{name}.py"
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_text(text)
    return tmp_path / "house"


def test_floors_are_counted_from_the_lowest_and_by_the_longest_way(house):
    with (house / "cli.py").open("a") as file:
        file.write("\n    from house.t5 import T5")
    imports = read_imports(house)
    assert not find_circle(imports, room) and not find_circle(imports, str)
    assert count_floors(imports) == {"cli": 2, "train": 1, "t5": 0}


def test_a_circle_between_rooms_is_told_with_its_lines(house):
    (house / "t5/layers.py").write_text("def late():\n    from house.train import fit")
    circle = find_circle(read_imports(house), room)
    assert sorted(explain(circle).splitlines()) == [
        "house.t5.layers imports house.train in line 2",
        "house.train imports house.t5.model in line 1",
        "imports run in a circle:",
    ]


def test_a_circle_between_modules_of_one_room_is_told(house):
    (house / "t5/layers.py").write_text("import os\nfrom house.t5 import model")
    imports = read_imports(house)
    assert not find_circle(imports, room)
    assert sorted(explain(find_circle(imports, str)).splitlines()) == [
        "house.t5.layers imports house.t5.model in line 2",
        "house.t5.model imports house.t5.layers in line 1",
        "imports run in a circle:",
    ]


def test_a_relative_import_is_an_error(house):
    (house / "cli.py").write_text("\nfrom .train import fit")
    with pytest.raises(AssertionError, match="line 2: write the import as from house.x"):
        read_imports(house)
