"""Whole runs of a tiny backbone: what they write, how they resume, how they fail."""

import dataclasses
import json
import logging
import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
import yaml
from support import tiny

from spt_jax.config.devices import MeshConfig
from spt_jax.config.fields import to_dict
from spt_jax.config.train import DataConfig, EvalConfig, LogConfig, OptimizerConfig, PromptConfig
from spt_jax.errors import RunError
from spt_jax.evaluation import scores
from spt_jax.prompts.file import load_prompt
from spt_jax.runs.checkpoints import Checkpoints
from spt_jax.runs.folder import RunFolder
from spt_jax.runs.log import read_log
from spt_jax.step import jit_step
from spt_jax.train import fit

WITH_BASELINES = EvalConfig(every=4, batch_size=8)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """(folder of the tiny files, its undisturbed run, that run's result)."""
    folder = tmp_path_factory.mktemp("tiny")
    config = tiny.train_config(folder, eval=WITH_BASELINES)
    return folder, folder / "run", fit(config, folder / "run", command=["spt-jax", "train"])


def outcome(run: Path):
    """Everything of a run that must not depend on interruptions, as bytes."""
    log = (run / "log.jsonl").read_bytes()
    prompt, metadata = load_prompt(run / "prompt.safetensors")
    return log, prompt.tobytes(), metadata


def test_result_has_what_json_promises(finished):
    _, _, result = finished
    assert result["task"] == "tiny" and result["steps"] == 12 and result["seed"] == 0
    assert result["trained_params"] == 3 * 16
    assert result["opt_state_bytes"] == 4 * 3 * 16 + 12
    assert result["frozen_unchanged"] is True
    for name in ("score", "rank_score", "majority_score", "unprompted_score"):
        assert 0 <= result[name] <= 100
    assert result["checkpoint_bytes"] < 100_000 and result["examples_per_second"] > 0
    assert result["steps_per_second"] == result["examples_per_second"] / 8
    assert 0 <= result["waiting_share"] <= 1 and result["mfu"] is None  # unknown of a CPU


def test_log_has_every_step_once_and_no_clock(finished):
    _, run, _ = finished
    records = read_log(run / "log.jsonl")
    assert [r["step"] for r in records if "loss" in r] == list(range(1, 13))
    assert [r["step"] for r in records if r.get("split") == "dev"] == [4, 8, 12]
    keys = {key for record in records for key in record}
    assert {"grad_norm", "prompt_norm", "score", "rank_score"} <= keys
    assert not keys & {"time", "seconds", "examples_per_second"}


def test_the_prompt_file_says_what_it_is_for(finished):
    _, run, result = finished
    prompt, metadata = load_prompt(run / "prompt.safetensors")
    assert prompt.shape == (3, 16) and metadata["model"] == "tiny-0"
    assert metadata["task"] == "tiny" and metadata["init"] == "class_labels"
    assert metadata["template"] == "{text}"
    assert int(metadata["step"]) == result["best_step"]
    assert float(metadata["score"]) == result["score"]
    assert len(metadata["fingerprint"]) == 64


def test_manifest_and_config_describe_the_run(finished):
    folder, run, _ = finished
    manifest = json.loads((run / "manifest.json").read_text())
    assert manifest["command"] == ["spt-jax", "train"] and "jax" in manifest["versions"]
    assert manifest["data"]["rows"]["train"] > manifest["data"]["rows"]["test"]
    config = tiny.train_config(folder, eval=WITH_BASELINES)
    assert yaml.safe_load((run / "config.yaml").read_text()) == to_dict(config)


def test_a_finished_run_is_read_back_and_not_trained(finished, monkeypatch):
    folder, run, result = finished
    monkeypatch.setattr("spt_jax.run.load_backbone", None)  # calling it would raise TypeError
    assert fit(tiny.train_config(folder, eval=WITH_BASELINES), run) == result


