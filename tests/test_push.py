"""What is uploaded to the Hub, compared with a folder of golden files, and what can go wrong.

After a change of the card that is meant, copy the folder that the first test writes over
`tests/golden/push`.
"""

import json
import re
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file
from support import runs, tiny

from spt_jax.cli.main import main as cli
from spt_jax.config.fields import to_dict
from spt_jax.config.train import PromptConfig, TaskConfig, TrainConfig
from spt_jax.prompts.file import load_prompt, save_prompt
from spt_jax.prompts.push import push_prompt
from spt_jax.prompts.read import read_prompt

GOLDEN = Path(__file__).parent / "golden" / "push"
BASE = "google/t5-small-lm-adapt@refs/pr/2"
PROMPT = np.arange(48, dtype=np.float32).reshape(3, 16) / 64
WORDS = ["negative", "positive"]
RESULT = {
    "task": "reviews",
    "score": 91.25,
    "rank_score": 92.5,
    "metrics": {"accuracy": 91.25},
    "majority_score": 50.9,
    "unprompted_score": 0.0,
    "unprompted_rank_score": 55.0,
    "dev_score": 93.0,
    "best_step": 1200,
    "steps": 1500,
}


def write_run(folder, *, model=BASE, result=RESULT, **changes):
    """A finished run of a task of one's own."""
    task = TaskConfig(source="/home/me/rows.jsonl", template="{text}", label="label")
    config = TrainConfig(task=task, model=model, prompt=PromptConfig(length=3), steps=1500)
    folder.mkdir()
    (folder / "config.yaml").write_text(yaml.safe_dump({**to_dict(config), **changes}))
    manifest = {"identity": {}, "versions": {}, "data": {"label_words": WORDS}}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    metadata = {"model": model, "fingerprint": "f" * 64, "task": "reviews", "score": 91.25}
    save_prompt(folder / "prompt.safetensors", PROMPT, {**metadata, "template": "{text}"})
    (folder / "result.json").write_text(json.dumps(result))
    return folder


@pytest.fixture
def run(tmp_path, monkeypatch):
    """The folder of a run; the working directory is beside it."""
    monkeypatch.chdir(tmp_path)
    return write_run(tmp_path / "run")


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_dry_run_writes_the_golden_files(run, capsys):
    assert cli(["prompt", "push", str(run), "me/reviews-prompt", "--dry-run", "--json"]) == 0
    found = contents(Path("reviews-prompt"))
    assert json.loads(capsys.readouterr().out) == {
        "repo": "me/reviews-prompt",
        "private": False,
        "folder": "reviews-prompt",
        "bytes": {name: len(data) for name, data in found.items()},
    }
    assert found == contents(GOLDEN)
    assert cli(["prompt", "push", str(run), "me/reviews-prompt", "--dry-run"]) == 2
    assert "reviews-prompt exists; name a new place" in capsys.readouterr().err


def test_what_is_written_loads_and_names_no_place_of_this_machine(run):
    push_prompt(run, "me/reviews-prompt", dry_run=True)
    folder = Path("reviews-prompt")
    for place in (folder / "prompt.safetensors", folder):  # the file, and the adapter
        found = read_prompt(place)
        np.testing.assert_array_equal(found.prompt, PROMPT)
        assert found.metadata["model"] == BASE and found.metadata["template"] == "{text}"
    adapter = json.loads((folder / "adapter_config.json").read_text())
    assert (adapter["base_model_name_or_path"], adapter["revision"]) == tuple(BASE.split("@"))
    assert load_file(folder / "adapter_model.safetensors")["prompt_embeddings"].shape == (3, 16)
    assert b"/home/me" not in b"".join(contents(folder).values())
    _, front, _ = (folder / "README.md").read_text().split("---\n", 2)
    assert yaml.safe_load(front) == {
        "library_name": "peft",
        "base_model": "google/t5-small-lm-adapt",
        "tags": ["prompt-tuning", "soft-prompt", "t5", "spt_jax"],
    }


