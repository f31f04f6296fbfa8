"""Every config builds, opens with its command, and takes a step on the tiny backbone.

Every study of `configs/studies` makes its runs, and its dry run counts them.
"""

import dataclasses
import json
import re
from pathlib import Path

import pytest
import yaml
from support import tiny

from spt_jax.cli.main import main
from spt_jax.cli.sweep import make_study_parser
from spt_jax.config.fields import from_dict, to_dict
from spt_jax.config.pretrain import PretrainConfig
from spt_jax.config.train import TaskConfig, TrainConfig
from spt_jax.data.papers.splits import paper_task_names
from spt_jax.data.papers.tasks import PAPER_TASKS, TRANSFERS
from spt_jax.evaluation.metrics import SUPERGLUE
from spt_jax.models.open import find_tokenizer
from spt_jax.studies.grid import expand
from spt_jax.train import fit

FOLDER = Path(__file__).parents[1] / "configs"
CARD = (FOLDER.parent / "docs" / "spt-nano.md").read_text()  # pretrains models for two studies
STUDIES = sorted(FOLDER.glob("studies/*.yaml"))
CONFIGS = [path for path in sorted(FOLDER.rglob("*.yaml")) if path not in STUDIES]
PAPER = [path for path in CONFIGS if path.parent.name == "paper"]


def name(path):
    return path.relative_to(FOLDER).with_suffix("").as_posix()


def read(path):
    kind = PretrainConfig if path.stem.startswith("pretrain") else TrainConfig
    return from_dict(kind, yaml.safe_load(path.read_text()))


def test_there_are_configs():
    assert {"quickstart", "quickstart_model_tuning", "pretrain_nano"} <= {c.stem for c in CONFIGS}


@pytest.mark.parametrize("path", [*CONFIGS, *STUDIES], ids=name)
def test_a_config_opens_with_what_it_does_and_its_command(path):
    comment = [line for line in path.read_text().splitlines() if line.startswith("#")]
    command = "pretrain" if path.stem.startswith("pretrain") else "train"
    command = "sweep" if path in STUDIES else command
    assert len(comment) >= 3
    assert any(f"spt-jax {command} --config configs/{name(path)}.yaml" in line for line in comment)


@pytest.mark.parametrize("path", CONFIGS, ids=name)
def test_a_config_survives_its_own_dict(path):
    config = read(path)
    assert from_dict(type(config), yaml.safe_load(yaml.safe_dump(to_dict(config)))) == config


def small(path, folder):
    """The config with the tiny backbone, task and shapes, for one step."""
    config, tiny_run = read(path), tiny.train_config(folder)
    return dataclasses.replace(
        config,
        model=tiny_run.model,
        task=tiny_run.task,
        data=tiny_run.data,
        eval=dataclasses.replace(tiny_run.eval, baselines=False),
        steps=1,
    )


def distinct_small_runs(folder):
    """{name: config}, one of all that are the same here: most differ in their task alone."""
    runs = {}
    for path in CONFIGS:
        if not path.stem.startswith("pretrain"):
            config = small(path, folder)
            runs |= {} if config in runs.values() else {name(path): config}
    return runs


@pytest.mark.slow
def test_every_config_takes_a_step_on_a_tiny_backbone(tmp_path):
    runs = distinct_small_runs(tmp_path)
    assert {"quickstart", "quickstart_model_tuning", "paper/boolq"} <= {*runs}
    for config_name, config in runs.items():
        assert fit(config, tmp_path / "runs" / config_name)["steps_done"] == 1


def test_the_configs_of_the_paper_are_its_setup():
    tasks = {read(path).task.name for path in PAPER}
    assert {*SUPERGLUE, "glue/sst2", "squad", "mrpc_to_qqp", "qqp_to_mrpc"} <= tasks
    assert tasks <= {*paper_task_names()}
    default = TrainConfig(task=TaskConfig(name="library"))
    for path in PAPER:
        config = read(path)
        assert (config.optimizer, config.loss) == (default.optimizer, default.loss)
        assert (config.steps, config.prompt.length, config.data.batch_size) == (30_000, 100, 32)
        assert config.data.inputs_length == 512 and config.dropout_rate == 0.1
        assert path.stem in config.task.name
        text = path.read_text()
        assert f"spt-jax data prepare {config.task.name}\n" in text


def test_label_words_fit_the_configured_lengths_in_the_real_vocabulary(data_dir):
    tokenizer = find_tokenizer(str(data_dir / "t5" / "spiece.model"))
    ids = {
        "positive": [1465],
        "negative": [2841],
        "True": [10998],
        "equivalent": [7072],
        "not_equivalent": [59, 834, 15, 1169, 15592],
        "duplicate": [19197],
        "neutral": [7163],
        "contradiction": [27252],
    }
    assert {word: tokenizer.encode(word) for word in ids} == ids
    for paper in PAPER_TASKS.values():
        for word in (*(paper.words or ()), *paper.prompt_words):
            assert tokenizer.unk_id not in tokenizer.encode(word)
    for path in PAPER:
        config = read(path)
        task = TRANSFERS.get(config.task.name)
        words = PAPER_TASKS[task.source if task else config.task.name].words or ()
        assert max((len(tokenizer.encode(w)) + 1 for w in words), default=0) <= (
            config.data.targets_length
        )