def test_orbax_alone_loads_the_prompt(finished):
    # The README's snippet, in a process that does not know spt_jax.
    _, run, _ = finished
    prompt, _ = load_prompt(run / "prompt.safetensors")
    folder = str(run / "checkpoints" / "12" / "state")
    code = (
        "import sys, numpy as np, orbax.checkpoint as ocp\n"
        f"state = ocp.StandardCheckpointer().restore({folder!r})\n"
        "np.save(sys.argv[1], state['best']['trained']['prompt'])\n"
        "assert not [name for name in sys.modules if name.startswith('spt_jax')]\n"
    )
    subprocess.run(
        [sys.executable, "-c", code, str(run.parent / "loaded.npy")], check=True, cwd="/"
    )
    np.testing.assert_array_equal(np.load(run.parent / "loaded.npy"), prompt)


def copy_run(run: Path, target: Path, newest: int) -> Path:
    """The run as it was when `newest` was its last whole checkpoint."""
    shutil.copytree(run, target)
    for name in ("result.json", "prompt.safetensors"):
        (target / name).unlink()
    for step in list((target / "checkpoints").iterdir()):
        if step.name.isdigit() and int(step.name) > newest:
            shutil.rmtree(step)
    return target


@pytest.mark.parametrize("newest", [8, 9])
def test_resuming_equals_not_stopping(finished, tmp_path, newest):
    folder, run, _ = finished
    resumed = copy_run(run, tmp_path / "resumed", newest)
    with open(resumed / "log.jsonl", "a") as log:
        log.write('{"step": 13, "lo')  # what a kill leaves behind
    fit(tiny.train_config(folder), resumed)
    assert outcome(resumed) == outcome(run)


def test_a_traced_run_is_the_same_run(finished, tmp_path):
    folder, run, _ = finished
    resumed = copy_run(run, tmp_path / "resumed", 8)
    fit(tiny.train_config(folder), resumed, profile=2)
    assert outcome(resumed) == outcome(run)
    [trace] = (resumed / "profile").glob("plugins/profile/*/*.xplane.pb")
    assert trace.stat().st_size > 0


def test_a_damaged_newest_step_is_passed_over_with_a_warning(finished, tmp_path, caplog):
    folder, run, _ = finished
    resumed = copy_run(run, tmp_path / "resumed", 9)
    shutil.rmtree(resumed / "checkpoints" / "9" / "state" / "d")
    with caplog.at_level(logging.WARNING, logger="spt_jax"):
        fit(tiny.train_config(folder), resumed)
    assert [r.message for r in caplog.records if "checkpoint 9" in r.message]
    assert outcome(resumed) == outcome(run)


def test_no_whole_step_refuses_rather_than_starting_over(finished, tmp_path):
    folder, run, _ = finished
    resumed = copy_run(run, tmp_path / "resumed", 9)
    for step in (resumed / "checkpoints").iterdir():
        if step.is_dir():
            shutil.rmtree(step / "state")
    with pytest.raises(RunError, match="none of the checkpoints 8, 9 in .* is whole"):
        fit(tiny.train_config(folder), resumed)


def test_a_run_may_grow(finished, tmp_path):
    folder, run, _ = finished
    grown = tmp_path / "grown"
    shutil.copytree(run, grown)
    result = fit(tiny.train_config(folder, steps=14), grown)
    assert result["steps"] == 14
    assert (grown / "log.jsonl").read_bytes().startswith((run / "log.jsonl").read_bytes())


def test_evaluation_and_logging_may_change_on_resuming(finished, tmp_path):
    folder, run, _ = finished
    resumed = copy_run(run, tmp_path / "resumed", 9)
    evaluation = EvalConfig(
        every=6, batch_size=8, max_rows=3, baselines=False
    )  # a shape that is compiled already
    changed = tiny.train_config(folder, eval=evaluation, log=LogConfig())
    assert fit(changed, resumed)["steps"] == 12


