"""Datasets in the files of their authors, by their own names, as TFDS's route reads them."""

import gzip
import json

import pytest

from spt_jax.config.train import TaskConfig
from spt_jax.data.papers.tasks import PAPER_TASKS
from spt_jax.data.records import Record
from spt_jax.data.tasks import load_task, load_test

PASSAGE = "Ann met Bo Li in Ulm.\n@highlight\nBo Li won"

# Task -> (folder and row of the public archive, the rows that TFDS makes of it).
SUPER_GLUE = {
    "boolq": (
        "BoolQ",
        {"question": "is it", "passage": "A -- b", "idx": 3, "label": True},
        [{"question": "is it", "passage": "A -- b", "idx": 3, "label": 1}],
    ),
    "cb": (
        "CB",
        {"premise": "P.", "hypothesis": "H", "label": "contradiction", "idx": 0},
        [{"premise": "P.", "hypothesis": "H", "label": 1, "idx": 0}],
    ),
    "copa": (
        "COPA",
        {"premise": "p", "choice1": "a", "choice2": "b", "question": "cause", "label": 1, "idx": 0},
        [{"premise": "p", "choice1": "a", "choice2": "b", "question": "cause", "label": 1}],
    ),
    "multirc": (
        "MultiRC",
        {
            "idx": 7,
            "version": 1.1,
            "passage": {
                "text": "<b>Sent 1: </b>One.<br>",
                "questions": [
                    {
                        "question": "Which?",
                        "answers": [
                            {"text": "One", "idx": 10, "label": 1},
                            {"text": "Two", "idx": 11, "label": 0},
                        ],
                        "idx": 4,
                    },
                    {
                        "question": "What?",
                        "answers": [{"text": "Three", "idx": 12, "label": 0}],
                        "idx": 5,
                    },
                ],
            },
        },
        [
            {
                "paragraph": "<b>Sent 1: </b>One.<br>",
                "question": question,
                "answer": answer,
                "label": label,
                "idx": {"paragraph": 7, "question": number, "answer": index},
            }
            for question, number, answer, index, label in (
                ("Which?", 4, "One", 10, 1),
                ("Which?", 4, "Two", 11, 0),
                ("What?", 5, "Three", 12, 0),
            )
        ],
    ),
    "record": (
        "ReCoRD",
        {
            "source": "CNN/Daily mail",
            "passage": {
                "text": PASSAGE,
                "entities": [
                    {"start": 8, "end": 12},
                    {"start": 0, "end": 2},
                    {"start": 17, "end": 19},
                    {"start": 33, "end": 37},
                ],
            },
            "idx": 2,
            "qas": [
                {
                    "query": "@placeholder won",
                    "answers": [
                        {"start": 33, "end": 37, "text": "Bo Li"},
                        {"start": 8, "end": 12, "text": "Bo Li"},
                        {"start": 0, "end": 2, "text": "Ann"},
                    ],
                    "idx": 9,
                },
                {"query": "in @placeholder", "answers": [{"start": 17, "end": 19, "text": "Ulm"}],
                 "idx": 10},
            ],
        },
        [
            {
                "passage": PASSAGE,
                "query": query,
                "entities": ["Ann", "Bo Li", "Ulm"],
                "answers": answers,
                "idx": {"passage": 2, "query": index},
            }
            for query, answers, index in (
                ("@placeholder won", ["Ann", "Bo Li"], 9),
                ("in @placeholder", ["Ulm"], 10),
            )
        ],
    ),
    "rte": (
        "RTE",
        {"premise": "P.", "hypothesis": "H", "label": "not_entailment", "idx": 0},
        [{"premise": "P.", "hypothesis": "H", "label": 1, "idx": 0}],
    ),
    "wic": (
        "WiC",
        {"word": "place", "sentence1": "a place", "sentence2": "to place", "idx": 0, "label": False,
         "start1": 2, "start2": 3, "end1": 7, "end2": 8, "version": 1.1},
        [{"word": "place", "sentence1": "a place", "sentence2": "to place", "label": 0, "idx": 0}],
    ),
    "wsc": (
        "WSC",
        {
            "text": "Mark told Pete many lies about himself, and Pete believed it",
            "target": {"span2_index": 10, "span1_index": 0, "span1_text": "mark.",
                       "span2_text": "it"},
            "idx": 0,
            "label": True,
        },
        [{
            "text": "Mark told Pete many lies about himself, and Pete believed it",
            "span1_text": "Mark", "span1_index": 0, "span2_text": "it", "span2_index": 10,
            "label": 1, "idx": 0,
        }],
    ),
}  # fmt: skip


