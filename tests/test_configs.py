"""Every config builds, opens with its command, and takes a step on the tiny backbone."""

import dataclasses
from pathlib import Path

import pytest
import tiny
import yaml

from spt_jax.config import EvalConfig, TrainConfig, from_dict, to_dict
from spt_jax.pretrain_config import PretrainConfig
from spt_jax.train import fit

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.yaml"))


def read(path):
    kind = PretrainConfig if path.stem.startswith("pretrain") else TrainConfig
    return from_dict(kind, yaml.safe_load(path.read_text()))


def test_there_are_configs():
    assert {"quickstart", "quickstart_model_tuning", "pretrain_nano"} <= {c.stem for c in CONFIGS}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_config_opens_with_what_it_does_and_its_command(path):
    comment = [line for line in path.read_text().splitlines() if line.startswith("#")]
    command = "pretrain" if path.stem.startswith("pretrain") else "train"
    assert len(comment) >= 3
    assert any(f"spt-jax {command} --config configs/{path.name}" in line for line in comment)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_config_survives_its_own_dict(path):
    config = read(path)
    assert from_dict(type(config), yaml.safe_load(yaml.safe_dump(to_dict(config)))) == config


@pytest.mark.parametrize(
    "path", [c for c in CONFIGS if not c.stem.startswith("pretrain")], ids=lambda path: path.stem
)
def test_a_config_takes_a_step_on_a_tiny_backbone(path, tmp_path):
    small = tiny.train_config(tmp_path)
    config = dataclasses.replace(
        read(path), model=small.model, task=small.task, steps=1, eval=EvalConfig(batch_size=8)
    )
    assert fit(config, tmp_path / "run")["steps_done"] == 1


def test_an_unknown_field_of_a_saved_config_is_named():
    with pytest.raises(ValueError, match="PromptConfig has no field 'lenght'; it has length, init"):
        from_dict(TrainConfig, {"task": {"name": "library"}, "prompt": {"lenght": 3}})
