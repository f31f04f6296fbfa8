"""TensorFlow Datasets without TensorFlow: a dataset is prepared, read and trained from."""

import importlib
import logging
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from support import tiny

from spt_jax.config.train import DataConfig, TaskConfig
from spt_jax.data.example import Example
from spt_jax.data.papers import tfds as tfds_source
from spt_jax.data.papers.tasks import PAPER_TASKS
from spt_jax.data.papers.tfds import prepare_tfds, tfds_records
from spt_jax.data.records import Record
from spt_jax.data.tasks import load_task, load_test
from spt_jax.models.backbone import save_backbone
from spt_jax.tokenizers.bpe import train_tokenizer
from spt_jax.train import fit


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """An empty TFDS_DATA_DIR; no test may import TensorFlow, where that is installed."""
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    monkeypatch.setattr(tfds_source, "find_spec", lambda name: None)
    yield tmp_path / "tfds"
    assert "tensorflow" not in sys.modules


def build(folder, name, config, features, splits, version="1.0.0"):
    """Writes {split: rows} as TFDS itself does, in array_record files."""

    class SmallDataset(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=config, version=version)]

        def _info(self):
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features)
            )

        def _split_generators(self, dl_manager):
            return {split: enumerate(rows) for split, rows in splits.items()}

        def _generate_examples(self):
            raise NotImplementedError

    SmallDataset.name = name
    builder = SmallDataset(config=config, data_dir=folder, file_format="array_record")
    builder.download_and_prepare()


TEXT = tfds.features.Text()
COPA = {
    "premise": TEXT,
    "choice1": TEXT,
    "choice2": TEXT,
    "question": TEXT,
    "label": tfds.features.ClassLabel(names=["choice1", "choice2"]),
    "idx": np.int32,
}


def copa(count):
    return [
        {
            "premise": f"the oak {i} é",
            "choice1": "the cat",
            "choice2": "the dog",
            "question": "cause",
            "label": i % 2,
            "idx": i,
        }
        for i in range(count)
    ]


def build_copa(folder, count=12, **options):
    splits = {"train": copa(count), "validation": copa(3)}
    build(folder, "super_glue", "copa", COPA, splits, **options)


def test_a_prepared_dataset_is_trained_from_without_tensorflow(folder, tmp_path):
    build_copa(folder)
    words = ["choice1", "choice2", *(row["premise"] for row in copa(12))]
    tokenizer = train_tokenizer(words * 2, 320)
    params = tiny.random_params(tiny.SHAPE)
    save_backbone(tmp_path / "copa", "copa", tiny.SHAPE, params, tokenizer)
    config = tiny.train_config(
        tmp_path / "other",
        model=str(tmp_path / "copa"),
        task=TaskConfig(name="super_glue/copa"),
        data=DataConfig(inputs_length=64, targets_length=12, batch_size=4, buckets=()),
        steps=2,
        dropout_rate=0.0,
    )
    result = fit(config, tmp_path / "run")
    assert (result["task"], result["steps_done"]) == ("super_glue/copa", 2)


def test_rows_come_back_as_they_were_written(folder):
    build_copa(folder)
    task = load_task(TaskConfig(name="super_glue/copa"))
    texts = {
        f"choice1: the cat choice2: the dog premise: the oak {i} é question: cause"
        for i in range(12)
    }
    assert {e.inputs for e in task.splits["train"]} == texts  # TFDS shuffles them when it writes
    (row,) = [e for e in task.splits["train"] if "oak 7 " in e.inputs]
    assert (row.targets, row.label) == ("choice2", 1)
    assert len(task.splits["test"]) == 3


def test_lists_and_objects(folder):
    features = {
        "question": TEXT,
        "context": TEXT,
        "answers": tfds.features.Sequence({"text": TEXT, "answer_start": np.int32}),
    }
    answers = [{"text": "c", "answer_start": 0}, {"text": "c?", "answer_start": 3}]
    rows = [{"question": "q?", "context": "c", "answers": answers}]
    build(folder, "squad", "v1.1", features, {"train": rows, "validation": rows}, "3.0.0")
    expected = Example("question: q ? context: c", "c", ("c", "c ? "))
    assert load_task(TaskConfig(name="squad")).splits["test"] == [expected]


