"""A run may come from a stranger: what its config names is fetched if the user names it too."""

import dataclasses
import re
import shutil

import huggingface_hub
import numpy as np
import pytest
from support import checkpoints, tiny
from support.gcs import bucket_for
from support.runs import random_prompt, write_run

from spt_jax.cli import main as cli
from spt_jax.evaluation.ensemble import evaluate_ensemble
from spt_jax.evaluation.evaluate import evaluate_run, evaluate_runs
from spt_jax.models.backbone import load_backbone
from spt_jax.prediction.run import predict_run
from spt_jax.prompts.load import ROWS, load_run, load_runs
from spt_jax.prompts.words import nearest_words, show_prompt

MODEL, ROWS_FILE = "gs://bucket/stranger/t5x", "gs://bucket/stranger/rows.jsonl"


@pytest.fixture
def bucket(monkeypatch):
    """A server that has nothing, and notes what is asked."""
    with bucket_for(monkeypatch) as server:
        yield server


@pytest.fixture
def write(tmp_path):
    """Writes a run on the tiny backbone, and then lets its config name another model or source."""
    config = tiny.train_config(tmp_path)

    def write(name="run", model=None, **task):
        run = write_run(tmp_path / name, config, random_prompt(3, 0))
        path = run / "config.yaml"
        text = path.read_text()
        if model is not None:
            text = text.replace(f"model: {config.model}", f"model: {model}")
        for field, value in task.items():
            text = re.sub(f"(?m)^  {field}: .*$", f"  {field}: {value}", text)
        path.write_text(text)
        return run

    return write


def refusal(*names):
    flags = " ".join(f"--fetch={name}" for name in names)
    return re.escape(
        f"names {' and '.join(map(repr, names))}, which is not on this machine; a run may come "
        f"from a stranger, so nothing is fetched unless you name it too: {flags}"
    )


def test_a_model_at_an_address_is_not_fetched(write, bucket):
    run, other = write(model=MODEL), write("other", model=MODEL)
    for use in (
        lambda: evaluate_run(run),
        lambda: evaluate_run(run, task="glue/sst2", origin="here"),
        lambda: evaluate_runs([run, other], "test"),
        lambda: evaluate_ensemble([run, other], "test"),
        lambda: predict_run(run, ["a text"]),
        lambda: predict_run(run, ["a text"], fetch=[MODEL + "/"]),
        lambda: nearest_words(run, 1),
    ):
        with pytest.raises(ValueError, match=refusal(MODEL)):
            use()
    assert bucket.requests == []


def test_rows_at_an_address_are_not_fetched(write, bucket):
    run = write(source=ROWS_FILE)
    for use in (lambda: evaluate_run(run), lambda: evaluate_runs([run], "test")):
        with pytest.raises(ValueError, match=refusal(ROWS_FILE)):
            use()
    both = write("both", model=MODEL, test_source=ROWS_FILE)
    with pytest.raises(ValueError, match=refusal(MODEL, ROWS_FILE)):
        evaluate_run(both)
    assert bucket.requests == []
    load_run(run)  # predict does not read the rows


def test_the_origin_of_a_task_is_not_fetched(write, bucket):
    run = write(origin="gs://bucket/stranger/glue")
    for use in (lambda: evaluate_run(run), lambda: evaluate_run(run, task="glue/sst2")):
        with pytest.raises(ValueError, match=refusal("gs://bucket/stranger/glue")):
            use()
    assert bucket.requests == []


