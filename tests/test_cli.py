"""The command line: what reaches the library, what is printed, and one line for every error.

Library functions are stand-ins here, put in the place of their modules: a command imports them only
when it runs.
"""

import dataclasses
import errno
import io
import json
import logging
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml

from spt_jax.cli import main as cli
from spt_jax.cli.parser import Parser
from spt_jax.cli.yaml_text import bundled_configs, find_config
from spt_jax.config.fields import to_dict
from spt_jax.config.pretrain import PretrainConfig
from spt_jax.config.train import TrainConfig
from spt_jax.errors import RunError, visible

RESULT = {"task": "library", "score": 61.5, "rank_score": np.float32(70.25), "gap": float("nan")}


@pytest.fixture
def library(monkeypatch):
    """Puts a stand-in module in place: `library("train", fit=...)`."""

    def put(module, **functions):
        monkeypatch.setitem(sys.modules, f"spt_jax.{module}", SimpleNamespace(**functions))

    return put


@pytest.fixture
def calls(library):
    """The runs that would be trained, which print while they run and have a score per seed."""
    calls = []

    def fit(config, workdir, *, overwrite, command, profile):
        print("training")
        calls.append(SimpleNamespace(config=config, workdir=str(workdir), overwrite=overwrite))
        calls[-1].command, calls[-1].profile = command, profile
        return {**RESULT, "score": 60.0 + 2 * config.seed, "seed": config.seed}

    def train_pack(configs, workdirs, **options):
        return [fit(config, workdir, **options) for config, workdir in zip(configs, workdirs)]

    def make_packs(configs, together):
        return [[*range(1, len(configs))], [0]]  # a pack need not be in the order of its seeds

    library("train", fit=fit)
    library("studies.packs", make_packs=make_packs, train_pack=train_pack)
    return calls


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Runs a command line in an empty folder: (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def run(*argv):
        code = cli.main(argv)
        return (code, *capsys.readouterr())

    return run


@pytest.fixture
def train_config(tmp_path):
    """Reads options as `spt-jax train` does; `yaml` is the text of a config file a.yaml."""

    def read(*argv, yaml=None):
        if yaml is not None:
            (tmp_path / "a.yaml").write_text(yaml)
        return Parser("train", "", TrainConfig).read(argv)[1]

    return read


# What flags and files mean.


@pytest.mark.parametrize("first", [True, False])
def test_flags_beat_the_file_wherever_they_stand(train_config, tmp_path, first):
    file = ["--config", str(tmp_path / "a.yaml")]
    flags = ["--prompt.length=20", "--optimizer.learning_rate", "0.1"]
    config = train_config(
        *(file + flags if first else flags + file),
        yaml="task: {name: library}\nprompt: {length: 7, init: uniform_paper}\nsteps: 12",
    )
    assert (config.prompt.length, config.prompt.init, config.steps) == (20, "uniform_paper", 12)
    assert config.optimizer.learning_rate == 0.1


def test_a_later_file_beats_an_earlier_one_option_by_option(train_config, tmp_path):
    (tmp_path / "b.yaml").write_text("steps: 3")
    config = train_config(
        f"--config={tmp_path}/a.yaml",
        f"--config={tmp_path}/b.yaml",
        yaml="task: {name: library}\nsteps: 12\nseed: 5",
    )
    assert (config.steps, config.seed) == (3, 5)


def test_values_have_the_types_of_their_fields(train_config, tmp_path):
    config = train_config(
        "--data.buckets=[8, 16]",
        "--optimizer.momentum=0.9",
        "--remat=full",
        "--task.template=question: {q} context: {c}",
        f"--config={tmp_path}/a.yaml",
        yaml="""
            task: {source: rows.tsv, template: '{s}', label: l, label_words: {0: no, 1: yes}}
            optimizer: {weight_decay: 1e-5, clip_norm: 1}
            model: 1.10
        """,
    )
    assert config.data.buckets == (8, 16)
    assert (config.optimizer.momentum, config.optimizer.clip_norm) == (0.9, 1.0)
    assert config.remat == "full"
    assert config.task.template == "question: {q} context: {c}"
    assert config.task.label_words == {"0": "no", "1": "yes"}  # not False and True
    assert config.optimizer.weight_decay == 1e-5  # not the text "1e-5"
    assert config.model == "1.10"


def test_null_prompt_and_options_of_the_prompt_replace_each_other(train_config, tmp_path):
    model_tuning = "task: {name: library}\ntune: model\nprompt: null"
    file = f"--config={tmp_path}/a.yaml"
    assert train_config(file, yaml=model_tuning).prompt is None
    config = train_config(file, "--prompt.length=20", yaml=model_tuning)
    assert (config.prompt.length, config.prompt.init) == (20, "class_labels")
    config = train_config(file, "--prompt=null", "--tune=model", yaml="task: {name: library}")
    assert config.prompt is None


def test_an_option_leaves_the_other_defaults_of_its_section():
    config = Parser("pretrain", "", PretrainConfig).read(
        ["--name=x", "--optimizer.learning_rate=0.5"]
    )[1]
    default = PretrainConfig(name="x")
    assert config.optimizer == dataclasses.replace(default.optimizer, learning_rate=0.5)
    assert config.optimizer.schedule == "rsqrt"  # PretrainConfig's own default
    assert config.loss == default.loss


def test_print_config_reads_back_as_the_same_config(run, train_config, tmp_path):
    argv = ["--task.source=a", "--task.template={x}", "--task.label=l", "--task.label_words=[no,1]"]
    code, out, _ = run("train", *argv, "--print-config")
    assert code == 0
    config = train_config(f"--config={tmp_path}/a.yaml", yaml=out)
    assert to_dict(config) == yaml.safe_load(out)
    assert config == train_config(*argv)


@pytest.mark.parametrize("name", bundled_configs())
def test_every_bundled_config_is_found_by_name_and_valid(run, name):
    kind = name.partition("/")[0].partition("_")[0]
    command = {"pretrain": "pretrain", "studies": "sweep"}.get(kind, "train")
    code, out, err = run(command, "--config", name, "--print-config")
    assert (code, err) == (0, "")
    # A study prints the values that it gives, the others all.
    assert out.startswith(("name:", "task:", *(["model:"] if command == "sweep" else [])))


def test_a_file_wins_over_a_bundled_config_of_the_same_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = next(iter(bundled_configs()))
    assert find_config(name) == bundled_configs()[name]
    (tmp_path / name).touch()
    assert find_config(name).resolve() == tmp_path / name


def test_help_explains_every_field(run):
    for command, config in (("train", TrainConfig), ("pretrain", PretrainConfig)):
        code, out, err = run(command, "--help")
        assert (code, err) == (0, "")
        parser = Parser(command, "", config)
        flags = {text for action in parser._actions for text in action.option_strings}
        assert {f"--{name}" for name in parser.hints} <= flags
        for action in parser._actions:
            help = " ".join(action.help.split())
            assert len(help) > 2, f"{action.dest} has no help"
            assert help[:20].lower() in " ".join(out.split()).lower()
    assert "--optimizer.learning_rate" in out


# One line for every error.

TASK = "--task.name=library"
USAGE_ERRORS = {
    "": "no command is given; commands: train, sweep, report, evaluate, predict, nearest, interp",
    "trian": r"unknown command 'trian'; commands: train, .* \(did you mean 'train'\?\)",
    f"train {TASK} --prompt.lenght=3": r"unknown option 'prompt.lenght'; PromptConfig has: file, "
    r"init, length, parameterization, rank, text, wayward \(did you mean 'prompt.length'\?\)",
    f"train {TASK} --step=3": r"unknown option 'step'; TrainConfig has: attention, data, .*'steps'",
    f"train {TASK} --learning_rate=3": r"unknown option 'learning_rate'.*'optimizer.learning_rate'",
    f"train {TASK} --overwrit": r"unknown option 'overwrit'.*did you mean 'overwrite'",
    f"train {TASK} --steps=many": "steps is 'many', expected a whole number",
    f"train {TASK} --steps=1.5": "steps is '1.5', expected a whole number",
    f"train {TASK} --steps=null": "steps is 'null', expected a whole number",
    f"train {TASK} --steps": "option 'steps' has no value; write --steps=VALUE",
    f"train {TASK} --remat=maybe": "remat is 'maybe', expected one of none, light, minimal, full",
    f"train {TASK} --dropout_rate=x": "dropout_rate is 'x', expected a number",
    f"train {TASK} --optimizer.momentum=x": "optimizer.momentum is 'x', expected a number or null",
    f"train {TASK} --tune=modle": r"tune is 'modle', expected one of prompt, model \(did you mean",
    f"train {TASK} --data.buckets=[8,x]": r'data.buckets is \["8", "x"\], expected a list, each '
    "value a whole number",
    f"train {TASK} --data.buckets=[8": "option 'data.buckets': line 1, not valid YAML: expected",
    f"train {TASK} --prompt.length=0": "prompt.length is 0, expected 1 or more; set 'prompt: null'",
    f"train {TASK} --prompt.init=text": "prompt.text is None with prompt.init 'text'",
    f"train {TASK} --prompt=null": "prompt is null but tune is 'prompt', so nothing would be",
    f"train {TASK} --optimizer=null": "optimizer is null, expected",
    f"train {TASK} --config=nowhere.yaml": "config 'nowhere.yaml' is neither a file nor bundled",
    f"train {TASK} --seeds=0,x": "--seeds is '0,x', expected different whole numbers such as 0,1,2",
    f"train {TASK} --seeds=1,1": "--seeds is '1,1', expected different whole numbers",
    f"train {TASK} --seeds=": "--seeds is '', expected different whole numbers",
    f"train {TASK} --profile=0": "--profile is '0', expected a number of steps, 1 or more",
    f"train {TASK} runs/x": "unrecognized arguments: runs/x",
    "train --task.name=library --workdir=": "--workdir is '', expected the folder of the run",
    "train --task.name=library --model=": "model is '', expected text that is not empty",
    "train": "no task is given; set task.name to a built-in task, or task.source",
    "train --task=library": "task is 'library', expected a mapping of options; TaskConfig has: dev",
    "pretrain": "option 'name' is not set, and it has no default",
    "pretrain --name=x --mixture.weights={lm:": "option 'mixture.weights': line 1, not valid YAML",
    "pretrain --name=x --mixture.weights=3": "mixture.weights is '3', expected a mapping, each "
    "value a number",
    "evaluate": "the following arguments are required: run",
    "evaluate r --split=val": "split is 'val', expected one of test, dev, train",
    "evaluate r s --ensemble=mean": "ensemble is 'mean', expected one of vote, log_probs or null",
    "evaluate r s --task=squad": "--task works with a single run, not with several or with --ense",
    "evaluate r s --output=o": "--output works with a single run, not with several or with --ense",
    "evaluate r --origin=hub": "--origin is given without --task",
    "evaluate r --model=m": "--model is given without --task",
    "evaluate r --split": "option 'split' has no value; write --split=VALUE",
    "nearest r --k=x": "k is 'x', expected a whole number",
    "report": "the following arguments are required: folder",
    "report r --metric=acc": "metric is 'acc', expected one of score, rank_score, dev_score",
    "report r --compare": "option 'compare' has no value; write --compare=VALUE",
    "evaluate r --splt=dev": r"unknown option 'splt'; spt-jax evaluate has: .*did you mean 'split'",
    "inspect m --length=0": "length is 0, expected 1 or more",
    "predict": "neither a run nor --model is given; see spt-jax predict --help",
    "predict r --model=m": "both the run 'r' and --model=m are given; for rows give "
    "--prompt=NAME=r instead of the run",
    "predict r --input=x": r"file 'x' does not exist \(looked from",
    "predict r --num_beams=2": "--num_beams goes with --model, but",
    "predict --model=m --prompt=runs/x": "--prompt is 'runs/x', expected NAME=PATH, such as sst2=",
    "predict --model=m --prompt=a=x --prompt=a=y": "two prompts are named 'a', x and y; give one",
    "predict --model=m --sample --num_beams=2": "num_beams is 2 with sampling, expected one or the",
    "predict --model=m --temperature=2": "temperature is 2.0 without sampling",
    "predict --model=m --num_results=2": "num_results is 2 but num_beams is 1",
    "predict --model=m --batch_size=0": "batch_size is 0, expected 1 or more",
    "predict --model=m --json": "--json is given, but standard output has the rows; set --output",
    "predict --model=m --overwrite": "--overwrite is given, but there is no --output to delete",
    "predict --model=m --text=x --input=y": "both --text and --input are given, expected one",
    "predict --model=m --text=x --prompt=a=x --prompt=b=y": "--text is given with 2 prompts, "
    "expected one at most; give rows that name theirs by --input",
}


@pytest.mark.parametrize(("line", "message"), USAGE_ERRORS.items(), ids=USAGE_ERRORS)
def test_usage_error(run, calls, line, message):
    code, out, err = run(*line.split())
    assert code == 2
    assert out == ""
    assert re.fullmatch(rf"spt-jax: error: (?:{message}).*\n", err), err
    assert not calls


FILE_ERRORS = {
    "prompt: {lenght: 3}": r"unknown option 'prompt.lenght'; PromptConfig has: file, init, length, "
    r"parameterization, rank, text, wayward \(did you mean 'prompt.length'\?\)",
    "optimzer: {name: sgd}": r"unknown option 'optimzer'; .* \(did you mean 'optimizer'\?\)",
    "steps: many": "steps is 'many', expected a whole number",
    "steps:": "steps is null, expected a whole number",
    "steps: [1": "line 1, not valid YAML: expected",
    "steps: 1\nsteps: 2": "line 2, not valid YAML: 'steps' is set twice",
    "prompt.length: 5\nprompt: {length: 6}": "'prompt.length' is set twice; keep one of them",
    "steps: 1:30": "steps is '1:30', expected a whole number",
    "optimizer: {learning_rate: 1:30.5}": "optimizer.learning_rate is '1:30.5', expected a number",
    "steps: !!binary aGVsbG8=": """steps is "b'hello'", expected a whole number""",
    "steps: " + "[" * 3000: "not valid YAML: nested too deeply",
    "[1]: 2": "line 1, not valid YAML: a key is no text",
    "- steps": r'the file is \["steps"\], expected a mapping of options; TrainConfig has: '
    "attention, data",
    "task: library": "task is 'library', expected a mapping of options; TaskConfig has:",
    "task: {template: {s}}": r'task.template is {"s": null}, expected text or null',
    "workdir: x": "unknown option 'workdir'; TrainConfig has:",
    "\xff": "is not text in UTF-8",
}


@pytest.mark.parametrize(("text", "message"), FILE_ERRORS.items(), ids=range(len(FILE_ERRORS)))
def test_error_in_a_config_file_names_the_file(run, tmp_path, text, message):
    (tmp_path / "bad.yaml").write_text(text, "latin-1")
    code, out, err = run("train", "--config=bad.yaml", TASK)
    assert (code, out) == (2, "")
    assert re.fullmatch(rf"spt-jax: error: bad.yaml:? {message}.*\n", err), err


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (ValueError("prompt has d_model 512\n  but t5-base has 768"), 2, "prompt has .* but t5"),
        (TypeError("wrong"), 2, "wrong"),
        (KeyError("unknown task 'x'"), 2, "unknown task 'x'"),
        (FileNotFoundError("no such run: runs/x"), 2, "no such run: runs/x"),
        (FileExistsError(errno.EEXIST, "File exists", "runs/x"), 2, "runs/x: File exists"),
        (NotADirectoryError(errno.ENOTDIR, "Not a directory", "a/b"), 2, "a/b: Not a directory"),
        (RunError("loss is nan at step 12"), 1, "loss is nan at step 12"),
        (FloatingPointError("nan"), 1, "FloatingPointError: nan"),
        (MemoryError(), 1, "MemoryError: no message"),
        (OSError(errno.ENAMETOOLONG, "File name too long", "n"), 2, "n: File name too long"),
        (OSError(errno.ENOSPC, "No space left on device", "x"), 1, "x: No space left on device"),
        (RuntimeError("RESOURCE_EXHAUSTED:\nout of memory"), 1, "RuntimeError: RESOURCE_.* out of"),
        (KeyboardInterrupt(), 130, "interrupted; the same command continues it"),
    ],
)
def test_exit_code_and_one_line_for_each_kind_of_failure(run, library, error, code, line):
    def fit(*_, **__):
        raise error

    library("train", fit=fit)
    actual, out, err = run("train", TASK, "--json")
    assert (actual, out) == (code, "")
    assert re.fullmatch(rf"spt-jax: (error: )?{line}.*\n", err), err


