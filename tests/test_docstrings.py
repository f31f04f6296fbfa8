"""Docstrings are read without importing, and the library task keeps its splits apart."""

import json
import logging
import re
import sys
from collections import Counter

import pytest

from spt_jax.data import docstrings
from spt_jax.data.docstrings import (
    LIBRARIES,
    LibraryRow,
    clean_text,
    drop_held_out,
    held_out,
    library_rows,
    read_docstrings,
    split_of,
)
from spt_jax.data.duplicates import ShingleIndex, near_duplicates, words

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

LONG = "computes the weighted mean of every column and ignores the rows that hold no number at all"


@pytest.fixture(scope="module")
def rows():
    """The real rows, from the cache at the latest the second time."""
    library_rows()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(docstrings, "_select_rows", lambda: pytest.fail("the cache was not used"))
        return library_rows()


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


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Like np.array or\n  jax.numpy.array.", "Like array or array."),
        ("NumPy's way, in numpy. Then more.", "'s way, in . Then more."),
        ("see from_numpy, hf_hub_download and tfds.load", "see from_, download and load"),
        ("HfApi, JaxArray, ModelHubMixin and GitHub", "Api, Array, ModelMixin and GitHub"),
        ("the Hugging Face Hub, huggingface.co", "the , co"),
        ("a sparse dataset transformer snippet", "a sparse dataset transformer snippet"),
    ],
)
def test_names_of_libraries_are_removed(text, expected):
    assert clean_text(text) == expected


def test_cleaned_text_is_cut_at_a_word_and_stays_clean():
    text = clean_text("word " * 300)
    assert len(text) <= 600
    assert text.endswith(" word")
    assert clean_text(text) == text
    assert len(clean_text("x" * 1000)) == 600


def test_split_depends_on_words_alone():
    assert split_of(LONG) == split_of(LONG.upper().replace(" ", " \n  ") + ".")
    splits = Counter(split_of(f"text number {i}") for i in range(4000))
    assert 500 < splits["test"] < 700
    assert 320 < splits["dev"] < 480
    assert all(held_out(t) == (split_of(t) != "train") for t in map(str, range(100)))


def test_library_rows_are_many_and_balanced(rows):
    assert list(rows) == ["train", "dev", "test"]
    assert len(rows["test"]) >= 1000
    for split in rows.values():
        counts = Counter(row.label for row in split)
        assert set(counts) == set(LIBRARIES)
        assert max(counts.values()) < 0.2 * len(split)
    totals = Counter(row.label for split in rows.values() for row in split)
    assert max(totals.values()) <= docstrings.ROWS_PER_CLASS


def test_library_rows_name_no_library(rows):
    names = re.compile(
        r"(?<![a-z0-9])(numpy|np|scipy|jax|jnp|python|transformers|tfds|datasets|orbax|ocp|hf"
        r"|huggingface_hub|huggingface|hugging face|hub)(?![a-z0-9])",
        re.IGNORECASE,
    )
    found = [row for split in rows.values() for row in split if names.search(row.text)]
    assert found == []


def test_library_rows_are_clean_and_in_their_split(rows):
    for name, split in rows.items():
        for row in split:
            assert 40 <= len(row.text) <= 600
            assert clean_text(row.text) == row.text
            assert split_of(row.text) == name


def test_library_rows_have_no_near_duplicates_across_splits(rows):
    index = ShingleIndex()
    for number, row in enumerate(rows["train"]):
        index.add(number, row.text)
    for name in ("dev", "test"):
        assert [row for row in rows[name] if index.alike(row.text)] == []


def test_pretraining_sees_no_held_out_row_in_any_form(rows):
    row = max(rows["test"], key=lambda row: len(row.text)).text
    half = " ".join(row.split()[: int(0.7 * len(row.split()))])
    fresh = next(t for t in (f"{LONG} {i}" for i in range(99)) if not held_out(t))
    around = f"{fresh}\n\n  {row}\n{fresh}"
    unlisted = next(t for t in (f"{LONG} {i}" for i in range(99)) if held_out(t))
    texts = [row, half, around, fresh, row.upper(), unlisted]
    assert drop_held_out(texts, rows) == [fresh]
    train = [row.text for row in rows["train"][:200]]
    assert drop_held_out(train, rows) == train


