"""A sweep: no run twice and none lost, whatever ends it; what fails and what is best by dev."""

import dataclasses
import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from support import tiny

from spt_jax.cli.main import main
from spt_jax.config.fields import to_dict
from spt_jax.config.train import EvalConfig
from spt_jax.errors import Preempted, RunError
from spt_jax.models.open import read_shape
from spt_jax.prompts.file import load_prompt
from spt_jax.runs.folder import RunFolder
from spt_jax.runs.log import read_log
from spt_jax.runs.progress import Bar
from spt_jax.studies import packs
from spt_jax.studies import sweep as module
from spt_jax.studies.collect import collect
from spt_jax.studies.cost import estimate
from spt_jax.studies.grid import Study, expand
from spt_jax.studies.halving import rung_step
from spt_jax.t5.flops import step_flops
from spt_jax.train import fit as real_fit

BASE = {"task.name": "library", "steps": 10, "eval.every": 5}
STUDY = Study(BASE, {"task.name": ["library", "type"], "prompt.length": [1, 5, 20]}, seeds=(0, 1))
NAMES = [run.name for run in expand(STUDY)]


class Fit:
    """Stands for `fit_together`: writes what finished runs leave, and counts the runs.

    `errors` is what becomes of a run instead, by its number in the order of training. An error of
    a run alone is returned; any other is raised. `too_many` runs at once do not fit into memory.
    """

    def __init__(self):
        self.calls, self.packs, self.errors, self.dev, self.too_many = [], [], {}, {}, None

    def __call__(self, configs, workdirs, *, command, stops=None):
        self.stops = stops or [config.steps for config in configs]
        self.packs.append([workdir.name for workdir in workdirs])
        if self.too_many is not None and len(configs) >= self.too_many:
            raise RunError("a device is out of memory")
        total = sum(config.steps for config in configs)
        with Bar("training", total) as bar:
            bar.update(total // 2)
            outcomes = [self.train(*run) for run in zip(configs, workdirs, self.stops)]
            bar.update(total)
        return outcomes

    def train(self, config, workdir, stop):
        self.calls.append(workdir.name)
        if (error := self.errors.get(len(self.calls))) is not None:
            if isinstance(error, RunError) and not isinstance(error, Preempted):
                return error
            raise error
        folder = RunFolder(workdir)
        workdir.mkdir(exist_ok=True)
        line = {"step": stop, "split": "dev", "score": self.dev.get(workdir.name, 50.0)}
        with folder.log_file.open("a") as log:
            log.write(json.dumps(line) + "\n")
        folder.config_file.write_text(yaml.safe_dump(to_dict(config)))
        folder.manifest_file.write_text(json.dumps({"identity": {}, "versions": {}}))
        if stop < config.steps:
            return None
        result = {"task": config.task.name, "score": 1.0 + config.seed, "steps": config.steps}
        result["dev_score"] = self.dev.get(workdir.name, 50.0)
        folder.write_result(result)
        return result


@pytest.fixture
def fit(monkeypatch):
    fit = Fit()
    monkeypatch.setattr(packs, "fit_together", fit)
    return fit


def sweep(study, folder, *, together=1, **options):
    """A sweep whose runs are trained one after the other."""
    return module.sweep(study, folder, together=together, **options)


def results(folder):
    return {run["name"]: run for run in json.loads((folder / "results.json").read_text())}


def test_every_run_is_trained_once_in_a_folder_of_its_name(fit, tmp_path):
    result = sweep(STUDY, tmp_path / "s", command=["spt-jax", "sweep"])
    assert fit.calls == NAMES and len(NAMES) == 12
    assert [run["name"] for run in result["runs"]] == NAMES
    assert {run["state"] for run in result["runs"]} == {"finished"} and result["failed"] == 0
    assert [*results(tmp_path / "s").values()] == result["runs"]
    saved = yaml.safe_load((tmp_path / "s" / "sweep.yaml").read_text())
    assert saved["vary"] == {"prompt.length": [1, 5, 20], "task.name": ["library", "type"]}
    assert saved["seeds"] == [0, 1] and saved["steps"] == 10


def test_finished_runs_are_skipped_and_a_study_that_grows_trains_what_is_new(fit, tmp_path, capsys):
    sweep(STUDY, tmp_path)
    sweep(STUDY, tmp_path)
    assert fit.calls == NAMES
    packs = "12 runs in 12 programs, at most 1 in one"
    assert f"{packs}; 12 of the runs finished before" in capsys.readouterr().err
    sweep(dataclasses.replace(STUDY, seeds=(0, 1, 2)), tmp_path)
    assert len(fit.calls) == 18 and all(name.endswith("seed=2") for name in fit.calls[12:])


def test_the_best_run_of_each_task_is_chosen_by_dev_and_not_by_test(fit, tmp_path):
    best = "task.name=type,prompt.length=5,seed=0"  # seed 1 has the higher test score
    fit.dev = {best: 60.0, NAMES[0]: 55.0}
    assert sweep(STUDY, tmp_path)["best"] == {"library": NAMES[0], "type": best}


def test_a_failed_run_is_told_does_not_end_the_sweep_and_is_tried_again(fit, tmp_path, capsys):
    fit.errors[3] = RunError("the loss of step 7 is nan")
    result = sweep(STUDY, tmp_path)
    assert len(fit.calls) == 12 and result["failed"] == 1
    failed = {"name": NAMES[2], "state": "failed", "reason": "the loss of step 7 is nan"}
    assert result["runs"][2] == failed == results(tmp_path)[NAMES[2]]
    assert f"run {NAMES[2]} failed: the loss of step 7 is nan" in capsys.readouterr().err
    assert sweep(STUDY, tmp_path)["failed"] == 0
    assert fit.calls[12:] == [NAMES[2]]


@pytest.mark.parametrize(
    "error, seed", [(Preempted("ended by SIGTERM"), 0), (KeyboardInterrupt(), 1), (OSError(5), 2)]
)
def test_a_sweep_that_ends_at_a_random_run_goes_on_there(fit, tmp_path, error, seed):
    draw = random.Random(seed)
    done = 0
    while done < 12:
        fit.errors = {len(fit.calls) + draw.randint(1, 6): error}
        before = len(fit.calls)
        try:
            result = sweep(STUDY, tmp_path)
            done += len(fit.calls) - before
        except type(error):
            done += len(fit.calls) - before - 1
    assert [*dict.fromkeys(fit.calls)] == NAMES  # the run that was ended is the next one
    assert [run["state"] for run in result["runs"]] == ["finished"] * 12


def test_runs_that_can_share_a_program_are_trained_together(fit, tmp_path):
    result = sweep(STUDY, tmp_path, together=4)
    assert [len(pack) for pack in fit.packs] == [4, 4, 4] and sorted(fit.calls) == sorted(NAMES)
    assert [run["name"] for run in result["runs"]] == NAMES and result["failed"] == 0


def test_a_sweep_goes_on_with_the_packs_that_it_had(fit, tmp_path):
    fit.errors[6] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        sweep(STUDY, tmp_path, together=4)
    first, second = fit.packs
    assert len(fit.calls) == 6  # one run of the second pack is finished
    sweep(STUDY, tmp_path, together=4)
    assert fit.packs[2] == second[1:] and len(fit.packs[3]) == 4
    assert [*dict.fromkeys(fit.calls)] == [*first, *second, *fit.packs[3]]


def test_a_run_that_fails_in_a_pack_does_not_end_the_others(fit, tmp_path):
    fit.errors[2] = RunError("the loss of step 7 is nan")
    result = sweep(STUDY, tmp_path, together=4)
    failed = [run["name"] for run in result["runs"] if run["state"] == "failed"]
    assert failed == [fit.packs[0][1]] and len(fit.calls) == 12 and len(fit.packs) == 3


def test_a_pack_that_does_not_fit_is_trained_in_halves(fit, tmp_path, capsys):
    fit.too_many = 2
    assert sweep(Study(BASE, seeds=(0, 1, 2)), tmp_path, together=4)["failed"] == 0
    assert [len(pack) for pack in fit.packs] == [3, 1, 2, 1, 1]
    assert (
        "3 runs failed in one program: a device is out of memory; they are trained as 1 and 2 "
        "instead" in capsys.readouterr().err
    )
    fit.too_many = 1
    result = sweep(Study(BASE, seeds=(3, 4)), tmp_path, together=4)
    assert [run["reason"] for run in result["runs"]] == ["a device is out of memory"] * 2


def test_bad_input_in_a_pack_names_its_runs(fit, tmp_path):
    fit.errors[2] = ValueError("file 'rows.jsonl' is wrong")
    with pytest.raises(ValueError, match="^a run of seed=0, seed=1: file 'rows.jsonl' is wrong$"):
        sweep(Study(BASE, seeds=(0, 1)), tmp_path, together=2)


@pytest.mark.parametrize("error", [ValueError, FileNotFoundError])
def test_bad_input_of_a_run_ends_the_sweep_and_names_the_run(fit, tmp_path, error):
    fit.errors[2] = error("file 'rows.jsonl' is wrong")
    with pytest.raises(error, match=f"^run '{NAMES[1]}': file 'rows.jsonl' is wrong$"):
        sweep(STUDY, tmp_path)
    assert len(fit.calls) == 2


def test_another_base_config_is_refused_but_other_logging_is_not(fit, tmp_path):
    sweep(STUDY, tmp_path)
    changed = {**BASE, "steps": 11, "optimizer.name": "adamw", "log.every": 2, "remat": "full"}
    with pytest.raises(ValueError) as error:
        sweep(dataclasses.replace(STUDY, base=changed), tmp_path)
    assert str(error.value) == (
        f"workdir '{tmp_path}' holds a sweep with another base config: optimizer.name (null there, "
        "'adamw' now), steps (10 there, 11 now); give another --workdir, or --overwrite to delete "
        "the runs of that sweep"
    )
    same = {**BASE, "log.every": 2, "eval.batch_size": 4, "mesh.data": 1}
    sweep(dataclasses.replace(STUDY, base=same), tmp_path)
    assert len(fit.calls) == 12


def test_overwrite_deletes_the_runs_of_the_sweep_and_nothing_else(fit, tmp_path):
    sweep(STUDY, tmp_path)
    own = tmp_path / "mine"
    own.mkdir()
    (own / "config.yaml").write_text("steps: 1\n")
    base = {**BASE, "steps": 4}
    sweep(Study(base, {"prompt.length": [1, 5]}), tmp_path, overwrite=True)
    left = {path.parent.name for path in tmp_path.glob("*/result.json")}
    assert left == {"prompt.length=1", "prompt.length=5"} and (own / "config.yaml").exists()


def test_names_in_damaged_results_lead_nowhere_else(fit, tmp_path):
    folder = tmp_path / "s"
    sweep(STUDY, folder)
    (folder / "results.json").write_text(json.dumps([{"name": "../other"}]))
    with pytest.raises(ValueError, match="the name '../other' has the part '..'"):
        sweep(STUDY, folder, overwrite=True)


def test_a_bucket_is_no_folder_of_a_sweep(tmp_path):
    with pytest.raises(ValueError, match="workdir 'gs://bucket/s' is in a bucket, and the folder"):
        sweep(STUDY, Path("gs://bucket/s"))


def test_two_sweeps_of_one_folder_at_once_are_refused(fit, tmp_path, monkeypatch):
    def second(*args, **kwargs):
        with pytest.raises(RunError, match="another process is using"):
            sweep(STUDY, tmp_path)
        raise KeyboardInterrupt

    monkeypatch.setattr(packs, "fit_together", second)
    with pytest.raises(KeyboardInterrupt):
        sweep(STUDY, tmp_path)


def test_one_bar_counts_the_steps_of_all_runs(fit, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("spt_jax.runs.progress.PLAIN_SECONDS", 0.0)
    fit.errors[2] = Preempted("ended by SIGTERM")
    with pytest.raises(Preempted):
        sweep(STUDY, tmp_path)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("sweep ")]
    assert [line.split("  ")[0] for line in lines] == [
        "sweep 5/120",
        "sweep 10/120",
        "sweep 15/120",
    ]
    assert all(" s left" in line for line in lines)
    sweep(STUDY, tmp_path)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("sweep ")]
    assert lines[0].startswith("sweep 15/120") and lines[-1].startswith("sweep 120/120")
    assert Bar.outer is None


