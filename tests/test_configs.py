"""Every config builds, opens with its command, and takes a step on the tiny backbone."""

import dataclasses
from pathlib import Path

import pytest
import yaml
from support import tiny

from spt_jax.config.fields import from_dict, to_dict
from spt_jax.config.pretrain import PretrainConfig
from spt_jax.config.train import TaskConfig, TrainConfig
from spt_jax.data.papers.splits import paper_task_names
from spt_jax.data.papers.tasks import PAPER_TASKS, TRANSFERS
from spt_jax.evaluation.metrics import SUPERGLUE
from spt_jax.models.open import find_tokenizer
from spt_jax.train import fit

FOLDER = Path(__file__).parents[1] / "configs"
CONFIGS = sorted(FOLDER.rglob("*.yaml"))
PAPER = [path for path in CONFIGS if path.parent.name == "paper"]


def name(path):
    return path.relative_to(FOLDER).with_suffix("").as_posix()


def read(path):
    kind = PretrainConfig if path.stem.startswith("pretrain") else TrainConfig
    return from_dict(kind, yaml.safe_load(path.read_text()))


def test_there_are_configs():
    assert {"quickstart", "quickstart_model_tuning", "pretrain_nano"} <= {c.stem for c in CONFIGS}


@pytest.mark.parametrize("path", CONFIGS, ids=name)
def test_a_config_opens_with_what_it_does_and_its_command(path):
    comment = [line for line in path.read_text().splitlines() if line.startswith("#")]
    command = "pretrain" if path.stem.startswith("pretrain") else "train"
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