def test_labels_in_another_order_than_the_tasks(folder):
    names = [
        "DESC",
        "ENTY",
        "ABBR",
        "HUM",
        "NUM",
        "LOC",
    ]  # the Hub has ABBR first and LOC before NUM
    features = {"text": TEXT, "label-coarse": tfds.features.ClassLabel(names=names)}
    rows = [{"text": f"t {i}", "label-coarse": i % 6} for i in range(60)]
    build(folder, "trec", "plain", features, {"train": rows, "test": rows[:6]})
    (folder / "trec" / "plain" / "1.0.0").rename(folder / "trec" / "1.0.0")
    test = load_task(TaskConfig(name="trec")).splits["test"]
    words = ("Description", "Entity", "Expression", "Human", "Number", "Location")
    expected = {f"sentence: t {i}": word for i, word in enumerate(words)}
    assert {e.inputs: e.targets for e in test} == expected


def test_the_newest_version_is_read(folder):
    for version, count in (("1.0.2", 4), ("1.0.10", 5), ("1.0.9", 6)):
        build_copa(folder, count, version=version)
    (folder / "super_glue" / "copa" / "incomplete.ABC_2.0.0").mkdir()
    assert len(tfds_records("super_glue/copa", "train", "x")) == 5
    assert prepare_tfds("super_glue/copa", "x").name == "1.0.10"  # nothing is left to do


def test_superglue_without_the_extra_says_what_to_do():
    command = (
        r"run: pip install 'spt_jax\[tfds-prepare\]' && spt-jax data prepare super_glue/boolq "
        r"\(preparing it needs TensorFlow, once; training does not\)"
    )
    with pytest.raises(ValueError, match=f"'super_glue/boolq' is not prepared in .*{command}"):
        load_task(TaskConfig(name="super_glue/boolq"))
    with pytest.raises(ValueError, match=f"cannot be prepared without TensorFlow, .*{command}"):
        prepare_tfds("super_glue/boolq", "super_glue/boolq")


def test_other_datasets_need_no_extra():
    with pytest.raises(ValueError, match="not prepared in .*; run: spt-jax data prepare squad; or"):
        load_task(TaskConfig(name="squad"))


def test_preparing_gives_the_folder_that_is_read(folder, monkeypatch):
    class Builder:
        def download_and_prepare(self):
            build_copa(folder, 5)

    monkeypatch.setattr(tfds_source, "find_spec", lambda name: "here")
    monkeypatch.setattr(tfds, "builder", lambda name, **options: Builder())
    assert prepare_tfds("super_glue/copa", "x") == folder / "super_glue" / "copa" / "1.0.0"


def test_the_builders_of_the_paper_are_known(folder, monkeypatch):
    made = []

    def builder(name, **options):
        made.append((name, str(options["data_dir"]), options["file_format"]))
        raise ConnectionError("no network\nhere")

    monkeypatch.setattr(tfds, "builder", builder)
    for name in ("glue/sst2", "mrqa/drop", "squad/v1.1"):
        message = f"'{name}' of task 'x' cannot .*Error: no network here.; check the network and"
        with pytest.raises(ValueError, match=message):
            prepare_tfds(name, "x")
        assert made.pop() == (name, str(folder), "array_record")


def test_the_columns_of_summaries_are_those_of_their_builders(folder):
    for name in ("xsum", "cnn_dailymail"):
        importlib.import_module(tfds_source._MODULES[name])
        columns = tfds.builder(name, data_dir=folder).info.features
        row = Record(dict.fromkeys(columns, "a"), "row 0")
        assert PAPER_TASKS[name].format(row) == [Example("summarize: a", "a")]