def test_cache_is_rebuilt_where_broken(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("SPT_JAX_CACHE", str(tmp_path / "new"))
    selected = [LibraryRow(f"{LONG} {i} \u2028", "numpy") for i in range(50)]
    calls = []
    monkeypatch.setattr(docstrings, "_select_rows", lambda: calls.append(1) or selected)
    first = library_rows()
    assert sorted(sum(first.values(), [])) == sorted(selected)
    assert library_rows() == first
    assert len(calls) == 1
    (path,) = (tmp_path / "new").iterdir()  # one file, and nothing left beside it
    for broken in (path.read_bytes().replace(b"numpy", b"scipy", 1), b"", b"\xff\xfe", b"x\n[]"):
        path.write_bytes(broken)
        caplog.clear()
        with caplog.at_level(logging.WARNING, "spt_jax"):
            assert library_rows() == first
        assert len(caplog.records) == 1
        assert str(path) in caplog.text
    assert len(calls) == 5
    assert json.loads(path.read_text("utf-8").split("\n", 1)[1])


def test_cache_that_cannot_be_written_is_a_warning(tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SPT_JAX_CACHE", str(tmp_path / "file" / "below"))
    monkeypatch.setattr(docstrings, "_select_rows", lambda: [LibraryRow(LONG, "numpy")])
    with caplog.at_level(logging.WARNING, "spt_jax"):
        assert sum(library_rows().values(), []) == [LibraryRow(LONG, "numpy")]
    assert "cannot write the cache" in caplog.text


def test_cache_that_cannot_be_finished_leaves_nothing(tmp_path, monkeypatch):
    def fail(source, target):
        raise OSError("disk full")

    monkeypatch.setenv("SPT_JAX_CACHE", str(tmp_path))
    monkeypatch.setattr(docstrings, "_select_rows", lambda: [LibraryRow(LONG, "numpy")])
    monkeypatch.setattr(docstrings.os, "replace", fail)
    assert sum(library_rows().values(), []) == [LibraryRow(LONG, "numpy")]
    assert list(tmp_path.iterdir()) == []


def test_cache_depends_on_versions(monkeypatch):
    key = docstrings._cache_key.__wrapped__
    before = key()
    assert key() == before
    monkeypatch.setattr(docstrings.importlib.metadata, "version", lambda name: "0.0.1")
    assert key() != before


def test_library_task_without_one_of_its_packages(monkeypatch):
    monkeypatch.setitem(LIBRARIES, "gone", ("gone", "gone-dist", ("gone",)))
    docstrings._cache_key.cache_clear()
    with pytest.raises(ValueError, match="task 'library'.*'gone'.*install gone-dist"):
        library_rows()
    docstrings._cache_key.cache_clear()


def test_words_ignore_case_punctuation_and_underscores():
    assert words("Return_the `Mean`,\n2x.") == ["return", "the", "mean", "2x"]


def test_near_duplicates_keep_the_first_of_one_label_and_none_of_two():
    other = "opens a file for reading and returns its handle to the caller unless it is locked"
    texts = [LONG, LONG + " indeed and more words", other, other.replace("file", "pipe"), "short"]
    assert near_duplicates(texts, ["a", "a", "a", "a", "a"]) == {1, 3}
    assert near_duplicates(texts, ["a", "a", "a", "b", "b"]) == {1, 2, 3}


def test_index_can_look_one_way_only():
    start = " ".join(LONG.split()[:8])
    both, one = ShingleIndex(), ShingleIndex(either_way=False)
    for index in (both, one):
        index.add(7, LONG)
        assert index.alike(f"before {LONG} after") == [7]
        assert index.alike("nothing of the kind is written here") == []
    assert both.alike(start) == [7]
    assert one.alike(start) == []
