"""Tasks of the papers with their splits: from folders of every kind, the Hub, and each other."""

import csv
import dataclasses
import json
import sys
import types

import pyarrow
import pyarrow.parquet
import pytest

from spt_jax.config.train import TaskConfig
from spt_jax.data.example import Example
from spt_jax.data.papers.tasks import PAPER_TASKS, TRANSFERS
from spt_jax.data.tasks import load_task, load_test
from spt_jax.evaluation.scores import majority_score


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_csv(path, rows):
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), dialect="excel")
        writer.writeheader()
        writer.writerows(rows)


def write_tsv(path, rows):
    lines = [list(rows[0]), *(map(str, row.values()) for row in rows)]
    path.write_text("".join("\t".join(line) + "\n" for line in lines))


def write_parquet(path, rows):
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)


WRITERS = {"jsonl": write_jsonl, "csv": write_csv, "tsv": write_tsv, "parquet": write_parquet}


def boolq(count, start=0):
    return [
        {"question": f"is it {i}", "passage": "P, p.", "idx": i, "label": i % 2}
        for i in range(start, start + count)
    ]


@pytest.fixture
def folder(tmp_path):
    """A folder of BoolQ's rows."""
    write_jsonl(tmp_path / "train.jsonl", boolq(200))
    write_jsonl(tmp_path / "validation.jsonl", boolq(3, start=500))
    return tmp_path


def load(name, folder, **options):
    return load_task(TaskConfig(name=name, origin=str(folder), **options))


@pytest.mark.parametrize("suffix", WRITERS)
@pytest.mark.parametrize("validation", ["validation", "val", "dev"])
def test_a_folder_of_files(tmp_path, suffix, validation):
    WRITERS[suffix](tmp_path / f"train.{suffix}", boolq(4))
    WRITERS[suffix](tmp_path / f"{validation}.{suffix}", boolq(2, start=4))
    task = load("super_glue/boolq", tmp_path)
    assert task.label_words == ("False", "True") and task.metrics == ("accuracy",)
    assert task.splits["train"][1] == Example("passage: P, p. question: is it 1", "True", label=1)
    assert task.splits["dev"] == task.splits["test"]
    assert [e.inputs[-4:] for e in task.splits["test"]] == ["it 4", "it 5"]
    assert any("dev and test are both the dataset's 'validation'" in note for note in task.notes)


def test_lists_and_objects_in_parquet(tmp_path):
    row = {
        "passage": "p",
        "query": "q",
        "entities": ["a", "b"],
        "answers": ["a", "b"],
        "idx": {"passage": 0, "query": 1},
    }
    for split in ("train", "validation"):
        write_parquet(tmp_path / f"{split}.parquet", [row])
    task = load("super_glue/record", tmp_path)
    assert [e.targets for e in task.splits["train"]] == ["a", "b"]
    assert task.splits["test"][1].group == "0/1"
    assert task.prompt_words == ("commonsense", "reasoning", "reading", "comprehension")


def test_prefix_is_kept_where_asked_for(folder):
    (row, *_) = load("super_glue/boolq", folder, prefix=True).splits["train"]
    assert row.inputs == "boolq passage: P, p. question: is it 0"


def test_dev_from_train_leaves_the_validation_set_to_test(folder):
    task = load("super_glue/boolq", folder, dev_from_train=True)
    assert [len(task.splits[name]) for name in ("train", "dev", "test")] == [
        200 - len(task.splits["dev"]),
        len(task.splits["dev"]),
        3,
    ]
    assert 5 < len(task.splits["dev"]) < 40
    assert not {e.inputs for e in task.splits["dev"]} & {e.inputs for e in task.splits["train"]}


