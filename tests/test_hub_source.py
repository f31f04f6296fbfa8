"""The real library `datasets`, where it is installed: rows as a task of the papers needs them."""

import dataclasses
import json

import pyarrow
import pyarrow.parquet
import pytest

from spt_jax.config.train import TaskConfig
from spt_jax.data.papers import tasks as paper_tasks
from spt_jax.data.papers.origins import Hub, Source
from spt_jax.data.tasks import load_task

datasets = pytest.importorskip("datasets")

ROWS = [
    {
        "passage": "p",
        "query": "q é",
        "entities": ["a", "b"],
        "answers": ["a"] if i else ["b", "a"],
        "idx": {"passage": i, "query": 1},
    }
    for i in range(3)
]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """ReCoRD as a dataset in a folder, which `datasets` reads as it reads one of the Hub."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "data").mkdir()
    for split in ("train", "validation"):
        text = "".join(json.dumps(row) + "\n" for row in ROWS)
        (tmp_path / "data" / f"{split}.jsonl").write_text(text)
    paper = paper_tasks.PAPER_TASKS["super_glue/record"]
    source = Source(hub=Hub(str(tmp_path / "data")))
    replaced = dataclasses.replace(paper, source=source)
    monkeypatch.setitem(paper_tasks.PAPER_TASKS, "super_glue/record", replaced)
    return tmp_path / "data"


def test_lists_and_objects_come_as_the_format_needs_them(folder):
    from_hub = load_task(TaskConfig(name="super_glue/record", origin="hub"))
    from_folder = load_task(TaskConfig(name="super_glue/record", origin=str(folder)))
    files, notes = from_folder.notes[:2], from_folder.notes[2:]
    assert files[0].startswith("train: 3 rows in ") and files[1].startswith("validation: 3 rows in")
    assert from_hub == dataclasses.replace(from_folder, notes=notes)
    assert [e.targets for e in from_hub.splits["train"]] == ["b", "a", "a", "a"]


@pytest.mark.parametrize("config", ["record", None])
def test_a_dataset_of_a_script_is_read_from_the_tables_that_the_hub_made(
    folder, tmp_path, monkeypatch, config
):
    """The library refuses scripts; the branch that the Hub fills has a folder for each config."""
    expected = load_task(TaskConfig(name="super_glue/record", origin="hub"))
    branch = tmp_path / "branch"
    for split in ("train", "validation"):
        (branch / (config or "default") / split).mkdir(parents=True)
        rows = pyarrow.Table.from_pylist(ROWS)
        place = branch / (config or "default") / split / "0000.parquet"
        pyarrow.parquet.write_table(rows, place)
    load_dataset = datasets.load_dataset

    def of_the_hub(path, name=None, *, revision=None, **options):
        if revision is None:
            raise RuntimeError("Dataset scripts are no longer supported, but found record.py")
        assert (path, name, revision) == ("owner/record", None, "refs/convert/parquet")
        return load_dataset(str(branch), **options)

    monkeypatch.setattr(datasets, "load_dataset", of_the_hub)
    paper = paper_tasks.PAPER_TASKS["super_glue/record"]
    source = Source(hub=Hub("owner/record", config))
    replaced = dataclasses.replace(paper, source=source)
    monkeypatch.setitem(paper_tasks.PAPER_TASKS, "super_glue/record", replaced)
    assert load_task(TaskConfig(name="super_glue/record", origin="hub")) == expected


def test_a_split_that_the_dataset_lacks(folder):
    (folder / "validation.jsonl").unlink()
    with pytest.raises(ValueError, match="split 'validation' of dataset .* cannot be loaded from"):
        load_task(TaskConfig(name="super_glue/record", origin="hub"))