def test_traceback_only_with_debug(run, library):
    def fit(*_, **__):
        raise RunError("loss is nan")

    library("train", fit=fit)
    assert "Traceback" not in run("train", TASK)[2]
    code, _, err = run("train", TASK, "--debug")
    assert code == 1
    assert "Traceback" in err
    assert err.endswith("\nspt-jax: error: loss is nan\n")


def test_a_warning_of_the_library_is_one_line_on_stderr(run, library):
    def fit(*_, **__):
        logging.getLogger("spt_jax").warning("checkpoint %d is damaged", 20)
        return {"steps": 1}

    library("train", fit=fit)
    assert run("train", TASK)[2] == "spt-jax: warning: checkpoint 20 is damaged\n"
    assert not logging.getLogger("spt_jax").handlers


# The commands.


def test_train_calls_fit_and_prints_one_json_object(run, calls):
    argv = ("train", TASK, "--steps=7", "--workdir=w", "--overwrite", "--json")
    code, out, err = run(*argv)
    assert code == 0
    assert json.loads(out) == {
        "task": "library",
        "score": 60.0,
        "rank_score": 70.25,
        "gap": None,
        "seed": 0,
    }
    assert out.count("\n") == 1
    assert err == "training\n"
    (call,) = calls
    assert (call.config.steps, call.workdir, call.overwrite) == (7, "w", True)
    assert call.command == ["spt-jax", *argv]


