"""Selected rows are kept in a file that is made again where it is old or broken."""

import json
import logging

import pytest

from spt_jax.data.builtin import cache as rows
from spt_jax.data.builtin.cache import LabeledText, cached

MADE = [LabeledText(f"the text number {i} \u2028", "numpy") for i in range(50)]


@pytest.fixture
def load():
    """`load()` goes through the cache; `load.calls` counts how often the rows were made."""

    def load(rules=("cache",), distributions=("numpy",)):
        def make():
            load.calls += 1
            return MADE

        return [LabeledText(*row) for row in cached("mine", rules, distributions, make)]

    load.calls = 0
    return load


def test_cache_is_rebuilt_where_broken(tmp_path, monkeypatch, caplog, load):
    monkeypatch.setenv("SPT_JAX_CACHE", str(tmp_path / "new"))
    assert load() == load() == MADE
    assert load.calls == 1
    (path,) = (tmp_path / "new").iterdir()  # one file, and nothing left beside it
    assert path.name.startswith("mine-")
    for broken in (path.read_bytes().replace(b"numpy", b"scipy", 1), b"", b"\xff\xfe", b"x\n[]"):
        path.write_bytes(broken)
        caplog.clear()
        with caplog.at_level(logging.WARNING, "spt_jax"):
            assert load() == MADE
        assert len(caplog.records) == 1
        assert str(path) in caplog.text
    assert load.calls == 5
    assert json.loads(path.read_text("utf-8").split("\n", 1)[1])


def test_cache_that_cannot_be_written_is_a_warning(tmp_path, monkeypatch, caplog, load):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SPT_JAX_CACHE", str(tmp_path / "file" / "below"))
    with caplog.at_level(logging.WARNING, "spt_jax"):
        assert load() == MADE
    assert "cannot write the cache" in caplog.text


def test_cache_that_cannot_be_finished_leaves_nothing(tmp_path, monkeypatch, load):
    def fail(source, target):
        raise OSError("disk full")

    monkeypatch.setenv("SPT_JAX_CACHE", str(tmp_path))
    monkeypatch.setattr(rows.os, "replace", fail)
    assert load() == MADE
    assert list(tmp_path.iterdir()) == []


def test_cache_depends_on_versions_and_rules(tmp_path, monkeypatch, load):
    monkeypatch.setenv("SPT_JAX_CACHE", str(tmp_path))
    load()
    load(rules=("cache", "duplicates"))
    load(distributions=("numpy", "scipy"))
    assert load.calls == 3
    monkeypatch.setattr(rows.importlib.metadata, "version", lambda name: "0.0.1")
    load()
    assert load.calls == 4


def test_package_that_is_not_installed(load):
    with pytest.raises(ValueError, match="rows of 'mine' .*gone-dist.*install gone-dist"):
        load(distributions=("numpy", "gone-dist"))