def test_other_rows_of_dev_score_the_best_prompt_again(finished, tmp_path, capsys):
    folder, run, _ = finished
    resumed = copy_run(run, tmp_path / "resumed", 9)
    dev = [record for record in read_log(run / "log.jsonl") if record.get("split") == "dev"]
    best = max(dev[:2], key=lambda record: (record["score"], record["rank_score"]))
    evaluation = EvalConfig(every=4, batch_size=8, max_rows=3, baselines=False)
    changed = tiny.train_config(folder, eval=evaluation)
    fit(changed, resumed)
    lines = capsys.readouterr().err
    assert f"best prompt, of step {best['step']}, had {best['score']:.1f} on those of then" in lines
    with Checkpoints(resumed / "checkpoints") as checkpoints:
        kept = checkpoints.restore_newest(_template(resumed)).state["best"]
    assert float(kept["score"]) in {100 * right / np.float32(3) for right in range(4)}


@pytest.mark.slow
def test_longer_inputs_of_dev_score_the_best_prompt_again(tmp_path, capsys):
    short = DataConfig(inputs_length=4, targets_length=4, batch_size=8)
    evaluation = EvalConfig(every=2, batch_size=8)
    config = tiny.train_config(tmp_path, data=short, eval=evaluation, steps=2)
    fit(config, tmp_path / "run")
    capsys.readouterr()
    longer = dataclasses.replace(evaluation, inputs_length=16)
    fit(dataclasses.replace(config, eval=longer, steps=4), tmp_path / "run")
    said = "dev has other rows now (eval.max_rows is null, eval.inputs_length is 16): the best"
    assert said in capsys.readouterr().err


def _template(run: Path) -> dict:
    """The newest checkpoint as Orbax reads it, whose leaves are those of a state."""
    newest = max(int(path.name) for path in (run / "checkpoints").iterdir() if path.name.isdigit())
    return ocp.StandardCheckpointer().restore((run / "checkpoints" / f"{newest}/state").absolute())


def stopped_by_patience(folder: Path, run: Path, **changes) -> dict:
    """The result of a run that may take one evaluation without gain, and gains nothing."""
    patience = changes.pop("patience", 1)
    evaluation = EvalConfig(every=2, batch_size=8, patience=patience, baselines=False)
    nothing = OptimizerConfig(name="sgd", learning_rate=1e-30)
    changes |= {"eval": evaluation, "optimizer": nothing, "dropout_rate": 0.0}
    return fit(tiny.train_config(folder, **changes), run)


def test_the_patience_of_now_decides_for_a_run_that_patience_stopped(finished, tmp_path, capsys):
    folder, run = finished[0], tmp_path / "run"
    assert stopped_by_patience(folder, run)["steps_done"] == 4
    assert "stopped at step 4: 1 evaluations without gain" in capsys.readouterr().err
    assert stopped_by_patience(folder, run)["steps_done"] == 4  # finished, and read back
    assert stopped_by_patience(folder, run, steps=14)["steps_done"] == 4
    assert stopped_by_patience(folder, run, steps=14, patience=3)["steps_done"] == 8
    assert stopped_by_patience(folder, run, steps=14, patience=None)["steps_done"] == 14
    assert "None evaluations" not in capsys.readouterr().err


def test_a_smaller_patience_stops_where_so_many_evaluations_are_over(finished, tmp_path):
    folder, run = finished[0], tmp_path / "run"
    assert stopped_by_patience(folder, run, patience=3)["steps_done"] == 8
    for patience, steps in ((1, 6), (2, 6), (3, 8)):  # at step 6 two have had no gain
        resumed = copy_run(run, tmp_path / f"resumed{patience}", 6)
        assert stopped_by_patience(folder, resumed, patience=patience)["steps_done"] == steps


