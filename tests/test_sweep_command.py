"""`spt-jax sweep`: flags and files become a study, and its results a table and an exit code."""

import json
import sys
from types import SimpleNamespace

import pytest
import yaml

from spt_jax.cli import main as cli
from spt_jax.studies.grid import expand

RUNS = [
    {"name": "seed=0", "state": "finished", "dev_score": 61.5, "score": 60.0},
    {"name": "seed=1", "state": "failed", "reason": "the loss of step 3 is nan"},
]
STUDY = """
base: quickstart
steps: 900
vary:
  prompt.length: [1, 20]
  task: [{name: library}, {name: type}]
runs:
  - name: slow
    optimizer: {learning_rate: 0.1}
  - optimizer.name: adamw
seeds: 0-1
"""


@pytest.fixture
def calls(monkeypatch):
    """The calls that reach the library, which trains nothing; `result` is what it returns."""
    calls = SimpleNamespace(
        studies=[], options=[], result={"runs": RUNS[:1], "best": {}, "failed": 0}
    )

    def sweep(study, folder, **options):
        print("training")
        calls.studies.append(study)
        calls.options.append((str(folder), options))
        return calls.result

    monkeypatch.setitem(sys.modules, "spt_jax.studies.sweep", SimpleNamespace(sweep=sweep))
    return calls


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Runs `spt-jax sweep` beside the study file above: (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "study.yaml").write_text(STUDY)

    def run(*argv):
        code = cli.main(["sweep", *argv])
        return (code, *capsys.readouterr())

    return run


def test_flags_make_a_grid(run, calls):
    code, out, _ = run(
        "--config=quickstart",
        "--vary=prompt.length=1,20",
        "--vary",
        "optimizer.learning_rate=1e-1,0.3",
        "--seeds=0,2",
        "--steps=7",
        "--workdir=w",
        "--overwrite",
    )
    [study] = calls.studies
    assert code == 0 and study.base["steps"] == 7 and study.base["data.batch_size"] == 16
    assert study.vary == {"prompt.length": [1, 20], "optimizer.learning_rate": [0.1, 0.3]}
    assert (study.seeds, study.sample, study.runs) == ([0, 2], None, ())
    [(folder, options)] = calls.options
    assert options["together"] is None
    assert (folder, options["overwrite"]) == ("w", True)
    assert options["command"][:2] == ["spt-jax", "sweep"] and "--seeds=0,2" in options["command"]


def test_a_study_file_is_a_base_with_what_varies(run, calls):
    assert run("--config=study.yaml", "--sample=2")[0] == 0
    [study] = calls.studies
    assert (study.base["steps"], study.base["prompt.length"]) == (900, 20)
    assert study.vary == {"prompt.length": [1, 20], "task": [{"name": "library"}, {"name": "type"}]}
    assert study.runs == [
        {"name": "slow", "optimizer.learning_rate": 0.1},
        {"optimizer.name": "adamw"},
    ]
    assert (study.seeds, study.sample) == ([0, 1], 2)
    assert calls.options[0][0] == "runs/study"


def test_flags_replace_parts_of_the_file(run, calls):
    flags = "--together=3", "--vary=prompt.length=5", "--seeds=7", "--data.batch_size=4"
    run("--config=study.yaml", *flags)
    [study] = calls.studies
    assert calls.options[0][1]["together"] == 3
    assert study.vary["prompt.length"] == [5] and study.seeds == [7]
    assert study.base["data.batch_size"] == 4 and "task" in study.vary


def test_another_config_behind_the_study_changes_its_base(run, calls, tmp_path):
    (tmp_path / "more.yaml").write_text("steps: 5\nseeds: [3]")
    run("--config=study.yaml", "--config=more.yaml")
    [study] = calls.studies
    assert study.base["steps"] == 5 and study.seeds == [3] and len(study.vary) == 2


def test_values_are_typed_like_flags(run, calls):
    run(
        "--task.name=library",
        "--vary=data.buckets=[[8, 16], [32]]",
        "--vary=optimizer.momentum=null,0.9",
        "--vary=prompt=null,{length: 5}",
        "--vary=tune=model",
        "--vary=model=a,b=c",
    )
    [study] = calls.studies
    assert study.vary["data.buckets"] == [(8, 16), (32,)]
    assert study.vary["optimizer.momentum"] == [None, 0.9]
    assert study.vary["prompt"] == [None, {"length": 5}]
    assert study.vary["model"] == ["a", "b=c"]
    assert len(expand(study)) == 16


def test_print_config_is_a_study_file_of_the_same_study(run, calls, tmp_path):
    code, out, _ = run("--config=study.yaml", "--print-config")
    assert code == 0 and not calls.studies
    (tmp_path / "again.yaml").write_text(out)
    run("--config=study.yaml")
    run("--config=again.yaml")
    first, second = calls.studies
    assert expand(first) == expand(second) and len(expand(first)) == 16
    assert yaml.safe_load(out)["vary"]["prompt.length"] == [1, 20]