def test_train_prints_aligned_lines_without_json(run, calls):
    code, out, _ = run("train", TASK)
    assert code == 0
    assert "task        library\nscore       60.00\nrank_score  70.25\n" in out


@pytest.mark.parametrize(
    ("argv", "workdir"),
    [
        ([TASK], "runs/library"),
        (["--task.source=in/my rows.tsv", "--task.template={x}", "--task.label=l"], "runs/my_rows"),
        (["--config=conf/mine.yaml"], "runs/mine"),
        (["--config=conf/mine.yaml", "--workdir=/x/y"], "/x/y"),
        (["--task.name=../../up"], "runs/_.._up"),
        (["--task.name=.."], "runs/unnamed"),
    ],
)
def test_default_workdir(run, calls, tmp_path, argv, workdir):
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "mine.yaml").write_text("task: {name: library}")
    assert run("train", *argv)[0] == 0
    assert calls[0].workdir == workdir


@pytest.mark.parametrize(
    ("argv", "steps"), [([], 0), (["--profile"], 5), (["--profile=8"], 8), (["--profile", "8"], 8)]
)
def test_profile_is_how_many_steps_are_traced(run, calls, argv, steps):
    assert run("train", TASK, *argv)[0] == 0
    assert calls[0].profile == steps


def test_seeds_train_once_each_and_give_mean_and_sample_deviation(run, calls):
    code, out, _ = run("train", TASK, "--seeds=0,1,3", "--json", "--seed=9")
    assert code == 0
    assert [call.config.seed for call in calls] == [1, 3, 0]
    assert [call.workdir for call in calls] == [f"runs/library/seed_{s}" for s in (1, 3, 0)]
    result = json.loads(out)
    assert result["seeds"] == [0, 1, 3]
    assert [each["score"] for each in result["runs"]] == [60, 62, 66]
    assert result["score"] == pytest.approx(62.6667, abs=1e-4)
    assert result["score_deviation"] == pytest.approx(3.0551, abs=1e-4)  # n - 1
    assert result["rank_score_deviation"] == 0
    text = run("train", TASK, "--seeds=0,1,3")[1]
    assert re.search(r"^score +62.67$.*^score_deviation +3.06$.*^runs\[2\].score +66.00$", text, 24)