def test_a_patience_that_a_run_gets_later_counts_from_there(finished, tmp_path):
    folder, run = finished[0], tmp_path / "run"
    assert stopped_by_patience(folder, run, steps=6, patience=None)["steps_done"] == 6
    assert stopped_by_patience(folder, run, steps=14, patience=2)["steps_done"] == 10


def test_evaluations_and_resuming_compile_no_second_step(finished, tmp_path, monkeypatch):
    used = []

    def noted(*arguments, **options):
        used.append(jit_step(*arguments, **options))
        return used[-1]

    monkeypatch.setattr("spt_jax.train.jit_step", noted)
    stopped_by_patience(finished[0], tmp_path / "run", steps=6, patience=3)
    stopped_by_patience(finished[0], tmp_path / "run", steps=8, patience=4)
    assert len(used) == 8 and {step._cache_size() for step in used} == {1}


def test_more_steps_that_change_the_learning_rate_are_told(finished, tmp_path, capsys):
    folder, run = finished[0], tmp_path / "run"
    optimizer = OptimizerConfig(name="sgd", learning_rate=0.4, schedule="linear")
    config = tiny.train_config(folder, steps=4, optimizer=optimizer, dropout_rate=0.0)
    fit(config, run)
    assert "the learning rate of step" not in capsys.readouterr().err
    fit(dataclasses.replace(config, steps=8), run)
    expected = (
        "steps was 4 and is 8: the learning rate of step 5 is 0.2, where it was to be 0, because "
        "the linear schedule spans all steps"
    )
    assert expected in capsys.readouterr().err


def test_dev_scores_stand_beside_the_majority_and_one_answer_to_all_is_told(
    finished, tmp_path, capsys, monkeypatch
):
    folder = finished[0]
    answer_all = scores.answer_tasks

    def majority(*arguments):
        return [
            outputs._replace(predictions=("animal",) * len(outputs.predictions))
            for outputs in answer_all(*arguments)
        ]

    monkeypatch.setattr("spt_jax.evaluation.evaluate.answer_tasks", majority)
    result = fit(tiny.train_config(folder, steps=4), tmp_path / "run")
    lines = capsys.readouterr().err
    assert f"step 4  dev {result['dev_majority_score']:.1f} (majority " in lines
    assert (
        "; every prediction on dev is 'animal', the majority class: usually the learning rate, "
        "too few steps, or dropout" in lines
    )


@pytest.mark.slow
def test_how_the_work_is_shared_and_remembered_may_change_on_resuming(finished, tmp_path):
    folder, run, _ = finished
    config = to_dict(tiny.train_config(folder))
    RunFolder(run).check_config({**config, "mesh": {"data": 1}, "remat": "full"})
    resumed = copy_run(run, tmp_path / "resumed", 9)
    changed = tiny.train_config(folder, mesh=MeshConfig(data=2), remat="light")
    assert fit(changed, resumed)["steps_done"] == 12
    losses = [
        [record["loss"] for record in read_log(place / "log.jsonl") if "loss" in record]
        for place in (run, resumed)
    ]
    np.testing.assert_allclose(*losses, rtol=1e-4)


def edit_config(run: Path, old: str, new: str) -> None:
    text = (run / "config.yaml").read_text()
    assert old in text
    (run / "config.yaml").write_text(text.replace(old, new))


def replace_checkpoint(run: Path, other: Path) -> None:
    shutil.rmtree(run / "checkpoints" / "9")
    shutil.copytree(other / "checkpoints" / "9", run / "checkpoints" / "9")