def test_an_estimate_counts_what_is_left_and_trains_nothing(fit, tmp_path):
    base = {**BASE, "data.batch_size": 4, "data.inputs_length": 32, "data.targets_length": 2}
    study = Study(base, {"prompt.length": [1, 20]}, seeds=(0, 1))
    fit.errors[2] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        sweep(study, tmp_path)
    left = tmp_path / "prompt.length=1,seed=1"
    (left / "checkpoints" / "4").mkdir(parents=True)
    (left / "config.yaml").write_text(yaml.safe_dump(to_dict(expand(study)[1].config)))
    result = estimate(study, tmp_path, together=2)
    assert [run["program"] for run in result["runs"]] == [1, 1, 2, 2]
    assert result["packs"] == "4 runs in 2 programs, at most 2 in one"
    assert [(run["state"], run["steps_done"], run["steps_left"]) for run in result["runs"]] == [
        ("finished", 10, 0),
        ("waiting", 4, 6),
        ("waiting", 0, 10),
        ("waiting", 0, 10),
    ]
    assert (result["runs_left"], result["steps_left"], result["examples_left"]) == (3, 26, 104)
    shape = read_shape("spt-nano")[0]
    batch = {"inputs": np.zeros((4, 32)), "targets": np.zeros((4, 2))}
    short, long = (step_flops(shape, batch, prompt=n, tune="prompt") for n in (1, 20))
    assert result["flops_at_most"] == round(6 * short + 20 * long)
    assert len(fit.calls) == 2