@pytest.mark.parametrize("below", [True, False], ids=["all tasks", "one task"])
@pytest.mark.parametrize("name", SUPER_GLUE)
def test_superglue_as_it_is_distributed_is_what_tfds_makes_of_it(tmp_path, name, below):
    for folder, row, _ in SUPER_GLUE.values():
        (tmp_path / folder).mkdir()
        for split in ("train", "val"):
            (tmp_path / folder / f"{split}.jsonl").write_text(json.dumps(row) + "\n")
        (tmp_path / folder / "test.jsonl").write_text('{"idx": 0}\n')
    folder, _, rows = SUPER_GLUE[name]
    origin = tmp_path if below else tmp_path / folder
    task = load_task(TaskConfig(name=f"super_glue/{name}", origin=str(origin)))
    paper = PAPER_TASKS[f"super_glue/{name}"]
    expected = [e for row in rows for e in paper.format(Record(row, "row"))]
    prefixed = load_task(TaskConfig(name=f"super_glue/{name}", origin=str(origin), prefix=True))
    for split in ("train", "dev", "test"):
        assert prefixed.splits[split] == expected
        assert [e.targets for e in task.splits[split]] == [e.targets for e in expected]
    assert f"validation: {len(rows)} rows in {tmp_path}/{folder}/val.jsonl" in task.notes


def test_nested_rows_of_wsc_keep_what_is_in_the_text():
    def unfold(text, span, index=0):
        row = {"text": text, "target": {"span1_text": span, "span1_index": index,
               "span2_text": "it", "span2_index": 3}, "label": False, "idx": 1}  # fmt: skip
        (record,) = PAPER_TASKS["super_glue/wsc"].source.release.rows(Record(row, "r"))
        return record.values["span1_text"]

    assert unfold("the cat saw it", "The cat") == "the cat"
    assert unfold("The cat saw it", "the cat.") == "The cat"
    assert unfold("The big cat saw it", "The big\ncat") == "The big cat"
    assert unfold("Kamenev met Zinoviev: it", "Kamenev and Zinoviev") == "Kamenev and Zinoviev"


def test_a_nested_row_that_is_not_as_the_authors_write_it(tmp_path):
    for split in ("train", "val"):
        (tmp_path / f"{split}.jsonl").write_text('{"passage": {"text": "a"}, "idx": 0}\n')
    with pytest.raises(
        ValueError, match=r"train.jsonl:1: the row is not as .*KeyError: 'questions"
    ):
        load_task(TaskConfig(name="super_glue/multirc", origin=str(tmp_path)))


