"""The README's Python runs as it stands, and its commands name what exists."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support import pages, tiny

from spt_jax.cli.main import COMMANDS, main

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PYTHON = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.mark.slow
def test_the_python_examples_train_serve_and_load_the_prompt(tmp_path, monkeypatch):
    tiny.write_rows(tmp_path / "rows.jsonl")
    tiny.write_backbone(tmp_path / "backbones" / "spt-nano")  # which takes seconds, not a minute
    monkeypatch.setattr("spt_jax.models.open.BUNDLED", tmp_path / "backbones")
    monkeypatch.chdir(tmp_path)
    train, load, serve = PYTHON
    exec(train + serve, {})
    exec(load.replace("/absolute/path", str(tmp_path)), namespace := {})
    assert namespace["prompt"].shape == (20, 16)
    assert str(namespace["prompt"].dtype) == "float32"


@pytest.mark.slow
def test_the_python_examples_as_they_stand_and_orbax_alone_loads_the_prompt(tmp_path):
    tiny.write_rows(tmp_path / "rows.jsonl")
    train, load, serve = PYTHON
    subprocess.run([sys.executable, "-c", train + serve], check=True, cwd=tmp_path)
    # The path of the README stands for the folder that the first example wrote.
    load = load.replace("/absolute/path", str(tmp_path))
    load += (
        "import sys, numpy\nassert isinstance(prompt, numpy.ndarray) or hasattr(prompt, 'shape')\n"
        "assert prompt.shape == (20, 256) and str(prompt.dtype) == 'float32'\n"
        "assert not [name for name in sys.modules if name.startswith('spt_jax')]\n"
    )
    subprocess.run([sys.executable, "-c", load], check=True, cwd=tmp_path)


def runs_here(command: list[str]) -> bool:
    """Whether a command needs no network, no extra, no second process and no other model.

    Of the others, `serve`, `plan`, `pretrain`, `prompt` and `--distributed` have their own tests.
    """
    name, *rest = command
    elsewhere = ("models/", "configs/paper/", "--distributed.")
    asks_of_others = any(option.startswith(elsewhere) or option == "--task" for option in rest)
    own = ("train", "sweep", "report", "evaluate", "predict", "nearest", "interpret", "inspect")
    return name in own and not asks_of_others


@pytest.mark.slow
@pytest.mark.filterwarnings(r"ignore:prompt length \d holds \d of the 8 label words:UserWarning")
def test_the_commands_run_one_after_another(tmp_path, monkeypatch, capsys):
    """With a tiny model in place of spt-nano, and two steps in place of all."""
    words = "numpy scipy jax python transformers datasets orbax hub"  # the labels of the quickstart
    tiny.write_backbone(tmp_path / "backbones" / "spt-nano", words=words)
    monkeypatch.setattr("spt_jax.models.open.BUNDLED", tmp_path / "backbones")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    rows = [{"prompt": "sst2", "text": text, "label": label} for text, label in tiny.sentences()]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    few = ["--steps=2", "--eval.every=2", "--eval.max_rows=8", "--data.batch_size=4"]
    few += ["--data.targets_length=16"]  # the tiny tokenizer cuts label words into letters
    task = ["--task.source=rows.jsonl", "--task.template={text}", "--task.label=label"]
    assert main(["train", "--task.name=sst2", *task, *few, "--prompt.length=2"]) == 0
    commands = [words[1:] for words in pages.commands("README.md") if words[0] == "spt-jax"]
    chosen = [command for command in commands if runs_here(command)]
    assert len(chosen) == 13
    for command in chosen:
        name = command[0]
        assert main([*command, *(few if name in ("train", "sweep") else [])]) == 0, command
        assert capsys.readouterr().out, command
    assert len(Path("out.jsonl").read_text().splitlines()) == len(rows)
    assert Path("runs/quickstart/prompt.safetensors").is_file()
    assert Path("runs/lengths/report.md").is_file()


@pytest.mark.parametrize("command", sorted(set(re.findall(r"^spt-jax (\w+)", README, re.M))))
def test_commands_exist(command):
    assert command in COMMANDS


@pytest.mark.parametrize("config", sorted(set(re.findall(r"configs/(\w+)\.yaml", README))))
def test_configs_exist(config):
    assert (ROOT / "configs" / f"{config}.yaml").is_file()


def test_the_first_screen_has_the_figure_the_commands_and_the_table():
    first_screen = "\n".join(README.splitlines()[:36])
    for needed in ("prompt_tuning.svg)", "\nspt-jax train ", "&& pytest\n", "| **soft prompt**"):
        assert needed in first_screen


def test_the_tree_has_every_module_and_imports_go_down_only():
    tree = README.split("spt_jax/\n", 1)[1].split("configs/", 1)[0]
    rows = [re.split(r"  +", line.strip())[0].split() for line in tree.splitlines() if line]
    row_of = {name.rstrip("/"): number for number, row in enumerate(rows) for name in row}
    package = ROOT / "spt_jax"
    files = [
        path for path in package.rglob("*.py") if path.parent != package or path.stem[0] != "_"
    ]
    homes = {path: path.relative_to(package).with_suffix("").parts[0] for path in files}
    assert set(row_of) == set(homes.values())
    for path, home in homes.items():
        for imported in re.findall(r"^ *from spt_jax\.(\w+)", path.read_text(), re.M):
            assert row_of[home] <= row_of[imported], f"{path} imports {imported}, which is above it"
