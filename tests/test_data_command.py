"""`spt-jax data`: examples, lengths against the configured ones, and what to prepare."""

import json

import numpy as np
import pytest
from support import tiny
from support.fakes import FakeTokenizer

from spt_jax.cli import main as cli
from spt_jax.config.train import DataConfig
from spt_jax.data.example import Example, Task
from spt_jax.data.papers import tfds as tfds_source
from spt_jax.data.preview import preview


@pytest.fixture
def run(capsys):
    """Runs a command line: (exit code, stdout, stderr)."""

    def run(*argv):
        code = cli.main(argv)
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def folder(tmp_path):
    """RTE's rows and a tiny backbone."""
    for split, count in (("train", 5), ("validation", 2)):
        rows = [
            {"premise": "the cat " * i, "hypothesis": "the oak", "label": i % 2, "idx": i}
            for i in range(count)
        ]
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    tiny.write_backbone(tmp_path / "tiny")
    return tmp_path


def test_lengths_are_those_of_the_tokens_with_their_end():
    rows = [Example("x" * length, "y" * (1 + length % 3)) for length in range(100)]
    task = Task("t", {"train": rows}, None, ())
    data = DataConfig(inputs_length=81, targets_length=2)
    inputs, targets = preview(task, FakeTokenizer(), data, 0)["lengths"]
    tokens = np.array([len(row.inputs) + 1 for row in rows])
    for percent in (50, 90, 95, 99):
        held = inputs[f"p{percent}"]
        assert (tokens <= held).mean() >= percent / 100 > (tokens <= held - 1).mean()
    assert (inputs["max"], inputs["configured"], inputs["cut"]) == (100, 81, 19)
    assert (targets["max"], targets["configured"], targets["cut"]) == (4, 2, 66)


def test_show_prints_examples_as_text_and_tokens(run, folder):
    code, out, err = run(
        "data", "show", "super_glue/rte", "--n=2", f"--task.origin={folder}",
        f"--model={folder / 'tiny'}", "--data.inputs_length=8",
    )  # fmt: skip
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == "super_glue/rte: accuracy"
    assert "rows: 5 train, 2 dev, 2 test" in lines
    assert "  inputs   'hypothesis: the oak premise: the cat '" in lines
    assert "  targets  'not_entailment'" in lines
    assert sum(line in ("train", "dev", "test") for line in lines) == 6
    tokens = [line.split() for line in lines if line.endswith("</s>")]
    assert "▁the" in tokens[0] and "▁oak" in tokens[0]
    (train,) = [line.split() for line in lines if line.split()[:2] == ["train", "inputs"]]
    assert train[-2:] == ["8", "100.0%"]
    (dev,) = [line.split() for line in lines if line.split()[:2] == ["dev", "inputs"]]
    assert dev[-2:] == ["-", "0.0%"]  # an evaluation of a task of the papers cuts nothing
    assert f"train: 5 rows in {folder}/train.jsonl" in lines


def test_show_prints_one_json_object(run, folder):
    code, out, _ = run(
        "data", "show", "super_glue/rte", "--json", f"--task.origin={folder}",
        f"--model={folder / 'tiny'}", "--task.prefix",
    )  # fmt: skip
    shown = json.loads(out)
    assert code == 0 and shown["label_words"] == ["entailment", "not_entailment"]
    assert shown["examples"][0]["inputs"] == "rte hypothesis: the oak premise: "
    assert len(shown["examples"]) == 3 + 2 + 2
    assert {row["side"] for row in shown["lengths"]} == {"inputs", "targets"}


def test_show_of_a_task_that_is_only_tested_on(run, folder):
    row = {"question": "q", "context": "c", "answers": ["the cat", "a cat"], "qid": "0"}
    (folder / "test.jsonl").write_text(json.dumps(row))
    code, out, _ = run(
        "data", "show", "mrqa/drop", f"--task.origin={folder}", f"--model={folder / 'tiny'}"
    )
    assert code == 0 and "  answers  'the cat', 'a cat'" in out


def test_show_of_a_users_own_file(run, folder):
    options = tiny.train_config(folder / "own").task
    code, out, _ = run(
        "data", "show", f"--task.source={options.source}", "--task.template={text}",
        "--task.label=label", f"--model={folder / 'tiny'}", "--n=0",
    )  # fmt: skip
    assert code == 0 and "animal" in out and "  inputs   '" not in out


def test_prepare_prints_the_folders_of_a_transfer(run, monkeypatch):
    monkeypatch.setattr(tfds_source, "prepare_tfds", lambda name, task: f"/data/{name}/1.0.0")
    code, out, _ = run("data", "prepare", "mrpc_to_qqp", "--json")
    assert (code, json.loads(out)) == (
        0,
        {
            "task": "mrpc_to_qqp",
            "glue/mrpc": "/data/glue/mrpc/1.0.0",
            "glue/qqp": "/data/glue/qqp/1.0.0",
        },
    )


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["shw"], "unknown action 'shw' of data; expected one of show, prepare (did you mean"),
        (["show"], "no task is given"),
        (["show", "super_glue/bolq"], "unknown task 'super_glue/bolq'"),
        (["show", "super_glue/rte", "--n=-1"], "n is -1 examples, expected 0 or more"),
        (["prepare", "glue/sst"], "task 'glue/sst' has no dataset to prepare"),
        (["prepare", "library"], "task 'library' has no dataset to prepare"),
        (["prepare", "sst5"], "task 'sst5' is not in tensorflow-datasets"),
        (["prepare"], "task"),
    ],
)
def test_bad_input_is_one_line(run, argv, message):
    code, out, err = run("data", *argv)
    assert (code, out) == (2, "") and message in err
    assert err.startswith("spt-jax: error: ") and err.count("\n") == 1


def test_superglue_without_tensorflow_is_one_line_that_says_what_to_do(run, tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    monkeypatch.setattr(tfds_source, "find_spec", lambda name: None)
    for argv in (["data", "prepare", "super_glue/rte"], ["data", "show", "super_glue/rte"]):
        code, _, err = run(*argv)
        assert code == 2 and err.count("\n") == 1
        assert "pip install 'spt_jax[tfds-prepare]' && spt-jax data prepare super_glue/rte" in err


def test_help_names_both_actions(run):
    code, out, _ = run("data", "--help")
    assert code == 0 and "data show TASK" in out and "data prepare TASK" in out
