"""What c5df28d wrote is read, evaluated and gone on with by the code of today.

The files are those of tests/golden/c5df28d.tar.xz, which tests/golden/make_old_run.py made.
"""

import json
import os
import shutil
import tarfile
from contextlib import chdir
from pathlib import Path

import jax
import numpy as np
import pytest
import yaml

from spt_jax.cli.main import COMMANDS, main
from spt_jax.config.fields import from_dict, to_dict
from spt_jax.config.pretrain import PretrainConfig
from spt_jax.config.train import TrainConfig
from spt_jax.evaluation.evaluate import evaluate_run
from spt_jax.models.backbone import load_backbone
from spt_jax.pretraining.pretrain import pretrain
from spt_jax.prompts.file import load_prompt
from spt_jax.runs.log import read_log
from spt_jax.train import fit

ARCHIVE = Path(__file__).parent / "golden" / "c5df28d.tar.xz"
CLOSE = {"rel": 1e-4, "abs": 1e-6}
"""Other processors and other orders of a sum change the last digits; nothing else may change."""


@pytest.fixture(scope="module")
def golden(tmp_path_factory):
    """The unpacked archive."""
    folder = tmp_path_factory.mktemp("golden")
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder, filter="data")
    return folder


@pytest.fixture
def old(golden, tmp_path):
    """A copy of the unpacked archive as the working folder, which the paths in its configs need."""
    shutil.copytree(golden, tmp_path / "old")
    with chdir(tmp_path / "old"):
        yield tmp_path / "old"


def kill(run: Path, kept: int) -> None:
    """Make a finished run one that was killed in step `kept` + 2, with half a line in its log."""
    for name in ("result.json", "prompt.safetensors"):
        (run / name).unlink(missing_ok=True)
    shutil.rmtree(run / "model", ignore_errors=True)
    lines = (run / "log.jsonl").read_bytes().splitlines(keepends=True)
    kept_lines = [line for line in lines if json.loads(line)["step"] <= kept + 1]
    assert len(kept_lines) < len(lines)
    (run / "log.jsonl").write_bytes(b"".join(kept_lines) + b'{"step": 11, "lo')


def assert_same_log(resumed: Path, undisturbed: Path, kept: int) -> None:
    """Assert that lines up to step `kept` are equal, and the later ones up to rounding."""
    expected, found = read_log(undisturbed), read_log(resumed)
    assert [record["step"] for record in found] == [record["step"] for record in expected]
    for new, old in zip(found, expected):
        if old["step"] <= kept:
            assert new == old
        for name, value in old.items():
            exact = isinstance(value, str | int | dict)
            assert new[name] == (value if exact else pytest.approx(value, **CLOSE)), (old, name)


def read_config(run: str, kind: type):
    return from_dict(kind, yaml.safe_load(Path(run, "config.yaml").read_text()))


@pytest.mark.parametrize("run", ["adafactor", pytest.param("adamw", marks=pytest.mark.slow)])
def test_a_killed_run_goes_on_to_the_same_end(old, golden, run):
    config = read_config(run, TrainConfig)
    kill(Path(run), kept=9)
    result = fit(config, Path(run))
    expected = json.loads((golden / run / "result.json").read_text())
    for name in ("score", "rank_score", "unprompted_score", "unprompted_rank_score", "dev_score"):
        assert result[name] == expected[name], name
    for name in ("best_step", "steps_done", "trained_params", "frozen_unchanged", "model"):
        assert result[name] == expected[name], name
    assert_same_log(Path(run, "log.jsonl"), golden / run / "log.jsonl", kept=9)
    prompt, metadata = load_prompt(Path(run, "prompt.safetensors"))
    old_prompt, old_metadata = load_prompt(golden / run / "prompt.safetensors")
    np.testing.assert_allclose(prompt, old_prompt, rtol=CLOSE["rel"], atol=CLOSE["abs"])
    # c5df28d kept neither.
    assert metadata == {**old_metadata, "template": "{text}", "param_dtype": "float32"}