def test_a_checkpoint_of_another_run_is_refused_whatever_stands_beside_it(finished, tmp_path):
    folder, run, _ = finished
    other = tmp_path / "other"
    fit(tiny.train_config(folder, seed=1, steps=9), other)
    for number, (edit, changes, message) in enumerate(
        (
            (
                lambda run: edit_config(run, "\nseed: 0", "\nseed: 1"),
                {"seed": 1},
                r"a checkpoint in '.*' holds a run of another config: seed \(0 there, 1 now\)",
            ),
            (
                lambda run: edit_config(run, "\nsteps: 12", "\nsteps: 8"),
                {"steps": 8},
                r"a checkpoint in '.*' holds a run of another config: steps \(12 there, 8 now\)",
            ),
            (
                lambda run: replace_checkpoint(run, other),
                {},
                r"a checkpoint in '.*' holds a run of another config: seed \(1 there, 0 now\)",
            ),
        )
    ):
        resumed = copy_run(run, tmp_path / str(number), 9)
        edit(resumed)
        with pytest.raises(ValueError, match=message):
            fit(tiny.train_config(folder, **changes), resumed)


def test_a_checkpoint_of_another_model_is_refused(finished, tmp_path):
    folder, run, _ = finished
    resumed = copy_run(run, tmp_path / "resumed", 9)
    manifest = json.loads((resumed / "manifest.json").read_text())
    manifest["identity"]["model_fingerprint"] = "0" * 64
    (resumed / "manifest.json").write_text(json.dumps(manifest))
    with Checkpoints(resumed / "checkpoints") as checkpoints:
        metadata = checkpoints.restore_newest(_template(resumed)).metadata
    message = r"a checkpoint in '.*' holds a run with another model fingerprint \("
    with pytest.raises(ValueError, match=message):
        RunFolder(resumed).check_checkpoint(metadata, tiny.train_config(folder))


def test_checkpoints_without_the_files_that_say_what_they_are_of_are_refused(finished, tmp_path):
    folder, run, _ = finished
    config = tiny.train_config(folder)
    resumed = copy_run(run, tmp_path / "resumed", 9)
    (resumed / "config.yaml").rename(tmp_path / "config.yaml")
    with pytest.raises(ValueError, match="checkpoints but no config.yaml that says what run they"):
        fit(dataclasses.replace(config, seed=1), resumed)
    assert not (resumed / "config.yaml").exists()
    (tmp_path / "config.yaml").rename(resumed / "config.yaml")
    for content in (None, "{", "{}", "[]", '{"identity": null, "versions": {}}'):
        (resumed / "manifest.json").unlink(missing_ok=True)
        if content is not None:
            (resumed / "manifest.json").write_text(content)
        with pytest.raises(ValueError, match="holds a run whose manifest.json is missing or damag"):
            fit(config, resumed)


def test_a_damaged_result_is_one_error_and_can_be_made_again(finished, tmp_path):
    folder, run, result = finished
    config, copy = tiny.train_config(folder, eval=WITH_BASELINES), tmp_path / "copy"
    shutil.copytree(run, copy)
    for content in ("", "{", "[]"):
        (copy / "result.json").write_text(content)
        with pytest.raises(
            ValueError, match="result.json is damaged, expected what `train --json`"
        ):
            fit(config, copy)
    (copy / "result.json").unlink()
    assert {**fit(config, copy), "checkpoint_bytes": 0} == {**result, "checkpoint_bytes": 0}


def test_a_finished_run_makes_the_scores_that_its_result_does_not_have(finished, tmp_path):
    folder, run, result = finished
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    fewer = dataclasses.replace(WITH_BASELINES, baselines=False)
    assert fit(tiny.train_config(folder, eval=fewer), copy) == result  # read back
    written = dataclasses.replace(WITH_BASELINES, hard_prompt="the cat")
    found = fit(tiny.train_config(folder, eval=written), copy)
    assert result["steps_done"] == found["steps_done"] == 12
    assert found["score"] == result["score"] and 0 <= found["hard_prompt_score"] <= 100
    assert "hard_prompt_score" not in result
    assert outcome(copy) == outcome(run)
    some = dataclasses.replace(written, max_rows=3)
    dev_score = fit(tiny.train_config(folder, eval=some), copy)["dev_score"]
    assert dev_score in [round(100 * right / 3, 4) for right in range(4)]