def test_a_seed_that_fails_is_named_after_the_others_have_ended(run, calls, library):
    trained = []

    def train_pack(configs, workdirs, **options):
        trained.extend(config.seed for config in configs)
        return [RunError("loss is nan") if c.seed == 1 else dict(RESULT) for c in configs]

    library("studies.packs", make_packs=lambda *_: [[0, 1], [2]], train_pack=train_pack)
    code, out, err = run("train", TASK, "--seeds=0-2")
    assert (code, out, trained) == (1, "", [0, 1, 2])
    assert err.endswith("spt-jax: error: seed 1: loss is nan\n")


def test_one_seed_has_no_deviation(run, calls):
    assert json.loads(run("train", TASK, "--seeds=4", "--json")[1])["score_deviation"] is None


def test_evaluate(run, library):
    library(
        "evaluation.evaluate",
        evaluate_run=lambda run, split, **other: {"run": run, "split": split} | other,
    )
    found = {"run": "r", "split": "test", "task": None, "origin": None, "model": None}
    found |= {"mesh": None, "output": None, "fetch": []}
    assert json.loads(run("evaluate", "r", "--json")[1]) == found
    found |= {"task": "mrqa/drop", "origin": "hub", "model": "m"}
    line = ("evaluate", "r", "--json", "--task=mrqa/drop", "--origin=hub", "--model=m")
    assert json.loads(run(*line)[1]) == found
    library(
        "evaluation.evaluate", evaluate_run=lambda run, split, **_: {"run": run, "split": split}
    )
    assert run("evaluate", "r", "--split", "dev")[1] == "run    r\nsplit  dev\n"