# Task -> (folder, {file: text}, the inputs and targets of train and validation).
MNLI = "index\tpromptID\tpairID\tgenre\tsentence1\tsentence2\tlabel1\tgold_label\n"
MRPC = "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\n"
GLUE = {
    "cola": (
        "CoLA",
        {"train.tsv": 'gj04\t1\t\tSo "it" goes.\ngj04\t0\t*\tGoes "it so.\n',
         "dev.tsv": "gj04\t1\t\tFine.\n"},
        [('sentence: So "it" goes.', "acceptable"), ('sentence: Goes "it so.', "unacceptable")],
        [("sentence: Fine.", "acceptable")],
    ),
    "sst2": (
        "SST-2",
        {"train.tsv": "sentence\tlabel\nfine \t1\n", "dev.tsv": "sentence\tlabel\nbad\t0\n"},
        [("sentence: fine ", "positive")],
        [("sentence: bad", "negative")],
    ),
    "mrpc": (
        "MRPC",
        {"msr_paraphrase_train.txt": MRPC + '1\t10\t11\tA "b.\tC\n0\t12\t13\tD\tE\n',
         "msr_paraphrase_test.txt": MRPC + "1\t20\t21\tF\tG\n",
         "dev_ids.tsv": "12\t13\n"},
        [('sentence1: A "b. sentence2: C', "equivalent")],
        [("sentence1: D sentence2: E", "not_equivalent")],
    ),
    "qqp": (
        "QQP",
        {"train.tsv": "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n"
                      '0\t1\t2\tWhat is "x?\ty?\t0\n3\t4\tbroken\n5\t6\t7\ta?\tb?\t1\n',
         "dev.tsv": "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n0\t1\t2\tq?\tr?\t1\n"},
        [('question1: What is "x? question2: y?', "not_duplicate"),
         ("question1: a? question2: b?", "duplicate")],
        [("question1: q? question2: r?", "duplicate")],
    ),
    "mnli": (
        "MNLI",
        {"train.tsv": MNLI + "0\t1\t2\tfiction\tP.\tH\tx\tneutral\n",
         "dev_matched.tsv": MNLI + "0\t1\t2\tg\tP2\tH2\tx\tentailment\n",
         "dev_mismatched.tsv": MNLI + "0\t1\t2\tg\tP3\tH3\tx\tcontradiction\n"},
        [("hypothesis: H premise: P.", "neutral")],
        [("hypothesis: H2 premise: P2", "entailment")],
    ),
    "stsb": (
        "STS-B",
        dict.fromkeys(
            ("train.tsv", "dev.tsv"),
            "index\tgenre\tsentence1\tsentence2\tscore\n0\tm\tA\tB\t3.800\n",
        ),
        [("sentence1: A sentence2: B", "3.8")],
        [("sentence1: A sentence2: B", "3.8")],
    ),
    "qnli": (
        "QNLI",
        dict.fromkeys(
            ("train.tsv", "dev.tsv"),
            "index\tquestion\tsentence\tlabel\n0\tQ\tS\tnot_entailment\n",
        ),
        [("question: Q sentence: S", "not_entailment")],
        [("question: Q sentence: S", "not_entailment")],
    ),
    "wnli": (
        "WNLI",
        dict.fromkeys(("train.tsv", "dev.tsv"), "index\tsentence1\tsentence2\tlabel\n0\tA\tB\t1\n"),
        [("sentence1: A sentence2: B", "entailment")],
        [("sentence1: A sentence2: B", "entailment")],
    ),
}  # fmt: skip


def write_folder(folder, files):
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())


def pairs(examples):
    return [(e.inputs, e.targets) for e in examples]


@pytest.mark.parametrize("name", GLUE)
def test_glue_as_it_is_distributed(tmp_path, name):
    for folder, files, _, _ in GLUE.values():
        write_folder(tmp_path / folder, files)
    task = load_task(TaskConfig(name=f"glue/{name}", origin=str(tmp_path)))
    _, _, train, validation = GLUE[name]
    assert pairs(task.splits["train"]) == train
    assert pairs(task.splits["test"]) == validation
    if name == "qqp":
        assert any("1 rows that lack columns are left out" in note for note in task.notes)
    if name == "mnli":
        other = load_task(TaskConfig(name="glue/mnli_mismatched", origin=str(tmp_path)))
        assert pairs(other.splits["test"]) == [("hypothesis: H3 premise: P3", "contradiction")]


def test_mrpc_in_its_two_files_says_that_its_test_is_not_glues_validation(tmp_path):
    _, files, _, _ = GLUE["mrpc"]
    write_folder(tmp_path, {name: text for name, text in files.items() if name != "dev_ids.tsv"})
    task = load_task(TaskConfig(name="glue/mrpc", origin=str(tmp_path)))
    assert len(task.splits["train"]) == 2
    assert pairs(task.splits["test"]) == [("sentence1: F sentence2: G", "equivalent")]
    assert any("not GLUE's validation set, which takes dev_ids.tsv" in n for n in task.notes)
    write_folder(
        tmp_path, dict.fromkeys(("train.tsv", "dev.tsv"), "sentence1\tsentence2\tlabel\na\tb\t1\n")
    )
    task = load_task(TaskConfig(name="glue/mrpc", origin=str(tmp_path)))
    assert pairs(task.splits["train"]) == [("sentence1: a sentence2: b", "equivalent")]


def test_squad_as_it_is_distributed(tmp_path):
    def content(word):
        answers = [{"answer_start": 0, "text": word}, {"answer_start": 0, "text": f"a {word}"}]
        question = {"answers": answers, "question": f"{word}?", "id": "1"}
        paragraph = {"context": f"It is {word}.", "qas": [question, {**question, "id": "2"}]}
        return {"data": [{"title": "t", "paragraphs": [paragraph]}], "version": "1.1"}

    write_folder(
        tmp_path,
        {
            "train-v1.1.json": json.dumps(content("x")),
            "dev-v1.1.json": json.dumps(content("y"), indent=1),
        },
    )
    task = load_task(TaskConfig(name="squad", origin=str(tmp_path)))
    row = {"question": "y?", "context": "It is y.", "answers": {"text": ["y", "a y"]}}
    assert task.splits["test"] == PAPER_TASKS["squad"].format(Record(row, "r")) * 2
    assert len(task.splits["train"]) == 2