@pytest.mark.parametrize(
    "change, message",
    [
        ({"seed": 1}, r"holds a run of another config: seed \(0 there, 1 now\); give another"),
        ({"steps": 11}, r"another config: steps \(12 there, 11 now\)"),
        (
            {"prompt": PromptConfig(length=4), "dropout_rate": 0.0},
            r"config: dropout_rate \(0.1 there, 0.0 now\), prompt.length \(3 there, 4 now\)",
        ),
    ],
)
def test_another_config_is_refused_and_nothing_is_touched(finished, change, message):
    folder, run, _ = finished
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    with pytest.raises(ValueError, match=message):
        fit(tiny.train_config(folder, **change), run)
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


def test_another_backbone_or_other_data_is_refused(finished, tmp_path):
    folder, run, _ = finished
    for name, message in (("tiny", "another model"), ("rows.jsonl", "another data fingerprint")):
        other = tmp_path / name.split(".")[0]
        shutil.copytree(folder, other)
        resumed = other / "run"
        (resumed / "result.json").unlink()
        config = tiny.train_config(other)
        paths = to_dict(config) | {"task": to_dict(tiny.train_config(other).task)}
        (resumed / "config.yaml").write_text(yaml.safe_dump(paths, sort_keys=False))
        if name == "tiny":
            shutil.rmtree(other / "tiny")
            tiny.write_backbone(other / "tiny", seed=1)
        else:
            rows = (other / name).read_text().splitlines()
            (other / name).write_text("\n".join(rows[::-1]) + "\n")
        with pytest.raises(ValueError, match=f"holds a run with {message}"):
            fit(config, resumed)


def test_overwrite_starts_over(finished, tmp_path):
    folder, run, _ = finished
    other = tmp_path / "other"
    shutil.copytree(run, other)
    (other / "notes.txt").write_text("mine")
    result = fit(tiny.train_config(folder, seed=1), other, overwrite=True)
    assert result["seed"] == 1 and (other / "notes.txt").read_text() == "mine"
    assert [r["step"] for r in read_log(other / "log.jsonl") if "loss" in r] == list(range(1, 13))


@pytest.mark.parametrize("manifest", [None, "[]", '{"name": "app", "versions": []}', "not json"])
def test_overwrite_deletes_nothing_where_no_run_has_been(finished, tmp_path, manifest):
    folder, place = finished[0], tmp_path / "mine"
    for name in ("model", "events", "checkpoints"):
        (place / name).mkdir(parents=True)
        (place / name / "mine.bin").write_text("mine")
    (place / "config.yaml").write_text("mine: 1")
    if manifest is not None:
        (place / "manifest.json").write_text(manifest)
    before = {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}
    with pytest.raises(
        ValueError,
        match="holds config.yaml, checkpoints, model, events but no manifest.json of a run, so "
        "--overwrite deletes nothing there; give another --workdir, or remove these yourself",
    ):
        fit(tiny.train_config(folder), place, overwrite=True)
    kept = {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}
    assert {path: kept.get(path) for path in before} == before


def test_a_workdir_below_a_file_is_refused(finished, tmp_path):
    folder, _, _ = finished
    (tmp_path / "file").write_text("mine")
    with pytest.raises(NotADirectoryError, match="cannot be made: '.*/file' is a file; give anoth"):
        fit(tiny.train_config(folder), tmp_path / "file" / "run")
    assert (tmp_path / "file").read_text() == "mine"


def test_model_tuning_trains_every_leaf_and_writes_the_model(finished, tmp_path):
    folder, _, _ = finished
    # SGD, because Adafactor of every leaf is a large program; test_configs takes a step of it.
    optimizer = OptimizerConfig(name="sgd", learning_rate=1e-2)
    config = tiny.train_config(
        folder, tune="model", prompt=None, optimizer=optimizer, dropout_rate=0.0
    )
    result = fit(config, tmp_path / "run")
    assert result["frozen_params"] == 0 and result["frozen_unchanged"] is None
    assert result["trained_params"] == 16_624
    from spt_jax.evaluation.evaluate import evaluate_run

    assert evaluate_run(tmp_path / "run", "test")["score"] == result["score"]


