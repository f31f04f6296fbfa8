"""Runs in a bucket: the same as in a folder, whenever they are killed; a line for each refusal."""

import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from support import tiny
from support.gcs import NAMES_LEADING_OUT, bucket_for

from spt_jax.cli import main as cli
from spt_jax.config.fields import to_dict
from spt_jax.config.train import LogConfig
from spt_jax.errors import RunError
from spt_jax.evaluation.evaluate import evaluate_run
from spt_jax.models.backbone import load_backbone
from spt_jax.prediction.run import predict_run
from spt_jax.prompts.bank import load_bank
from spt_jax.prompts.file import load_prompt
from spt_jax.prompts.init import from_file
from spt_jax.prompts.read import read_prompt
from spt_jax.runs.mirror import INDEX, Mirror
from spt_jax.runs.workdir import find_address, open_run, open_workdir
from spt_jax.train import fit

ADDRESS = "gs://bucket/runs/mine"
KEY = "bucket/runs/mine"


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    """A server with the bucket `bucket`, which TensorStore finds here and in what is started."""
    monkeypatch.setenv("SPT_JAX_CACHE", str(tmp_path / "cache"))
    with bucket_for(monkeypatch) as server:
        yield server


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of 12 steps in a folder of this machine: (its config, its folder)."""
    folder = tmp_path_factory.mktemp("finished")
    config = tiny.train_config(folder, log=LogConfig(every=3, checkpoint_every=3, keep=2))
    fit(config, folder / "run")
    return config, folder / "run"


def prompt_of(path: Path) -> tuple[bytes, dict]:
    prompt, metadata = load_prompt(path)
    return prompt.tobytes(), metadata


def require_same_run(bucket, local: Path) -> None:
    """The bucket has what the folder has: the log to the byte, the prompt, the same checkpoints."""
    names = {key.removeprefix(f"{KEY}/") for key in bucket.objects}
    for name in ("log.jsonl", "config.yaml"):
        assert bucket.objects[f"{KEY}/{name}"] == (local / name).read_bytes(), name
    with open_run(Path(ADDRESS)) as copy:
        assert prompt_of(copy / "prompt.safetensors") == prompt_of(local / "prompt.safetensors")
    steps = {name.split("/")[1] for name in names if name.startswith("checkpoints/")}
    assert steps == {path.name for path in (local / "checkpoints").iterdir() if path.is_dir()}
    assert names == {*index(bucket.objects), INDEX}


def index(objects) -> list[str]:
    return json.loads(objects[f"{KEY}/{INDEX}"])["files"]


def opened(folder: Path) -> Mirror:
    """A copy of the address, which is then this one's."""
    mirror = Mirror(ADDRESS, folder)
    mirror.pull(())
    mirror.claim(())
    return mirror


def remember(bucket) -> list[dict]:
    """The objects before each change from now on, as a kill would leave them."""
    moments = []

    def look(request):
        if not request.startswith("GET"):
            moments.append(dict(bucket.objects))

    bucket.refuse = look
    return moments


def test_a_run_killed_between_any_two_writes_goes_on_to_the_same_prompt(bucket, finished):
    config, local = finished
    moments = remember(bucket)
    result = fit(config, Path(ADDRESS))
    require_same_run(bucket, local)
    assert result["score"] == json.loads((local / "result.json").read_text())["score"]
    bucket.refuse = lambda request: None
    for objects in moments[1:]:
        assert objects.keys() >= {f"{KEY}/{name}" for name in index(objects)}
    for share in (0.4, 0.8):
        bucket.objects = dict(moments[int(share * len(moments))])
        fit(config, Path(ADDRESS))
        require_same_run(bucket, local)