SCORES = {"task": "library", "score": 50.0, "rank_score": None, "rows": 4}


def test_evaluate_several_runs(run, library):
    def evaluate_runs(runs, split, mesh, fetch):
        return {str(run): {"split": split, **SCORES} for run in runs}

    library("evaluation.evaluate", evaluate_runs=evaluate_runs)
    code, out, _ = run("evaluate", "r/a", "r/b", "--split=dev", "--json")
    each = {"split": "dev", **SCORES}
    assert (code, json.loads(out)) == (0, {"runs": {"r/a": each, "r/b": each}})
    lines = [line.split() for line in run("evaluate", "--split=dev", "r/a", "r/b")[1].splitlines()]
    cells = ["dev", "library", "50.00", "-", "4"]
    assert lines[0] == ["run", "split", "task", "score", "rank_score", "rows"]
    assert lines[1:] == [["r/a", *cells], ["r/b", *cells]]


def test_evaluate_runs_of_all_of_superglue(run, library):
    def evaluate_runs(runs, split, mesh, fetch):
        return {
            str(run): {"task": f"super_glue/{run.name[:-2]}", "score": 10.0 * int(run.name[-1])}
            for run in runs
        }

    library("evaluation.evaluate", evaluate_runs=evaluate_runs)
    tasks = ["boolq", "cb", "copa", "multirc", "record", "rte", "wic", "wsc"]
    runs = [f"r/{task}_5" for task in tasks] + ["r/wsc_9"]
    found = json.loads(run("evaluate", *runs, "--json")[1])
    assert found["superglue_score"] == pytest.approx((7 * 50 + 70) / 8)
    assert run("evaluate", *runs)[1].splitlines()[-1] == "superglue_score  52.50"
    assert "superglue_score" not in json.loads(run("evaluate", *runs[1:], "--json")[1])