def test_what_is_named_is_fetched(write, bucket, capsys):
    run = write(model=MODEL)
    with pytest.raises(FileNotFoundError, match="t5x/.* does not exist|holds no tokenizer"):
        load_run(run, fetch=[MODEL])
    assert any("bucket/stranger/t5x/" in request for request in bucket.requests)
    bucket.requests.clear()
    for command in (["evaluate"], ["predict", "--text=a"], ["nearest"]):
        line = [*command, str(run)]
        assert cli.main(line) == 2
        assert f"unless you name it too: --fetch={MODEL}" in capsys.readouterr().err
        assert bucket.requests == []
        assert cli.main([*line, f"--fetch={MODEL}"]) == 2
        assert "tokenizer" in capsys.readouterr().err
        assert bucket.requests
        bucket.requests.clear()
    with pytest.raises(FileNotFoundError, match="rows.jsonl"):
        evaluate_run(write("rows", source=ROWS_FILE), fetch=[ROWS_FILE])
    assert any("bucket/stranger/rows.jsonl" in request for request in bucket.requests)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """The Hub's cache with the model owner/cached, whole, and owner/half, without weights.

    Returns the calls that may use the network.
    """
    cache, calls = tmp_path / "hub", []
    for name in ("cached", "half"):
        snapshot = cache / f"models--owner--{name}" / "snapshots" / ("0" * 40)
        checkpoints.write_hf(snapshot)
        refs = snapshot.parents[1] / "refs"
        refs.mkdir()
        (refs / "main").write_text("0" * 40)
    (snapshot / "model.safetensors").unlink()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    download = huggingface_hub.snapshot_download

    def note(repository, *, local_files_only=False, **options):
        if not local_files_only:
            calls.append(repository)
        return download(repository, local_files_only=local_files_only, **options)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", note)
    monkeypatch.chdir(tmp_path)
    return calls


def of_hub(run, folder, model):
    """Let a run be of a model of the Hub, which is stored in a folder too."""
    prompt = np.ones((3, checkpoints.SHAPE.d_model), np.float32)
    config = tiny.train_config(folder, model=str(checkpoints.write_hf(folder / "same")))
    write_run(run, config, prompt)
    path = run / "config.yaml"
    path.write_text(path.read_text().replace(f"model: {config.model}", f"model: {model}"))
    return run


def test_a_model_in_the_hubs_cache_is_used_without_asking_the_hub(hub, tmp_path):
    run = of_hub(tmp_path / "run", tmp_path, "owner/cached")
    assert load_run(run).backbone.name == "owner/cached"
    assert load_runs([run], rows=ROWS).backbone.name == "owner/cached"
    assert len(nearest_words(run, 1)) == 3
    assert "rows" in show_prompt(run, k=1) and hub == []
    load_run(run, fetch=["owner/cached"])
    assert hub == ["owner/cached"]


@pytest.mark.parametrize("model", ["owner/half", "owner/absent", "models/t5-xl"])
def test_a_model_that_the_hubs_cache_lacks_is_not_fetched(hub, tmp_path, model):
    run = of_hub(tmp_path / "run", tmp_path, model)
    with pytest.raises(ValueError, match=refusal(model)):
        load_run(run)
    assert hub == []
    with pytest.raises((ValueError, FileNotFoundError), match=f"{model}|no weights in .*half"):
        load_run(run, fetch=[model])
    assert hub


@pytest.mark.parametrize("model", ["owner/absent", MODEL])
def test_offline_refuses_what_the_network_has_to_give(hub, bucket, model):
    with pytest.raises(ValueError, match=f"'{model}' is not on this machine, and nothing may"):
        load_backbone(model, offline=True)
    assert hub == [] and bucket.requests == []


def test_a_tuned_run_needs_nothing_of_the_model_that_it_was_tuned_from(write, tmp_path):
    run = write(model=MODEL)
    shutil.copytree(tmp_path / "tiny", run / "model")
    path = run / "config.yaml"
    path.write_text(path.read_text().replace("tune: prompt", "tune: model"))
    assert load_run(run).config == dataclasses.replace(load_run(run).config, model=MODEL)


def test_fetch_belongs_to_a_run(capsys):
    assert cli.main(["predict", "--model=spt-nano", "--fetch=owner/model"]) == 2
    assert "--fetch is about the config of a run, but --model names" in capsys.readouterr().err