@pytest.mark.parametrize(("run", "score"), [("adafactor", 900 / 11), ("adamw", 800 / 11)])
def test_a_finished_run_is_evaluated_and_not_trained(old, run, score):
    expected = json.loads(Path(run, "result.json").read_text())
    assert fit(read_config(run, TrainConfig), Path(run)) == expected
    found = evaluate_run(Path(run))
    assert found["score"] == expected["score"] == pytest.approx(score)
    for name in ("rank_score", "invalid", "metrics"):
        assert found[name] == expected[name], name


def test_a_prompt_file_is_read_and_belongs_to_its_model(old):
    prompt, metadata = load_prompt(Path("adamw/prompt.safetensors"))
    assert prompt.shape == (4, 8) and prompt.dtype == np.float32
    logged = next(line for line in read_log(Path("adamw/log.jsonl")) if line["step"] == 12)
    norms = np.linalg.norm(prompt, axis=-1)
    assert norms.mean() == pytest.approx(logged["prompt_norm"], **CLOSE)
    backbone = load_backbone("model")
    assert metadata["fingerprint"] == backbone.fingerprint
    assert metadata["model"] == backbone.name == "golden tuned on golden"
    assert metadata["step"] == "12" and metadata["task"] == "golden"


def test_a_base_checkpoint_is_the_backbone_folder_that_it_was_converted_from(old):
    base, folder = load_backbone("base"), load_backbone("pretrain/model")
    assert base.model == folder.model and base.tokenizer.fingerprint == folder.tokenizer.fingerprint
    assert jax.tree.structure(base.params) == jax.tree.structure(folder.params)
    jax.tree.map(np.testing.assert_array_equal, base.params, folder.params)


@pytest.mark.slow
def test_a_killed_pretraining_goes_on_to_the_same_end(old, golden):
    config = read_config("pretrain", PretrainConfig)
    kill(Path("pretrain"), kept=4)
    result = pretrain(config, Path("pretrain"))
    expected = json.loads((golden / "pretrain" / "result.json").read_text())
    assert result["steps"] == 6 and result["params"] == expected["params"]
    assert result["long_gap"] == pytest.approx(expected["long_gap"], rel=1e-2)
    assert_same_log(Path("pretrain/log.jsonl"), golden / "pretrain" / "log.jsonl", kept=4)
    weights = load_backbone("pretrain/model").params
    old_weights = load_backbone(str(golden / "pretrain" / "model")).params
    for new, old_leaf in zip(jax.tree.leaves(weights), jax.tree.leaves(old_weights), strict=True):
        np.testing.assert_allclose(new, old_leaf, rtol=2**-7, atol=1e-6)  # rounded to bfloat16


def old_configs(golden: Path) -> dict[str, Path]:
    return {str(path.relative_to(golden)): path for path in golden.glob("configs/*/*.yaml")}


def contains(new: dict, old_values: dict) -> bool:
    """Whether a config has all values of an old one, and maybe more."""
    return all(
        contains(new[name], value) if isinstance(value, dict) else new[name] == value
        for name, value in old_values.items()
    )


def test_old_configs_are_read_as_they_were_meant(golden, capsys):
    configs = old_configs(golden)
    assert len(configs) == 18
    for name, path in configs.items():
        assert main([name.split(os.sep)[1], "--config", str(path), "--print-config"]) == 0, name
        printed = yaml.safe_load(capsys.readouterr().out)
        assert contains(printed, yaml.safe_load(path.read_text())), name


def test_old_configs_are_those_that_are_bundled_today(golden):
    folder = Path(__file__).parents[1] / "configs"
    bundled = {path.stem: path for path in folder.rglob("*.yaml")}
    for name, path in old_configs(golden).items():
        kind = PretrainConfig if "pretrain" in name else TrainConfig
        today = from_dict(kind, yaml.safe_load(bundled[path.stem].read_text()))
        assert contains(to_dict(today), yaml.safe_load(path.read_text())), name


def test_old_options_exist(golden, capsys):
    options = json.loads((golden / "options.json").read_text())
    newer = {"interpret", "report", "serve", "sweep"}
    assert {words.split()[0] for words in options} == COMMANDS.keys() - newer
    for words, names in options.items():
        assert main([*words.split(), "--help"]) == 0
        helped = capsys.readouterr().out
        missing = [name for name in names if f"{name} " not in helped.replace("\n", " ")]
        assert not missing, (words, missing)