def test_evaluate_an_ensemble(run, library):
    def evaluate_ensemble(runs, split, by, mesh, fetch):
        return {"ensemble": 60.0, "by": by, "runs": {str(run): SCORES for run in runs}}

    library("evaluation.ensemble", evaluate_ensemble=evaluate_ensemble)
    code, out, _ = run("evaluate", "a", "b", "--ensemble=log_probs", "--json")
    expected = {"ensemble": 60, "by": "log_probs", "runs": {"a": SCORES, "b": SCORES}}
    assert (code, json.loads(out)) == (0, expected)
    lines = run("evaluate", "--ensemble", "vote", "a", "b")[1].splitlines()
    assert lines[-3:] == ["", "ensemble  60.00", "by        vote"] and len(lines) == 6


def test_predict_takes_texts_or_lines(run, library, monkeypatch):
    def answer_run(run, rows, *, inputs_length, raw, mesh, fetch):
        texts = [str(row).upper()[:inputs_length] + "!" * raw for row in rows]
        problems = {number: "too BAD\x1b[2J" for number, text in enumerate(texts) if "BAD" in text}
        texts = [None if number in problems else text for number, text in enumerate(texts)]
        return SimpleNamespace(texts=texts, problems=problems)

    def give(text):
        stdin = io.TextIOWrapper(io.BytesIO(text if isinstance(text, bytes) else text.encode()))
        monkeypatch.setattr(sys, "stdin", stdin)

    library("prediction.run", answer_run=answer_run)
    assert run("predict", "r", "--text", "a b", "--text=c")[1] == "A B\nC\n"
    assert run("predict", "r", "--text", "a b", "--inputs_length=2")[1] == "A \n"
    assert run("predict", "r", "--text", "--- great", "--text=-1", "--text", "-x y")[1] == (
        "--- GREAT\n-1\n-X Y\n"
    )
    give("x\n\ny\r\n")
    assert run("predict", "r", "--raw")[1] == "X!\n!\nY!\n"
    give("\ufeffx\n\u2028\n")
    assert run("predict", "r")[1] == "X\n\u2028\n"
    give('{"a": 1}\n\n"b"\n')
    assert run("predict", "r", "--input=-")[1] == "{'A': 1}\nB\n"
    Path("rows.tsv").write_text('a\tb\n"1"\té\n', encoding="cp1252")
    assert run("predict", "r", "--input=rows.tsv") == (
        2, "", "spt-jax: error: 'r' is not the folder of a run: it has no config.yaml\n"
    )  # fmt: skip
    task = "{source: a.csv, template: '{a}', label: b, encoding: cp1252, quoting: csv}"
    Path("r").mkdir()
    Path("r/config.yaml").write_text(f"model: m\ntask: {task}\n")
    assert run("predict", "r", "--input=rows.tsv")[1] == "{'A': '1', 'B': 'É'}\n"
    _, _, err = run("predict", "r", "--input=rows.tsv", "--text=a")
    assert "both --text and --input are given, expected one of them" in err
    give("")
    code, _, err = run("predict", "r")
    assert code == 2
    assert "no text is given; use --text='...' or lines of standard input" in err
    # A bad row does not end the answers to the others.
    not_utf8, not_json = "the line is not text in UTF-8: 'utf-8' codec can't decode", "is not JSON"
    for given, options, place, message in (
        (b"x\nbad\ny", [], "line 2", r"too BAD\u001b[2J"),
        (b"x\n\xff\ny", [], "line 2", not_utf8),
        (b'"x"\n\n{\n"y"', ["--input=-"], "line 3", not_json),
        (b'"x"\n[\xff]\n"y"', ["--input=-"], "line 2", not_utf8),
        (b'"x"\n{"a": NaN}\n"y"', ["--input=-"], "line 2", "it has NaN, expected a finite"),
        (b"", ["--text=x", "--text=bad", "--text=y"], "text 2", "too BAD"),
        (b"", ["--input=rows.jsonl"], "rows.jsonl:3", not_json),
        (b"", ["--input=rows.csv"], "rows.csv:3", "too BAD"),
    ):
        Path("rows.jsonl").write_text('"x"\n\n{"a"\n"y"\n')
        Path("rows.csv").write_text("a\nx\nBAD\ny\n")
        give(given)
        code, out, err = run("predict", "r", *options)
        x, empty, y = out.splitlines()
        assert code == 3 and "X" in x and "Y" in y and empty == ""
        first, last = err.splitlines()
        assert first.startswith(f"spt-jax: {place}: ") and message in first
        assert last == "spt-jax: error: 1 of 3 rows failed; see the lines above"
    give(b"x\nbad")
    code, out, _ = run("predict", "r", "--json")
    errors = [{"place": "line 2", "error": "too BAD\x1b[2J"}]
    found = {"texts": ["x", "bad"], "predictions": ["X", None], "errors": errors}
    assert code == 3 and json.loads(out) == found


