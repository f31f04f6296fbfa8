"""Docstrings are read without importing, in a fixed order."""

import sys

import pytest

from spt_jax.data.builtin.docstrings import read_docstrings

SOURCE = '''
"""About the module."""
raise RuntimeError("this code was run")

if True:
    def plain():
        """A function
           of two lines."""
        def inner():
            "Inside."

class Thing:
    """A class."""
    async def act(self):
        """A method."""
    def silent(self):
        pass

match 1:
    case 1:
        def matched():
            """Below a case."""
'''


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package `madeup` of a few files, importable but never to be imported."""
    monkeypatch.syspath_prepend(tmp_path)
    files = {
        "__init__.py": "'''Top.'''\nraise RuntimeError('this code was run')",
        "deep/code.py": SOURCE,
        "deep/broken.py": "def (:",
        "deep/odd.py": 'def f():\n    """Escaped \\ud800 half."""\n',
        "tests/case.py": "'''In a folder of tests.'''",
        "test_it.py": "'''A test.'''",
        "it_test.py": "'''Another test.'''",
        "data.txt": "'''Not Python.'''",
    }
    for name, text in files.items():
        path = tmp_path / "madeup" / name
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_text(text)
    return "madeup"


def test_reads_every_kind_without_importing(package):
    found = read_docstrings([package])
    assert {(d.module, d.kind, d.name, d.text) for d in found} == {
        ("madeup", "module", "", "Top."),
        ("madeup.deep.code", "module", "", "About the module."),
        ("madeup.deep.code", "function", "plain", "A function\nof two lines."),
        ("madeup.deep.code", "function", "plain.inner", "Inside."),
        ("madeup.deep.code", "class", "Thing", "A class."),
        ("madeup.deep.code", "method", "Thing.act", "A method."),
        ("madeup.deep.code", "function", "matched", "Below a case."),
    }
    assert not any(name.startswith("madeup") for name in sys.modules)
    assert found == read_docstrings([package])


def test_cap_takes_the_first_of_each_package(package):
    both = read_docstrings([package, package], max_per_package=2)
    first = read_docstrings([package])[:2]
    assert both == first + first
    assert read_docstrings([package], max_per_package=0) == []


def test_reads_the_standard_library():
    found = read_docstrings(["python"], max_per_package=300)
    assert len(found) == 300
    assert {d.package for d in found} == {"python"}
    assert not any("test" in d.module.split(".") for d in found)
    assert len({d.module.split(".")[0] for d in found}) > 10  # not the first files by name


@pytest.mark.parametrize("name", ["no_such_package", "os.path", "wave"])
def test_package_that_is_not_installed(name):
    with pytest.raises(ValueError, match=f"package '{name}' is not installed.*install it"):
        read_docstrings([name])


def test_annotations_of_functions_and_classes(tmp_path, monkeypatch):
    (tmp_path / "typed").mkdir()
    (tmp_path / "typed" / "__init__.py").write_text(
        '''
def act(first: int, /, second: "str | None" = None, *rest: bool, third, fourth: list[int]) -> int:
    """Acts."""

class Box:
    """Holds."""
    size: int = 3
    label = "a"
    def __init__(self, inner: dict):
        pass
    def open(self, slowly: bool):
        pass
'''
    )
    monkeypatch.syspath_prepend(tmp_path)
    act, box = read_docstrings(["typed"])
    assert act.annotations == {"first": "int", "second": "'str | None'", "fourth": "list[int]"}
    assert box.annotations == {"size": "int", "inner": "dict"}