def write_study(folder, **parts):
    """A study file of runs on the tiny backbone."""
    tree = {**to_dict(tiny.train_config(folder)), **parts}
    (folder / "study.yaml").write_text(yaml.safe_dump(tree))
    return folder / "study.yaml"


def files_of(folder):
    """Log, prompt and scores of each run; no times, which differ from run to run."""
    found = {}
    for run in sorted(path.parent for path in folder.glob("*/result.json")):
        result = json.loads((run / "result.json").read_text())
        scores = [result[name] for name in ("score", "rank_score", "dev_score", "best_step")]
        prompt = load_prompt(run / "prompt.safetensors")[0]
        found[run.name] = read_log(run / "log.jsonl"), prompt, scores
    return found


def assert_alike(found, expected, tolerance):
    """Two results of `files_of` are of the same runs, their numbers within a relative tolerance."""
    assert [*found] == [*expected]
    for name in found:
        (log, prompt, scores), (log_then, prompt_then, scores_then) = found[name], expected[name]
        np.testing.assert_allclose(prompt, prompt_then, rtol=tolerance, atol=tolerance)
        assert [line["step"] for line in log] == [line["step"] for line in log_then]
        losses, losses_then = ([x["loss"] for x in of if "loss" in x] for of in (log, log_then))
        np.testing.assert_allclose(losses, losses_then, rtol=tolerance)
        assert scores == pytest.approx(scores_then, rel=tolerance)