def test_predict_reads_rows_and_says_how_many_failed(run, library, monkeypatch):
    calls = []

    def predict_file(model, prompts, source, output, **options):
        calls.append((model, prompts, source, output, options))
        return {"answered": 8, "failed": len(prompts), "output": output, "errors": None}

    library("prediction.jsonl", predict_file=predict_file)
    argv = ["--model=m", "--input=in", "--num_beams=2", "--dtype=bfloat16", "--batch_size=3"]
    code, out, err = run("predict", *argv, "--output=out", "--json")
    assert (code, json.loads(out), err) == (
        0, {"answered": 8, "failed": 0, "output": "out", "errors": None}, ""
    )  # fmt: skip
    model, prompts, source, output, options = calls[0]
    assert (model, prompts, source, output) == ("m", {}, Path("in"), Path("out"))
    assert (options["decode"].num_beams, options["data"].batch_size) == (2, 3)
    assert (options["data"].inputs_length, options["dtype"]) == (512, "bfloat16")
    code, out, err = run("predict", "--model=m", "--prompt=a=x=y", "--text=hi", "--text=é")
    assert calls[1][1] == {"a": "x=y"}
    assert [json.loads(line) for line in calls[1][2]] == [{"text": "hi"}, {"text": "é"}]
    assert calls[1][3] is sys.stdout.buffer
    assert (code, out) == (3, "")
    assert err == "spt-jax: error: 1 of 9 rows failed; see the lines above\n"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain ascii ~ é 日本 👩‍👩‍👧 ي", "plain ascii ~ é 日本 👩‍👩‍👧 ي"),
        ("a\nb\tc\r", r"a\nb\tc\r"),
        ("\x1b[31m\x07\x7f\x9b2J\x00", r"\u001b[31m\u0007\u007f\u009b2J\u0000"),
        ("\u202egnp.exe\u2066\u2028", r"\u202egnp.exe\u2066\u2028"),
        ("\ud800", r"\ud800"),
    ],
)
def test_what_a_terminal_would_obey_is_shown(text, shown):
    assert visible(text) == shown
    assert json.loads(visible(json.dumps(text, ensure_ascii=False))) == text