@pytest.mark.slow
def test_a_process_killed_while_it_writes_goes_on_by_the_same_command(bucket, finished, tmp_path):
    config, local = finished
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(to_dict(config)))
    command = ["train", f"--config={tmp_path}/mine.yaml", f"--workdir={ADDRESS}"]
    process = subprocess.Popen(
        [sys.executable, "-m", "spt_jax", *command, "--distributed.detect=false"],
        env={**os.environ, "JAX_NUM_CPU_DEVICES": "8"},
        stderr=subprocess.DEVNULL,
    )

    def kill(request):
        if request.startswith(f"POST {KEY}/checkpoints/8/state/"):
            process.send_signal(signal.SIGKILL)

    bucket.refuse = kill
    assert process.wait(300) == -signal.SIGKILL
    bucket.refuse = lambda request: None
    steps = {name.split("/")[1] for name in index(bucket.objects) if name.startswith("check")}
    assert steps == {"4", "6"}
    assert cli.main(command) == 0
    require_same_run(bucket, local)


def test_overwriting_never_mixes_two_runs(bucket, finished):
    config, local = finished
    with open_workdir(Path(ADDRESS)) as folder:
        shutil.copytree(local, folder.path, dirs_exist_ok=True)
    before = dict(bucket.objects)
    moments = remember(bucket)
    fit(dataclasses.replace(config, seed=1), Path(ADDRESS), overwrite=True)
    for objects in moments:
        named = [f"{KEY}/{name}" for name in index(objects)]
        old = [key for key in named if "/checkpoints/" in key and objects[key] is before.get(key)]
        assert not old or objects[f"{KEY}/config.yaml"] is before[f"{KEY}/config.yaml"]
    assert moments and not [key for key in bucket.objects if bucket.objects[key] is before.get(key)]


def test_a_run_in_a_bucket_is_read_like_one_here(bucket, finished):
    config, local = finished
    # As `gcloud storage cp` leaves it: without an index, with other things beside.
    for path in local.rglob("*"):
        if path.is_file():
            bucket.put(f"{KEY}/{path.relative_to(local).as_posix()}", path.read_bytes())
    bucket.put(f"{KEY}/other/config.yaml", b"of another run")
    assert evaluate_run(Path(ADDRESS), "dev") == evaluate_run(local, "dev")
    assert [bucket.requests.count(f"GET {KEY}/{name}") for name in ("config.yaml", INDEX)] == [1, 1]
    texts = ["the cat likes the garden", "the oak meets the yard"]
    assert predict_run(Path(ADDRESS), texts) == predict_run(local, texts)
    backbone = load_backbone(config.model)
    bank = load_bank(backbone, {"a": ADDRESS, "b": f"{ADDRESS}/prompt.safetensors"})
    prompt, _ = load_prompt(local / "prompt.safetensors")
    for vectors in (*bank.arrays.vectors[1:], from_file(ADDRESS, 3, backbone)):
        np.testing.assert_array_equal(vectors, prompt)
    asked = {request for request in bucket.requests if "checkpoints" in request}
    assert not asked and not [r for r in bucket.requests if "other" in r or "POST" in r]
    # And it goes on there, once it is trained further.
    grown = dataclasses.replace(config, steps=14)
    assert fit(grown, Path(ADDRESS))["steps"] == 14
    assert bucket.objects[f"{KEY}/other/config.yaml"] == b"of another run"
    assert bucket.objects[f"{KEY}/log.jsonl"].startswith((local / "log.jsonl").read_bytes())


def test_the_copy_is_gone_afterwards_and_holds_no_old_files(bucket, tmp_path):
    with open_workdir(Path(ADDRESS)) as folder:
        (folder.path / "log.jsonl").write_text("1")
        stale = folder.path / "left"
    assert not folder.path.exists()
    stale.mkdir(parents=True)
    with open_workdir(Path(ADDRESS)) as folder:
        assert [path.name for path in folder.path.iterdir()] == ["log.jsonl"]


def test_what_a_push_that_was_cut_short_has_left_is_deleted(bucket):
    bucket.put(f"{KEY}/{INDEX}", b'{"session": "x", "files": []}')
    bucket.put(f"{KEY}/checkpoints/3/state/d/x", b"half")
    bucket.put(f"{KEY}/notes.txt", b"mine")
    with open_workdir(Path(ADDRESS)) as folder:
        assert not list(folder.path.iterdir())
    assert bucket.objects.keys() == {f"{KEY}/{INDEX}", f"{KEY}/notes.txt"}