def count_lines(folder):
    """Lines in the logs of all runs: 12 steps and 4 evaluations of each finished run."""
    return sum(log.read_text().count("\n") for log in folder.glob("*/log.jsonl"))


def test_a_run_of_a_sweep_is_what_it_is_alone(tmp_path, capsys):
    config = tiny.train_config(tmp_path / "files", steps=4)
    file = write_study(tmp_path / "files", steps=4, seeds=[0, 1])
    assert main(["sweep", f"--config={file}", "--together=1", f"--workdir={tmp_path / 's'}"]) == 0
    alone = tmp_path / "alone" / "seed=1"
    real_fit(dataclasses.replace(config, seed=1), alone)
    runs = files_of(tmp_path / "s")
    assert [*runs] == ["seed=0", "seed=1"]
    assert_alike({"seed=1": runs["seed=1"]}, files_of(tmp_path / "alone"), 0)
    assert not np.array_equal(runs["seed=0"][1], runs["seed=1"][1])
    assert "seed=1  finished" in capsys.readouterr().out
    # The report reads what real runs leave.
    row = collect(tmp_path / "s").rows[1]
    result = RunFolder(alone).read_result(to_dict(config))
    assert result is not None
    assert (row.run, row.seed, row.score) == ("seed=1", 1, result["score"])
    assert row.curve and row.test_rows and row.device and row.trained_params == 48