def test_summaries_are_read_from_a_prepared_dataset(folder):
    features = {"document": TEXT, "summary": TEXT}
    splits = {
        split: [{"document": f"An é article\nof {split}.", "summary": "One. Two."}]
        for split in ("train", "validation", "test")
    }
    build(folder, "xsum", "plain", features, splits, "1.1.0")
    (folder / "xsum" / "plain" / "1.1.0").rename(folder / "xsum" / "1.1.0")
    task = load_task(TaskConfig(name="xsum"))
    assert {split: [e.inputs for e in rows] for split, rows in task.splits.items()} == {
        "train": ["summarize: An é article\nof train."],
        "dev": ["summarize: An é article\nof validation."],
        "test": ["summarize: An é article\nof test."],
    }
    assert task.splits["dev"][0].targets == "One. Two."


def test_glue_builds_without_tensorflow(folder):
    # TFDS leaves these out of its list where TensorFlow is missing, until they are imported.
    for benchmark, config in (("glue", "sst2"), ("mrqa", "drop")):
        importlib.import_module(tfds_source._MODULES[benchmark])
        builder = tfds.builder(f"{benchmark}/{config}", data_dir=folder)
        assert "idx" in builder.info.features or "qid" in builder.info.features


def test_the_builders_that_need_tensorflow_are_known():
    """By the source of each builder: those that import TensorFlow can be prepared by it alone."""
    names = {paper.source.tfds for paper in PAPER_TASKS.values()} - {None}
    found = set()
    for name in {str(name).partition("/")[0] for name in names}:
        if name in tfds_source._MODULES:
            module = importlib.import_module(tfds_source._MODULES[name])
        else:
            module = importlib.import_module(tfds.builder_cls(name).__module__)
        source = Path(module.__file__ or "").with_suffix("")  # a package keeps it in one file
        files = [source.with_suffix(".py"), source.parent / f"{source.parent.name}.py"]
        text = "".join(file.read_text() for file in files if file.is_file())
        if re.search(r"import tensorflow\b", text):
            found.add(name)
    assert found == {*tfds_source._NEED_TENSORFLOW}


def test_trying_again_is_not_said_but_the_last_error_is(folder, monkeypatch, caplog):
    from tensorflow_datasets.core.download import downloader

    class Builder:
        def download_and_prepare(self):
            logging.getLogger("urllib3.connectionpool").warning("Retrying")
            raise ConnectionError(f"after {downloader.MAX_RETRIES} attempts")

    monkeypatch.setattr(tfds, "builder", lambda name, **options: Builder())
    with pytest.raises(ValueError, match="ConnectionError: after 4 attempts"):
        prepare_tfds("squad/v1.1", "squad")
    assert not caplog.records
    logging.getLogger("urllib3.connectionpool").warning("as before")
    assert caplog.messages == ["as before"]


def test_a_split_that_is_missing(folder):
    build(folder, "super_glue", "copa", COPA, {"train": copa(3)})
    with pytest.raises(ValueError, match="has no split 'validation' that .*; it has train"):
        load_task(TaskConfig(name="super_glue/copa"))


def test_files_that_only_tensorflow_reads(folder):
    build_copa(folder)
    (info,) = folder.glob("super_glue/copa/*/dataset_info.json")
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    with pytest.raises(ValueError, match="is in tfrecord files, which only TensorFlow reads; del"):
        load_task(TaskConfig(name="super_glue/copa"))


def test_hidden_labels(folder):
    rows = [{"premise": "p", "hypothesis": "h", "label": -1, "idx": 0}]
    features = {
        "premise": TEXT,
        "hypothesis": TEXT,
        "label": tfds.features.ClassLabel(num_classes=3),
        "idx": np.int32,
    }
    build(folder, "glue", "ax", features, {"test": rows}, "2.0.0")
    with pytest.raises(ValueError, match="'test' of task 'glue/ax' hides the labels of 1 of 1"):
        load_test(TaskConfig(name="glue/ax"))