@pytest.mark.parametrize("name", NAMES_LEADING_OUT, ids=ascii)
def test_a_name_that_leads_out_of_the_folder_ends_the_reading_before_any_download(
    name, bucket, tmp_path, monkeypatch
):
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    bucket.put(f"{KEY}/config.yaml", b"steps: 1")
    bucket.put(f"{KEY}/{INDEX}", json.dumps({"files": ["config.yaml", name]}).encode())
    before = {path for path in tmp_path.rglob("*") if path.is_file()}
    for reading in (
        lambda: open_run(Path(ADDRESS), model=True),
        lambda: open_workdir(Path(ADDRESS)),
    ):
        bucket.requests.clear()
        with pytest.raises(ValueError, match=f"^{ADDRESS} is not the address of a run: the name "):
            with reading():
                pass
        assert not [r for r in bucket.requests if "config.yaml" in r or "evil" in r]
        assert {path for path in tmp_path.rglob("*") if path.name == "evil"} == set()
    left = {path for path in tmp_path.rglob("*") if path.is_file() and path.name != ".lock"}
    assert left == before


def test_failures_on_the_way_are_repeated_by_tensorstore(bucket):
    failures = iter([503, 429])
    bucket.refuse = lambda request: next(failures, None) if "POST" in request else None
    with open_workdir(Path(ADDRESS)):
        pass
    assert [request for request in bucket.requests if "POST" in request] == [
        f"POST {KEY}/{INDEX}"
    ] * 3


def test_the_process_that_was_started_last_has_the_folder(bucket, tmp_path):
    first, second = opened(tmp_path / "first"), opened(tmp_path / "second")
    (tmp_path / "first" / "log.jsonl").write_text("1")
    with pytest.raises(RunError, match=f"another process is writing to {ADDRESS}; this one ends"):
        first.push()
    second.push()
    assert bucket.objects.keys() == {f"{KEY}/{INDEX}"}


def test_a_process_that_is_opened_while_another_writes_has_the_folder_or_none(bucket, tmp_path):
    first = opened(tmp_path / "first")
    second = Mirror(ADDRESS, tmp_path / "second")
    second.pull(())
    (tmp_path / "first" / "log.jsonl").write_text("1")
    first.push()
    with pytest.raises(RunError, match="another process is writing to"):  # it lacks the log
        second.claim(())
    third = Mirror(ADDRESS, tmp_path / "third")
    third.pull(())
    (tmp_path / "first" / "result.json").write_text("2")

    def meanwhile(request):
        if request == f"POST {KEY}/result.json":
            bucket.refuse = lambda request: None
            third.claim(())

    bucket.refuse = meanwhile
    with pytest.raises(RunError, match="another process is writing to"):
        first.push()
    assert index(bucket.objects) == ["log.jsonl"]
    third.push()


def test_a_write_whose_answer_is_lost_is_not_taken_for_that_of_another(bucket, tmp_path):
    lost = iter([503])
    bucket.lose = lambda request: next(lost, None)
    with open_workdir(Path(ADDRESS)) as folder:
        (folder.path / "log.jsonl").write_text("1")
    assert index(bucket.objects) == ["log.jsonl"]


def test_two_processes_of_one_machine_do_not_share_a_copy(bucket):
    with open_workdir(Path(ADDRESS)), pytest.raises(RunError, match=f"process is using {ADDRESS};"):
        with open_workdir(Path(ADDRESS)):
            pass


REFUSED = (
    r"^no permission on the bucket 'bucket': {} was refused \({}\); allow it to the account of "
    r".*: gcloud storage buckets add-iam-policy-binding gs://bucket "
    r"--member=serviceAccount:ACCOUNT --role=roles/storage.objectAdmin$"
)


@pytest.mark.parametrize(
    ("refused", "what", "reason"),
    [
        (f"POST {KEY}/{INDEX}", f"writing {ADDRESS}/{INDEX}", ".*does not have access.*"),
        (f"GET {KEY}/{INDEX}", f"reading {ADDRESS}/{INDEX}", ".*does not have access.*"),
        ("GET bucket/", f"listing {ADDRESS}/", "it lacks what was just written there"),
    ],
)
def test_no_permission_is_one_line_before_anything_is_computed(
    bucket, finished, refused, what, reason, monkeypatch
):
    config, _ = finished
    monkeypatch.setattr("spt_jax.run.load_backbone", None)
    bucket.refuse = lambda request: 403 if request == refused else None
    with pytest.raises(PermissionError, match=REFUSED.format(re.escape(what), reason)):
        fit(config, Path(ADDRESS))