@pytest.mark.slow
def test_a_sweep_that_is_killed_ten_times_ends_as_an_undisturbed_one(tmp_path):
    file = write_study(
        tmp_path, vary={"prompt.length": [1, 3], "optimizer.learning_rate": [0.1, 0.3]}, seeds="0-2"
    )
    command = [sys.executable, "-m", "spt_jax", "sweep", f"--config={file}", "--together=4"]
    subprocess.run([*command, f"--workdir={tmp_path / 'whole'}"], check=True)
    folder, draw = tmp_path / "killed", random.Random(0)
    for _ in range(10):
        process = subprocess.Popen([*command, f"--workdir={folder}"])
        enough = count_lines(folder) + draw.randint(1, 14)
        while count_lines(folder) < enough:
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
    subprocess.run([*command, f"--workdir={folder}"], check=True)
    whole = files_of(tmp_path / "whole")
    assert len(whole) == 12
    # Runs of a pack may stand at different steps after a kill, and their sums then round otherwise.
    assert_alike(files_of(folder), whole, 1e-3)


HALVED = Study(
    {"task.name": "library", "steps": 80, "eval.every": 10},
    {"prompt.length": [1, 2, 3, 4, 5], "task.name": ["library", "type"]},
    seeds=(0, 1),
)


def score_by_length(fit, better=lambda length: length):
    """Dev scores of the runs of HALVED: the seeds differ by more than the lengths do."""
    for run in expand(HALVED):
        length = run.config.prompt.length
        fit.dev[run.name] = 40.0 + better(length) + (3 if run.config.seed else -3)


def states(folder):
    records = json.loads((folder / "results.json").read_text())
    return {record["name"]: record["state"] for record in records}


def last_steps(folder):
    return {
        run.name: read_log(folder / run.name / "log.jsonl")[-1]["step"] for run in expand(HALVED)
    }


def test_the_worse_half_ends_at_each_rung(fit, tmp_path):
    score_by_length(fit)
    result = module.sweep(HALVED, tmp_path, halve=True, together=4)
    stopped = {5: 80, 4: 40, 3: 20, 2: 10, 1: 10}  # of 5 points 3 stay, of 3 two, of 2 one
    expected = {run.name: stopped[run.config.prompt.length] for run in expand(HALVED)}
    assert last_steps(tmp_path) == expected
    for record in result["runs"]:
        step = expected[record["name"]]
        assert record["state"] == ("finished" if step == 80 else "halved")
        if step < 80:
            assert record["reason"] == f"in the worse half by dev at step {step}"
    assert result["failed"] == 0 and set(result["best"]) == {"library", "type"}


def test_a_halved_sweep_goes_on_to_the_same_choice(fit, tmp_path):
    score_by_length(fit, better=lambda length: -length)
    module.sweep(HALVED, tmp_path / "undisturbed", halve=True, together=4)
    calls = len(fit.calls)
    for killed_at in (3, 21, 29, 34):
        fit.calls.clear()
        fit.errors = {killed_at: KeyboardInterrupt()}
        folder = tmp_path / f"killed{killed_at}"
        with pytest.raises(KeyboardInterrupt):
            module.sweep(HALVED, folder, halve=True, together=1)
        fit.errors = {}
        module.sweep(HALVED, folder, halve=True, together=1)
        assert states(folder) == states(tmp_path / "undisturbed")
        assert last_steps(folder) == last_steps(tmp_path / "undisturbed")
        assert len(fit.calls) == calls + 1  # nothing but what was killed is trained twice


def test_halved_runs_can_be_trained_to_their_end(fit, tmp_path):
    score_by_length(fit)
    module.sweep(HALVED, tmp_path, halve=True, together=4)
    module.sweep(HALVED, tmp_path, together=4)
    assert set(states(tmp_path).values()) == {"finished"}
    assert set(last_steps(tmp_path).values()) == {80}


def test_a_run_that_fails_has_no_part_in_the_halving(fit, tmp_path):
    score_by_length(fit)
    fit.errors = {1: RunError("the loss is nan")}
    result = module.sweep(HALVED, tmp_path, halve=True, together=4)
    assert result["failed"] == 1
    assert sum(state == "finished" for state in states(tmp_path).values()) == 4


def test_rungs_are_steps_of_evaluations():
    config = expand(HALVED)[0].config
    assert [rung_step(config, rung) for rung in range(3)] == [10, 20, 40]
    uneven = dataclasses.replace(config, steps=100, eval=EvalConfig(every=30))
    assert [rung_step(uneven, rung) for rung in range(3)] == [30, 30, 60]
    rare = dataclasses.replace(config, steps=100, eval=EvalConfig(every=1000))
    assert [rung_step(rare, rung) for rung in range(3)] == [100, 100, 100]