def multirc(count):
    return [
        {
            "paragraph": f"paragraph {i // 4}",
            "question": f"which {i // 2}?",
            "answer": f"answer {i}",
            "idx": {"paragraph": i // 4, "question": i // 2, "answer": i},
            "label": i % 2,
        }
        for i in range(count)
    ]


def squad(count):
    return [
        {"question": f"q {i}?", "context": f"context {i // 4}", "answers": {"text": ["a"]}}
        for i in range(count)
    ]


@pytest.mark.parametrize(
    ("name", "rows", "key"),
    [("super_glue/multirc", multirc, "paragraph: "), ("squad", squad, "context: ")],
)
def test_rows_about_one_paragraph_are_in_one_split(tmp_path, name, rows, key):
    write_jsonl(tmp_path / "train.jsonl", rows(400))
    write_jsonl(tmp_path / "validation.jsonl", rows(4))
    task = load(name, tmp_path, dev_from_train=True)
    dev, train = (
        {e.inputs.partition(key)[2] for e in task.splits[split]} for split in ("dev", "train")
    )
    assert 3 < len(dev) < 25 and not dev & train
    assert len(task.splits["dev"]) == 4 * len(dev)
    assert "dev taken from train by a hash of what rows have in common" in task.notes


def test_questions_without_an_answer_are_not_called_hidden(tmp_path):
    rows = squad(3)
    rows[1]["answers"] = {"text": []}
    for split in ("train", "validation"):
        write_jsonl(tmp_path / f"{split}.jsonl", rows)
    with pytest.raises(ValueError, match="no answer in 1 of 3 rows, as SQuAD 2.0 has; .* leave th"):
        load("squad", tmp_path)


def test_wsc_trains_on_right_candidates_and_is_scored_on_all(tmp_path):
    rows = [
        {
            "text": f"A dog saw it {i}",
            "span1_text": "A dog",
            "span1_index": 0,
            "span2_text": "it",
            "span2_index": 3,
            "label": i % 2,
            "idx": i,
        }
        for i in range(6)
    ]
    for split in ("train", "validation"):
        write_jsonl(tmp_path / f"{split}.jsonl", rows)
    task = load("super_glue/wsc", tmp_path)
    assert [e.label for e in task.splits["train"]] == [1, 1, 1]
    assert [e.label for e in task.splits["test"]] == [0, 1] * 3
    assert majority_score(task) == 50  # always naming the candidate


def test_hidden_labels_are_refused_in_every_split(folder):
    for split in ("train", "validation"):
        rows = boolq(3)
        rows[1]["label"] = -1
        before = (folder / f"{split}.jsonl").read_text()
        write_jsonl(folder / f"{split}.jsonl", rows)
        with pytest.raises(ValueError, match=f"split '{split}' .*boolq' hides the labels of 1 of"):
            load("super_glue/boolq", folder)
        (folder / f"{split}.jsonl").write_text(before)
    with pytest.raises(ValueError, match="task 'glue/ax' hides the labels of 1 of 1 rows"):
        write_jsonl(folder / "test.jsonl", [{"premise": "p", "hypothesis": "h", "label": -1}])
        load_test(TaskConfig(name="glue/ax", origin=str(folder)))


@pytest.fixture
def pairs(tmp_path):
    """MRPC and QQP, each in a folder of its own."""
    for name, key in (("mrpc", "sentence"), ("qqp", "question")):
        (tmp_path / name).mkdir()
        for split in ("train", "validation"):
            rows = [
                {f"{key}1": f"{name} {split}", f"{key}2": "b", "label": i, "idx": i} for i in (0, 1)
            ]
            write_jsonl(tmp_path / name / f"{split}.jsonl", rows)
    return tmp_path


@pytest.mark.parametrize(("source", "target"), [("mrpc", "qqp"), ("qqp", "mrpc")])
def test_a_transfer_is_tested_on_the_other_in_its_own_words(pairs, source, target):
    task = load(f"{source}_to_{target}", pairs)
    assert [e.targets for e in task.splits["train"]] == list(task.label_words)
    assert [e.targets for e in task.splits["test"]] == list(task.label_words)  # none is invalid
    assert task.label_words == PAPER_TASKS[f"glue/{source}"].words
    assert {"mrpc": "equivalent", "qqp": "duplicate"}[source] in task.label_words
    assert task.metrics == ("f1", "accuracy")
    assert f"{source} validation" in task.splits["dev"][0].inputs
    key = {"mrpc": "sentence", "qqp": "question"}[target]
    assert task.splits["test"][0].inputs == f"{key}1: {target} validation {key}2: b"
    test = load_test(TaskConfig(name=f"{source}_to_{target}", origin=str(pairs)))
    assert test.splits == {"test": task.splits["test"]} and test.label_words == task.label_words


def question(text):
    return {"question": f"{text}?", "context": "c", "answers": {"text": ["c"]}, "id": "0"}


def test_squad_is_tested_out_of_its_domain(tmp_path):
    (tmp_path / "squad").mkdir()
    (tmp_path / "drop").mkdir()
    for split in ("train", "validation"):
        write_jsonl(tmp_path / "squad" / f"{split}.jsonl", [question(split)])
    write_jsonl(tmp_path / "drop" / "test.jsonl", [question("drop") | {"answers": ["c", "d"]}])
    task = load("squad_to_drop", tmp_path)
    assert [e.inputs for split in task.splits.values() for e in split] == [
        "question: train ? context: c",
        "question: validation ? context: c",
        "question: drop ? context: c",
    ]
    assert task.splits["test"][0].answers == ("c", "d") and task.metrics == ("squad",)
    assert {name for name in TRANSFERS if name.startswith("squad")} == {
        f"squad_to_{name.removeprefix('mrqa/')}" for name in PAPER_TASKS if "mrqa/" in name
    }


def test_tasks_without_rows_to_train_on(tmp_path):
    with pytest.raises(ValueError, match="only rows to test on.*evaluate RUN --task=mrqa/drop"):
        load("mrqa/drop", tmp_path)


def test_files_as_their_authors_left_them(tmp_path):
    (tmp_path / "all.txt").write_bytes(b"0 it\x92s \x85  fun\n1 a man walks .\n" * 30)
    with pytest.raises(ValueError, match="no rows in"):  # two inputs cannot make three splits
        load("subj", tmp_path)
    lines = [b"%d it\x92s \x85  fun %d" % (i % 2, i) for i in range(60)]
    (tmp_path / "all.txt").write_bytes(b"\n".join(lines))
    task = load("subj", tmp_path)
    rows = {e.inputs: e.targets for split in task.splits.values() for e in split}
    assert rows["sentence: it\u2019s \u2026 fun 0"] == "subjective"
    assert rows["sentence: it\u2019s \u2026 fun 1"] == "objective"
    assert len(rows) == 60 and task.splits["test"]

    (tmp_path / "dev.tsv").write_text("".join(f"a\t{i}\tSci/Tech\n" for i in range(60)))
    (tmp_path / "test.tsv").write_text("c\tWorld\n")
    news = load("ag_news", tmp_path).splits
    assert news["train"][0].inputs.startswith("sentence: a ")
    assert (news["train"][0].targets, news["test"][0].targets) == ("Technology", "World")
    (tmp_path / "train.jsonl").touch()
    with pytest.raises(ValueError, match="has train.jsonl and dev.tsv for the split 'train' of ta"):
        load("ag_news", tmp_path)
    for name in ("train.jsonl", "dev.tsv", "test.tsv"):
        (tmp_path / name).unlink()

    (tmp_path / "train.txt").write_bytes(b"0 who\xe9 ?\n4 where ?\n5 when ?")
    (tmp_path / "test.txt").write_bytes(b"2 x ?\n9 y ?\n")
    with pytest.raises(ValueError, match=r"test.txt:2: '9 y \?' has no text or no label, expected"):
        load("trec", tmp_path)


def test_trec_and_subj_of_the_real_files(data_dir):
    trec = load("trec", data_dir / "trec")
    assert [len(split) for split in trec.splits.values()] == [4909, 543, 500]
    raw = (data_dir / "trec" / "raw_train.txt").read_bytes().decode("cp1252").splitlines()
    names = {"ABBR": "Expression", "DESC": "Description", "ENTY": "Entity"}
    names |= {"HUM": "Human", "LOC": "Location", "NUM": "Number"}
    expected = {names[line.partition(":")[0]] for line in raw}
    assert expected == {*(trec.label_words or ())}
    by_text = {" ".join(line.split()[1:]): names[line.partition(":")[0]] for line in raw}
    train = {e.inputs.removeprefix("sentence: "): e.targets for e in trec.splits["train"]}
    known = train.keys() & by_text.keys()
    assert len(known) > 4000 and all(train[text] == by_text[text] for text in known)
    assert len(load("subj", data_dir / "subj").splits["train"]) == 8001


def test_a_folder_that_is_not_as_expected(folder):
    with pytest.raises(FileNotFoundError, match="task.origin 'tdfs' .* is no folder; expected"):
        load("super_glue/boolq", "tdfs")
    (folder / "validation.jsonl").rename(folder / "val.jsonl")
    (folder / "dev.csv").write_text("x\n1\n")
    with pytest.raises(ValueError, match="has val.jsonl and dev.csv for the split 'validation'"):
        load("super_glue/boolq", folder)
    (folder / "dev.csv").unlink()
    (folder / "val.jsonl").unlink()
    with pytest.raises(FileNotFoundError, match="no rows for the split 'validation' .*n.parquet"):
        load("super_glue/boolq", folder)
    (folder / "train.jsonl").unlink()
    (folder / "train.txt").write_text("0 a")
    with pytest.raises(FileNotFoundError, match="expected test.jsonl or .* or test.txt"):
        load("trec", folder)


def test_a_missing_column_names_file_and_line(folder):
    rows = boolq(3)
    del rows[2]["passage"]
    write_jsonl(folder / "train.jsonl", rows)
    with pytest.raises(ValueError, match=r"train.jsonl:3: the row has no column 'passage'; it has"):
        load("super_glue/boolq", folder)


def test_a_broken_parquet_file(folder, tmp_path):
    write_parquet(tmp_path / "validation.parquet", boolq(3))
    (tmp_path / "validation.jsonl").unlink()
    whole = (tmp_path / "validation.parquet").read_bytes()
    for broken in (whole[:-9], b"", b"PAR1", whole[:40] + b"\x00" * 40 + whole[80:]):
        (tmp_path / "validation.parquet").write_bytes(broken)
        with pytest.raises(ValueError, match="n.parquet' cannot be read as Parquet") as caught:
            load("super_glue/boolq", folder)
        assert "\n" not in str(caught.value)


@pytest.fixture
def hub(monkeypatch):
    """A stand-in for the library `datasets`: {(path, config, split): rows}."""
    rows = {}

    def load_dataset(path, config, *, split):
        if (path, config, split) not in rows:
            raise ConnectionError("Couldn't reach the Hub\n(offline)")
        return rows[path, config, split]

    module = types.ModuleType("datasets")
    module.load_dataset = load_dataset
    monkeypatch.setitem(sys.modules, "datasets", module)
    return rows


def test_the_same_task_from_the_hub(hub, folder):
    hub["aps/super_glue", "boolq", "train"] = boolq(200)
    hub["aps/super_glue", "boolq", "validation"] = boolq(3, start=500)
    of_folder, of_hub = load("super_glue/boolq", folder), load("super_glue/boolq", "hub")
    assert of_folder.notes[2:] == of_hub.notes  # the first two name the files
    assert dataclasses.replace(of_folder, notes=of_hub.notes) == of_hub
    hub["aps/super_glue", "boolq", "train"][4]["label"] = 7
    with pytest.raises(ValueError, match="^aps/super_glue/boolq train row 4: column 'label' is 7"):
        load("super_glue/boolq", "hub")


def test_columns_and_labels_that_the_hub_calls_otherwise(hub):
    subj = [{"text": f"t {i}", "label": 9, "label_text": "subjective"} for i in range(60)]
    hub["SetFit/subj", None, "train"] = subj
    assert load("subj", "hub").splits["train"][0].targets == "subjective"
    trec = [{"text": f"t {i}", "coarse_label": 4, "fine_label": 0} for i in range(60)]
    hub["CogComp/trec", None, "train"] = hub["CogComp/trec", None, "test"] = trec
    assert load("trec", "hub").splits["test"][0].targets == "Location"


def test_one_of_the_datasets_that_share_a_table(hub):
    rows = [question(s) | {"answers": ["c"], "subset": s} for s in ("BioASQ", "DROP", "DROP")]
    hub["mrqa-workshop/mrqa", None, "test"] = rows
    drop = load_test(TaskConfig(name="mrqa/drop", origin="hub"))
    assert [e.inputs for e in drop.splits["test"]] == ["question: DROP ? context: c"] * 2
    with pytest.raises(ValueError, match="'test' of .* has no rows with subset 'RACE'"):
        load_test(TaskConfig(name="mrqa/race", origin="hub"))


@pytest.mark.parametrize("prefix", [False, True])
def test_summaries_have_their_own_test_set_and_keep_their_first_word(hub, tmp_path, prefix):
    for split in ("train", "validation", "test"):
        row = {"article": f"Of {split}.", "highlights": "First.\nSecond.", "id": "1"}
        hub["abisee/cnn_dailymail", "3.0.0", split] = [row]
        hub["EdinburghNLP/xsum", None, split] = [
            {"document": f"Of {split}.", "summary": "First.\nSecond."}
        ]
        write_jsonl(tmp_path / f"{split}.jsonl", [row])
    of_hub = load("cnn_dailymail", "hub", prefix=prefix)
    assert {split: [e.inputs for e in rows] for split, rows in of_hub.splits.items()} == {
        "train": ["summarize: Of train."],
        "dev": ["summarize: Of validation."],
        "test": ["summarize: Of test."],
    }
    assert of_hub.splits["dev"][0].targets == "First.\nSecond."
    assert of_hub.metrics == ("rouge",) and of_hub.label_words is None
    assert load("xsum", "hub", prefix=prefix).splits == of_hub.splits
    assert load("cnn_dailymail", tmp_path, prefix=prefix).splits == of_hub.splits
    assert majority_score(of_hub) == 100


def test_what_can_go_wrong_with_the_hub(hub, monkeypatch):
    with pytest.raises(ValueError, match=r"aps/super_glue/boolq' cannot .*ConnectionError: Coul"):
        load("super_glue/boolq", "hub")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match=r"boolq' .* needs the package datasets.*'spt_jax\[hub\]'"):
        load("super_glue/boolq", "hub")


def test_a_task_that_tensorflow_datasets_does_not_have():
    with pytest.raises(ValueError, match="'sst5' is not in tensorflow-datasets .* task.origin to"):
        load_task(TaskConfig(name="sst5"))