def test_an_unknown_field_of_a_saved_config_is_named():
    with pytest.raises(ValueError, match="PromptConfig has no field 'lenght'; it has length, init"):
        from_dict(TrainConfig, {"task": {"name": "library"}, "prompt": {"lenght": 3}})


def runs_of(*argv):
    """The runs of a study, by name."""
    study = make_study_parser().read_study(argv)[1]
    return {run.name: run.config for run in expand(study)}


def test_there_are_studies():
    expected = {"length", "init", "objective", "size", "transfer_qa", "length_nano"}
    assert expected <= {s.stem for s in STUDIES}


@pytest.mark.parametrize("path", STUDIES, ids=name)
def test_a_study_is_of_the_bundled_model_and_of_another_by_one_flag(path):
    runs = runs_of(f"--config={path}")
    assert len(runs) >= 6 and {config.model for config in runs.values()} == {"spt-nano"}
    tasks = {"library", "type", "describes", "argument", "sst2", *paper_task_names()}
    assert {config.task.name for config in runs.values()} <= tasks
    other = runs_of(f"--config={path}", "--model=google/t5-base-lm-adapt")
    for run, config in runs.items():
        assert other[run] == dataclasses.replace(config, model="google/t5-base-lm-adapt")


@pytest.mark.parametrize("path", STUDIES, ids=name)
def test_the_settings_of_the_paper_behind_a_study_keep_what_varies(path):
    """Their comments name a second config; it sets all but what varies."""
    found = re.search(r"--config (configs/paper/\w+\.yaml)", path.read_text())
    if found is None:
        ours = path.stem in ("length_nano", "few_rows_nano", "int8_nano", "size", "ensemble")
        assert ours or path.stem.startswith("results_")
        return
    paper, runs = FOLDER.parent / found[1], runs_of(f"--config={path}")
    large = runs_of(f"--config={path}", f"--config={paper}")
    assert [*large] == [*runs]
    for run, config in large.items():
        assert (config.steps, config.data.batch_size) == (30_000, 32)
        assert config.model == "google/t5-base-lm-adapt"
        if "prompt.length" in run:
            assert config.prompt.length == runs[run].prompt.length


@pytest.mark.parametrize("path", STUDIES, ids=name)
def test_the_dry_run_of_a_study_counts_its_runs(path, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert main(["sweep", f"--config={path}", "--dry-run", "--json"]) == 0
    result, runs = json.loads(capsys.readouterr().out), runs_of(f"--config={path}")
    assert result["runs_left"] == len(runs)
    assert result["steps_left"] == sum(config.steps for config in runs.values())
    told = re.search(r"(\d+) runs", path.read_text())
    assert told is None or int(told[1]) in (len(runs), len(runs) // 2)
    for folder in re.findall(r"runs/(\w+)/[\w.,=]+", path.read_text()):
        made = f"--workdir runs/{re.sub('_[0-9]+$', '_$steps', folder)}"
        assert folder == path.stem or made in path.read_text() + CARD


@pytest.mark.parametrize("path", STUDIES, ids=name)
def test_the_commands_of_a_study_name_its_runs(path):
    """`evaluate` and `nearest` in the comments are given folders that the study makes."""
    runs = runs_of(f"--config={path}")
    for folder in re.findall(rf"runs/{path.stem}/([\w.,=*]+)", path.read_text()):
        assert any(run.startswith(folder.rstrip("*")) for run in runs), folder


def test_the_study_of_lengths_has_five_seeds_and_two_tasks():
    runs = runs_of(f"--config={FOLDER / 'studies' / 'length_nano.yaml'}").values()
    cells = {(config.task.name, config.prompt.length) for config in runs}
    assert cells == {(task, n) for task in ("library", "type") for n in (1, 5, 20, 100)}
    assert {config.seed for config in runs} == {0, 1, 2, 3, 4} and len(runs) == 40


def test_the_study_of_objectives_is_figure_3c_with_two_models():
    models = "google/t5-v1_1-base,google/t5-base-lm-adapt"
    path, paper = FOLDER / "studies" / "objective.yaml", FOLDER / "paper" / "boolq.yaml"
    assert f"--config configs/paper/boolq.yaml --vary model={models}" in path.read_text()
    runs = runs_of(f"--config={path}", f"--config={paper}", f"--vary=model={models}").values()
    cells = {(config.model, config.data.sentinel_targets) for config in runs}
    assert cells == {(model, flag) for model in models.split(",") for flag in (False, True)}
    assert len(runs) == 12 and {config.prompt.length for config in runs} == {100}