def test_mrqa_as_it_is_distributed(tmp_path):
    lines = [
        {"header": {"dataset": "DROP", "split": "dev"}},
        {"id": "", "context": " C. ", "qas": [
            {"qid": "1", "question": " q? ", "answers": ["a", "b"], "detected_answers": []},
            {"qid": "2", "question": "r?", "answers": ["c"], "detected_answers": []},
        ]},
    ]  # fmt: skip
    data = gzip.compress("\n".join(map(json.dumps, lines)).encode())
    write_folder(tmp_path, {"DROP.jsonl.gz": data, "RACE.jsonl.gz": data})
    task = load_test(TaskConfig(name="mrqa/drop", origin=str(tmp_path)))
    rows = [{"question": "q?", "context": "C.", "answers": ["a", "b"]},
            {"question": "r?", "context": "C.", "answers": ["c"]}]  # fmt: skip
    paper = PAPER_TASKS["mrqa/drop"]
    assert task.splits["test"] == [e for r in rows for e in paper.format(Record(r, "r"))]
    assert task.notes == (f"test: 2 rows in {tmp_path}/DROP.jsonl.gz",)


def test_trec_as_it_is_distributed(tmp_path):
    lines = [b"DESC:manner How did it %d ?" % i for i in range(60)]
    lines += [b"ABBR:exp What is sister\xf0city ?", b"NUM:count How many ?"]
    write_folder(tmp_path, {"train_5500.label": b"\n".join(lines), "TREC_10.label": lines[-1]})
    task = load_task(TaskConfig(name="trec", origin=str(tmp_path)))
    found = {e.inputs: e.targets for split in ("train", "dev") for e in task.splits[split]}
    assert found["sentence: How did it 3 ?"] == "Description"
    assert found["sentence: What is sister city ?"] == "Expression"
    assert pairs(task.splits["test"]) == [("sentence: How many ?", "Number")]


def test_subj_as_it_is_distributed(tmp_path):
    write_folder(
        tmp_path,
        {
            "quote.tok.gt9.5000": b"\n".join(b"it\x92s fun %d" % i for i in range(40)),
            "plot.tok.gt9.5000": b"\n".join(b"a caf\xe9 %d" % i for i in range(40)),
        },
    )
    task = load_task(TaskConfig(name="subj", origin=str(tmp_path)))
    found = {e.inputs: e.targets for split in task.splits.values() for e in split}
    assert len(found) == 80
    assert found["sentence: it\u2019s fun 3"] == "subjective"
    assert found["sentence: a café 3"] == "objective"
    (tmp_path / "plot.tok.gt9.5000").rename(tmp_path / "plot.txt")
    with pytest.raises(
        FileNotFoundError, match="0 but not plot.tok.gt9.5000; task 'subj' needs bo"
    ):
        load_task(TaskConfig(name="subj", origin=str(tmp_path)))
    assert any("80 rows in" in note and "plot.tok.gt9.5000" in note for note in task.notes)


def test_ag_news_as_it_is_distributed(tmp_path):
    rows = "".join(f'"{1 + i % 4}","Title {i}","Text ""{i}"""\n' for i in range(60))
    write_folder(tmp_path, {"train.csv": rows, "test.csv": '"4","A","B"\n'})
    task = load_task(TaskConfig(name="ag_news", origin=str(tmp_path)))
    assert pairs(task.splits["test"]) == [("sentence: A B", "Technology")]
    assert ('sentence: Title 1 Text "1"', "Sports") in pairs(
        [e for split in ("train", "dev") for e in task.splits[split]]
    )


def test_shards_of_a_split(tmp_path):
    row = {"question": "q", "passage": "p", "label": 1}
    for name in ("train-00000-of-00002", "train-00001-of-00002", "validation-00000-of-00001"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(row))
    task = load_task(TaskConfig(name="super_glue/boolq", origin=str(tmp_path)))
    assert [len(task.splits[name]) for name in ("train", "dev")] == [2, 1]