def test_the_account_of_a_file_is_named(bucket, monkeypatch):
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", "/keys/a.json")
    bucket.refuse = lambda request: 401
    with (
        pytest.raises(PermissionError, match="the account of /keys/a.json"),
        open_run(Path(ADDRESS)),
    ):
        pass


def test_a_refused_listing_deletes_nothing_now_or_at_the_next_start(bucket):
    bucket.put(f"{KEY}/checkpoints/3/state/d/x", b"from a copy by hand, without an index")
    bucket.refuse = lambda request: 403 if request == "GET bucket/" else None
    with pytest.raises(PermissionError, match="listing"), open_workdir(Path(ADDRESS)):
        pass
    bucket.refuse = lambda request: None
    with open_workdir(Path(ADDRESS)) as folder:
        assert (folder.path / "checkpoints/3/state/d/x").exists()
    assert f"{KEY}/checkpoints/3/state/d/x" in bucket.objects


def test_what_cannot_be_written_at_the_end_is_kept_here(bucket, tmp_path, caplog):
    with pytest.raises(RunError, match="no permission"), open_workdir(Path(ADDRESS)) as folder:
        (folder.path / "prompt.safetensors").write_text("hours of work")
        bucket.refuse = lambda request: 403 if "POST" in request else None
    [kept] = (tmp_path / "cache/runs/kept").iterdir()
    assert (kept / "prompt.safetensors").read_text() == "hours of work"
    assert f"what the bucket lacks of this run is in {kept}" in caplog.text
    bucket.refuse = lambda request: None
    with open_workdir(Path(ADDRESS)):
        assert (kept / "prompt.safetensors").exists()


def test_a_permission_that_is_lost_ends_the_run_and_leaves_what_was_saved(bucket):
    with pytest.raises(
        RunError, match="no permission .*; what was saved there before is untouched"
    ):
        with open_workdir(Path(ADDRESS)) as folder:
            (folder.path / "log.jsonl").write_text("1")
            folder.publish()
            (folder.path / "log.jsonl").write_text("12")
            bucket.refuse = lambda request: 403 if "POST" in request else None
            folder.publish()
    assert bucket.objects[f"{KEY}/log.jsonl"] == b"1"


@pytest.mark.parametrize(
    ("place", "error", "message"),
    [
        ("gs://nowhere/run", FileNotFoundError, "^bucket 'nowhere' does not exist, writing gs://.*"
         r"make it: gcloud storage buckets create gs://nowhere$"),
        ("gs://bucket", ValueError, "'gs://bucket' is no place of a run, expected a folder of th"),
        ("s3://bucket/run", ValueError, "^'s3://bucket/run' is no place of a run, expected .*or"),
        ("gs://No_Good!/run", ValueError, "^gs://No_Good!/run is no address of a bucket: .*Inval"),
    ],
)  # fmt: skip
def test_what_is_no_bucket_is_one_line(bucket, place, error, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=message), open_workdir(Path(place)):
        pass
    assert [path.name for path in tmp_path.iterdir()] in ([], ["cache"])


def test_errors_name_the_address_and_not_the_copy(bucket):
    with pytest.raises(FileNotFoundError, match=f"^'{ADDRESS}' is not the folder of a run: it has"):
        evaluate_run(Path(ADDRESS))
    with pytest.raises(FileNotFoundError, match=f"^prompt file {ADDRESS}.safetensors does not exi"):
        read_prompt(Path(f"{ADDRESS}.safetensors"))


def test_a_folder_of_this_machine_is_used_as_it_is(tmp_path):
    assert find_address(tmp_path / "gs" / "run") is None
    with open_workdir(tmp_path / "run") as folder, open_run(tmp_path / "run") as place:
        assert folder.path == place == tmp_path / "run"
    assert not (tmp_path / "run").exists()