def test_an_error_sends_nothing_to_the_terminal(run):
    code, _, err = run("evaluate\x1b[2J")
    assert code == 2 and err.startswith(r"spt-jax: error: unknown command 'evaluate\u001b[2J'")


def test_nearest_is_an_aligned_table(run, library):
    def nearest_words(run, k, *, fetch):
        words = [("▁[bold]", 0.91), ("▁film", 0.5)]
        rest = {"norm": 2.5, "cosine": words[:k], "l2": [("x", 1.25)]}
        return [{"position": position, **rest} for position in (0, 10)]

    library("prompts.words", nearest_words=nearest_words)
    lines = run("nearest", "r", "--k=2")[1].splitlines()
    assert [line.split() for line in lines] == [
        ["position", "norm", "by", "cosine", "by", "L2"],
        ["0", "2.50", "▁[bold]", "0.91", "▁film", "0.50", "x", "1.25"],
        ["10", "2.50", "▁[bold]", "0.91", "▁film", "0.50", "x", "1.25"],
    ]
    assert len({line.index("x 1.25") for line in lines[1:]}) == 1
    result = json.loads(run("nearest", "r", "--k=1", "--json")[1])
    assert result["rows"][1]["position"] == 10
    assert result["rows"][1]["cosine"] == [["▁[bold]", 0.91]]


def test_inspect(run, library):
    library(
        "models.backbone",
        describe=lambda name, length: {"model": name, "prompt": {"length": length}},
    )
    assert run("inspect", "t5", "--length=20")[1] == "model          t5\nprompt.length  20\n"
    assert json.loads(run("inspect", "t5", "--json")[1])["prompt"] == {"length": 100}


def test_pretrain(run, library):
    calls = []

    def pretrain(config, workdir, *, overwrite, command):
        calls.append((config.name, str(workdir), overwrite, command))
        return {"steps": config.steps}

    library("pretraining.pretrain", pretrain=pretrain)
    code, out, _ = run("pretrain", "--name=nano", "--steps=12345", "--json")
    assert (code, json.loads(out)) == (0, {"steps": 12345})
    command = ["spt-jax", "pretrain", "--name=nano", "--steps=12345", "--json"]
    assert calls == [("nano", "runs/nano", False, command)]


# The process.

WITHOUT_JAX = """
import sys
from spt_jax.cli.main import main
for line in sys.stdin:
    print(main(line.split()), "jax" in sys.modules, "numpy" in sys.modules, file=sys.stderr)
"""


def test_help_and_config_errors_never_import_jax():
    lines = {
        "--help": 0,
        "--version": 0,
        "train --help": 0,
        "evaluate --help": 0,
        "report --help": 0,
        "train --task.name=library --print-config": 0,
        "train --task.name=library --prompt.lenght=3": 2,
        "train --task.name=library --steps=x": 2,
        "train --config=nowhere": 2,
        "predict --help": 0,
        "predict --model=m --sample --num_beams=2": 2,
        "trian": 2,
    }
    result = subprocess.run(
        [sys.executable, "-c", WITHOUT_JAX], input="\n".join(lines), text=True, capture_output=True
    )
    shown = [line for line in result.stderr.splitlines() if not line.startswith("spt-jax: error")]
    assert shown == [f"{code} False False" for code in lines.values()], result.stderr


def test_module_is_the_console_script():
    result = subprocess.run(
        [sys.executable, "-m", "spt_jax", "--version"], text=True, capture_output=True
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert re.fullmatch(r"spt-jax \d+\.\d+\.\d+\n", result.stdout)


def test_a_closed_pipe_is_silent():
    reader, writer = os.pipe()
    os.close(reader)
    result = subprocess.run(
        [sys.executable, "-m", "spt_jax", "--help"], stdout=writer, stderr=subprocess.PIPE
    )
    os.close(writer)
    assert (result.returncode, result.stderr) == (141, b"")