def test_the_table_has_a_line_for_each_run(run, calls):
    calls.result = {"runs": RUNS[:1], "best": {"library": "seed=0"}, "failed": 0}
    _, out, err = run("--config=study.yaml")
    assert out.splitlines()[1:3] == [
        "name    state     dev_score  score",
        "seed=0  finished  61.50      60.00",
    ]
    assert "best.library  seed=0" in out
    code, out, err = run("--config=study.yaml", "--json")
    assert json.loads(out) == calls.result and "training" in err


def test_failed_runs_are_told_at_the_end_with_exit_code_1(run, calls):
    calls.result = {"runs": RUNS, "best": {}, "failed": 1}
    code, out, err = run("--config=study.yaml")
    assert code == 1 and "seed=1  failed" in out
    assert err.splitlines()[-1] == (
        "spt-jax: error: 1 of 2 runs failed: seed=1: the loss of step 3 is nan; the same command "
        "tries them again"
    )


def test_a_dry_run_prints_the_runs_and_their_cost(run, calls, tmp_path):
    code, out, _ = run("--config=study.yaml", "--dry-run")
    lines = out.splitlines()
    assert code == 0 and not calls.studies and not (tmp_path / "runs").exists()
    assert lines[0].split() == ["name", "program", "state", "steps_done", "steps_left"]
    assert lines[1].startswith("slow,prompt.length=1,task=name-library~")
    assert "runs_left      16" in lines and "steps_left     14,400" in lines
    code, out, _ = run("--config=study.yaml", "--dry-run", "--json")
    assert json.loads(out)["examples_left"] == 14_400 * 16


@pytest.mark.parametrize(
    "argv, message",
    [
        (["--vary=prompt.length"], "--vary is 'prompt.length', expected OPTION=V,V such as prompt"),
        (
            ["--vary=prompt.lenth=1"],
            "--vary: unknown option 'prompt.lenth'; PromptConfig has: file",
        ),
        (["--vary=prompt.length=1,x"], "--vary: prompt.length is 'x', expected a whole number"),
        (["--vary=data.buckets=[8"], "--vary data.buckets: line 1, not valid YAML: expected ','"),
        (["--vary=prompt.length="], "the grid is empty: 'prompt.length' has no values"),
        (
            ["--seeds=3,3"],
            "--seeds is '3,3', expected different whole numbers such as 0,1,2 or 0-4",
        ),
        (["--seeds=3-1"], "--seeds is '3-1', expected different whole numbers"),
        (["--together=0"], "--together is 0, expected 1 or more, or auto"),
        (["--together=x"], "together is 'x', expected a whole number or one of auto"),
        (["--sample=x"], "sample is 'x', expected a whole number or null"),
        (
            ["--config=study.yaml", "--prompt.length=5"],
            "--prompt.length is given, but prompt.length varies in this study; to train one of its "
            "values alone, give --vary prompt.length=VALUE",
        ),
        (["--config=study.yaml", "--task.name=type"], "--task.name is given, but task varies in"),
        (["--config=nothing"], "config 'nothing' is neither a file nor bundled; bundled configs:"),
    ],
)
def test_a_mistake_in_a_flag_is_one_line(run, argv, message):
    given = [] if "study" in argv[0] else ["--task.name=library"]
    code, _, err = run("--dry-run", *given, *argv)
    assert code == 2 and err.startswith(f"spt-jax: error: {message}")
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    "text, message",
    [
        ("base: {steps: 1}", 'base is {"steps": "1"}, expected the name of a config'),
        ("base: nothing", "config 'nothing' is neither a file nor bundled"),
        ("vary: [1]", 'vary is ["1"], expected a mapping of options to lists'),
        (
            "vary: {prompt: {length: [1]}}",
            'vary has prompt: {"length": ["1"]}, expected a list of values; write an option '
            "below a section with a dot, such as prompt.length: [1, 5]",
        ),
        ("vary: {promt.length: [1]}", "unknown option 'promt.length'"),
        ("runs: {a: 1}", 'runs is {"a": "1"}, expected a list of mappings of options'),
        ("runs: [{stepz: 1}]", "unknown option 'stepz'"),
        ("runs: [{steps: x}]", "steps is 'x', expected a whole number"),
        ("seeds: 1.5", "seeds is '1.5', expected different whole numbers such as 0,1,2 or 0-4"),
        ("sample: many", "sample is 'many', expected a whole number"),
        ("sweep: 1", "unknown option 'sweep'"),
        ("- 1", 'the file is ["1"], expected a mapping of options'),
    ],
)
def test_a_mistake_in_a_study_file_is_one_line(run, tmp_path, text, message):
    (tmp_path / "bad.yaml").write_text(text)
    code, _, err = run("--config=bad.yaml", "--dry-run")
    where = "" if "base: nothing" == text else "bad.yaml: "
    assert code == 2 and err.startswith(f"spt-jax: error: {where}{message}")
    assert len(err.splitlines()) == 1