def test_the_card_of_a_model_that_is_not_on_the_hub_and_of_free_text(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    scores = {"rouge1": 30.0, "rouge2": 10.0, "rougeLsum": 20.0}
    result = {**RESULT, "rank_score": None, "metrics": scores, "hard_prompt_score": 12.0}
    run = write_run(tmp_path / "run", model="models/mine", result=result)
    (tmp_path / "models" / "mine").mkdir(parents=True)
    (run / "manifest.json").unlink()
    push_prompt(run, "me/p", dry_run=True)
    card = Path("p/README.md").read_text()
    assert "base_model" not in card and 'load_backbone("MODEL")' in card
    assert "`mine` is no model of the Hub: give it where the code has `MODEL`." in card
    assert "this prompt, rouge2 | 10.0" in card and "a written prompt | 12.0" in card
    assert "label word" not in card and "The answers are free text." in card
    adapter = json.loads(Path("p/adapter_config.json").read_text())
    assert adapter["base_model_name_or_path"] is None
    # Where the model lies on this machine is not published.
    assert load_prompt("p/prompt.safetensors")[1]["model"] == "mine"
    assert b"models/" not in Path("p/adapter_model.safetensors").read_bytes()


def test_the_code_of_the_card_runs(tmp_path, monkeypatch, capsys):
    config = tiny.train_config(tmp_path)
    run = runs.write_run(tmp_path / "run", config, runs.random_prompt(3, seed=0))
    (run / "result.json").write_text(json.dumps(RESULT))
    monkeypatch.chdir(tmp_path)
    push_prompt(run, "me/p", dry_run=True)
    [ours, _] = re.findall(r"```python\n(.*?)```", Path("p/README.md").read_text(), re.DOTALL)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda repo, name: f"p/{name}")
    exec(ours.replace("MODEL", config.model), {})
    assert capsys.readouterr().out.count("\n") == 1


class Api:
    """A stand-in for the Hub's client."""

    role = "write"
    error = None

    def __init__(self):
        Api.calls = []

    def whoami(self):
        if self.role is None:
            raise ConnectionError("401\nexpired")
        return {"auth": {"accessToken": {"role": self.role}}}

    def create_repo(self, repo, *, private, exist_ok):
        if self.error:
            raise self.error
        Api.calls.append(("create", repo, private, exist_ok))
        return f"https://huggingface.co/{repo}"

    def upload_folder(self, *, repo_id, folder_path, commit_message):
        Api.calls.append(("upload", repo_id, contents(folder_path), commit_message))


@pytest.fixture
def hub(monkeypatch):
    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "hf_x")
    monkeypatch.setattr(Api, "role", "write")
    monkeypatch.setattr(Api, "error", None)
    return Api


@pytest.mark.parametrize("private", [False, True])
def test_the_same_files_are_uploaded(run, hub, capsys, private):
    options = ["--private"] if private else []
    assert cli(["prompt", "push", str(run), "me/reviews-prompt", *options]) == 0
    assert hub.calls == [
        ("create", "me/reviews-prompt", private, True),
        ("upload", "me/reviews-prompt", contents(GOLDEN), "Upload a soft prompt of spt_jax"),
    ]
    assert "https://huggingface.co/me/reviews-prompt" in capsys.readouterr().out
    assert not Path("reviews-prompt").exists()


def test_a_dry_run_asks_nothing_of_the_hub(run, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "HfApi", None)
    monkeypatch.setattr(huggingface_hub, "get_token", None)
    assert push_prompt(run, "me/p", private=True, dry_run=True)["private"] is True


@pytest.mark.parametrize("repo", ["p", "a/b/c", "/p", "me/", "me/a b", "me/-p", ""])
def test_a_name_that_is_not_owner_and_name(run, hub, repo):
    message = f"^'{re.escape(repo)}' is no name of a repository, expected owner/name, such as my-"
    with pytest.raises(ValueError, match=message):
        push_prompt(run, repo, dry_run=True)


def test_what_is_no_finished_run_of_a_prompt(run, hub, tmp_path):
    with pytest.raises(FileNotFoundError, match="'no' is not the folder of a run: it has no conf"):
        push_prompt(Path("no"), "me/p")
    tuned = write_run(tmp_path / "tuned", tune="model")
    with pytest.raises(ValueError, match="tuned' tuned the model, so its prompt serves no other"):
        push_prompt(tuned, "me/p")
    (run / "result.json").unlink()
    message = "run' is not finished: it has no result.json; give its train command again, and then"
    with pytest.raises(ValueError, match=message):
        push_prompt(run, "me/p")


def test_a_token_that_may_not_write(run, hub, monkeypatch):
    how = "make one at https://huggingface.co/settings/tokens and run `hf auth login`$"
    monkeypatch.setattr(hub, "role", "read")
    with pytest.raises(ValueError, match=f"may only read, expected one that may write; {how}"):
        push_prompt(run, "me/p")
    monkeypatch.setattr(hub, "role", None)
    message = (
        rf"does not take the token \(ConnectionError: 401 expired\); check the network, or {how}"
    )
    with pytest.raises(ValueError, match=message):
        push_prompt(run, "me/p")
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    with pytest.raises(ValueError, match=f"^there is no token of the Hub, which an .*{how}"):
        push_prompt(run, "me/p")


def test_an_upload_that_fails(run, hub, monkeypatch):
    monkeypatch.setattr(hub, "error", PermissionError("403\nForbidden"))
    message = (
        r"^'me/p' cannot be written \(PermissionError: 403 Forbidden\); check the network, and "
        "that your token may write there$"
    )
    with pytest.raises(ValueError, match=message):
        push_prompt(run, "me/p")