def test_a_loss_that_is_not_finite_ends_the_run_and_keeps_the_checkpoint(finished, tmp_path):
    folder, _, _ = finished
    optimizer = OptimizerConfig(name="sgd", learning_rate=1e38)
    config = tiny.train_config(
        folder,
        optimizer=optimizer,
        log=LogConfig(every=1, checkpoint_every=1),
        dropout_rate=0.0,
    )
    with pytest.raises(
        RunError, match=r"is (nan|inf) at step \d+ \(.*\); lower optimizer.learning"
    ):
        fit(config, tmp_path / "run")
    with Checkpoints(tmp_path / "run" / "checkpoints") as checkpoints:
        assert all(step < 12 for step in checkpoints.steps())


def test_a_device_without_room_is_one_line_that_says_what_to_try(finished, tmp_path, monkeypatch):
    folder, _, _ = finished

    def too_large(*_, **__):
        raise jax.errors.JaxRuntimeError(
            "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 17179869184 bytes.\n"
            "BufferAssignment:\n  parameters 8 GiB"
        )

    monkeypatch.setattr("spt_jax.train.jit_step", lambda *_, **__: too_large)
    message = (
        "^a device is out of memory: Out of memory while trying to allocate 17179869184 bytes.*; "
        r"try --remat=full, a larger --optimizer.accumulate \(now 1\), .* \(now 1 and 1\)"
    )
    with pytest.raises(RunError, match=message):
        fit(tiny.train_config(folder), tmp_path / "run")


def test_patience_stops_a_run(finished, tmp_path):
    result = stopped_by_patience(finished[0], tmp_path / "run", patience=2)
    assert (result["best_step"], result["steps_done"]) == (2, 6)


KILLED = """
import pickle, sys
import jax
jax.config.update("jax_num_cpu_devices", 8)
from pathlib import Path
from spt_jax.train import fit
fit(pickle.loads(Path(sys.argv[1]).read_bytes()), Path(sys.argv[2]))
"""


@pytest.mark.parametrize("kills, steps", [(1, 12), pytest.param(3, 30, marks=pytest.mark.slow)])
def test_sigkill_at_any_moment_changes_nothing(tmp_path, kills, steps):
    # A checkpoint at every step, so that most kills hit a save; the seed is printed on failure.
    seed = int(time.time())
    draw = random.Random(seed)
    config = tiny.train_config(tmp_path, steps=steps, log=LogConfig(every=3, checkpoint_every=1))
    fit(dataclasses.replace(config, log=LogConfig(every=3)), tmp_path / "undisturbed")
    (tmp_path / "config").write_bytes(pickle.dumps(config))
    killed, checkpoints = tmp_path / "killed", tmp_path / "killed" / "checkpoints"

    def newest():
        names = [p.name for p in checkpoints.iterdir()] if checkpoints.is_dir() else []
        return max((int(name) for name in names if name.isdigit()), default=0)

    for _ in range(kills):
        before = newest()
        process = subprocess.Popen(
            [sys.executable, "-c", KILLED, str(tmp_path / "config"), str(killed)],
            env={**os.environ, "JAX_PLATFORMS": "cpu"},
        )
        while process.poll() is None and newest() < min(before + 2, steps - 2):
            time.sleep(0.005)
        time.sleep(draw.random() * 0.05)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert process.returncode == -signal.SIGKILL, f"finished too early (seed {seed})"
    fit(config, killed)
    assert outcome(killed) == outcome(tmp_path / "undisturbed"), f"seed {seed}"
