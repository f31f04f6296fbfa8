"""Configs that check themselves, alike from Python, YAML and flags."""

import dataclasses
import enum
import math
import os
import re
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import yaml

from spt_jax.config.decode import DecodeConfig
from spt_jax.config.devices import DistributedConfig, MeshConfig
from spt_jax.config.fields import Rule, config_class, field_types, from_dict, members, to_dict
from spt_jax.config.plan import PlanConfig
from spt_jax.config.pretrain import ArchitectureConfig, MixtureConfig, PretrainConfig
from spt_jax.config.train import (
    DataConfig,
    EvalConfig,
    LogConfig,
    LossConfig,
    OptimizerConfig,
    PromptConfig,
    TaskConfig,
    TrainConfig,
)
from spt_jax.errors import choose
from spt_jax.losses import Loss
from spt_jax.optim import make_optimizer, make_schedule
from spt_jax.runs.folder import RunFolder
from spt_jax.t5.config import PRESETS, T5Config

TASK = TaskConfig(name="library")
SMALLEST = {  # a valid instance of every config
    DataConfig: DataConfig(),
    EvalConfig: EvalConfig(),
    LogConfig: LogConfig(),
    LossConfig: LossConfig(),
    OptimizerConfig: OptimizerConfig(),
    PromptConfig: PromptConfig(),
    TaskConfig: TASK,
    TrainConfig: TrainConfig(task=TASK),
    PretrainConfig: PretrainConfig(name="x"),
    MixtureConfig: MixtureConfig(),
    ArchitectureConfig: ArchitectureConfig(),
    PlanConfig: PlanConfig(model="t5-v1_1-small", topology="v5e:2x2"),
    MeshConfig: MeshConfig(),
    DistributedConfig: DistributedConfig(),
    DecodeConfig: DecodeConfig(),
    T5Config: PRESETS["t5-small"],
}
FIELDS = [(config, name) for config in SMALLEST.values() for name in field_types(type(config))]


def source(**options):
    return TaskConfig(**{"source": "rows.tsv", "template": "{s}", "label": "l"} | options)


class BytesPath(os.PathLike):
    def __fspath__(self):
        return b"rows.tsv"


@pytest.mark.parametrize("config, name", FIELDS, ids=lambda value: getattr(value, "__name__", None))
def test_every_field_refuses_what_has_another_type_and_names_itself(config, name):
    named = re.escape(config.option(name))
    for wrong in (object(), b"x", {1.5: "x"}):
        with pytest.raises(ValueError, match=rf"^{named} is .*, expected "):
            dataclasses.replace(config, **{name: wrong})


@pytest.mark.parametrize("config, name", FIELDS, ids=lambda value: getattr(value, "__name__", None))
def test_no_number_is_a_bool_a_text_or_not_a_number(config, name):
    kinds = {*members(field_types(type(config))[name])}
    if kinds & {int, float}:
        for wrong in (True, "3", math.nan):
            with pytest.raises(ValueError, match=rf"^{re.escape(config.option(name))} is "):
                dataclasses.replace(config, **{name: wrong})
    if kinds & {bool}:
        for wrong in (1, 0, "true", None):
            with pytest.raises(ValueError, match=r"expected true or false$"):
                dataclasses.replace(config, **{name: wrong})


WRONG = [
    (lambda: OptimizerConfig(name="adam_w"), "optimizer.name is 'adam_w', expected one of "
     "adafactor, adamw, adam, sgd, lion (did you mean 'adamw'?)"),
    (lambda: LossConfig(reduction="avg"), "loss.reduction is 'avg', expected one of sum, mean"),
    (lambda: PromptConfig(init="x"), "prompt.init is 'x', expected one of class_labels, "),
    (lambda: T5Config(**dict(vars(PRESETS["t5-small"]), mlp="swish")), "T5Config.mlp is 'swish', "
     "expected one of gated_gelu, relu"),
    (lambda: TrainConfig(task={"name": "x"}), 'task is {"name": "x"}, expected TaskConfig'),
    (lambda: TrainConfig(task=TASK, steps=None), "steps is null, expected a whole number"),
    (lambda: TrainConfig(task=TASK, steps=2.0), "steps is 2.0, expected a whole number"),
    (lambda: TrainConfig(task=TASK, seed=2**32), "seed is 4294967296, expected 0 or more, "
     "and less than 2**32"),
    (lambda: TrainConfig(task=TASK, seed=-1), "seed is -1, expected 0 or more, and less than"),
    (lambda: PretrainConfig(name="x", seed=-1), "seed is -1, expected 0 or more, and less than"),
    (lambda: PretrainConfig(name="x", packages="numpy"), "packages is 'numpy', expected a list, "
     "each value text"),
    (lambda: PretrainConfig(name="x", held_out_share=1), "held_out_share is 1, expected at least 0 "
     "and less than 1"),
    (lambda: MixtureConfig(weights={"lm": "1"}), 'mixture.weights is {"lm": "1"}, expected a '
     "mapping, each value a number"),
    (lambda: MixtureConfig(weights={"lm": -1}), "mixture.weights.lm is -1.0, expected 0 or more"),
    (lambda: source(label_words="NO,OK"), "task.label_words is 'NO,OK', expected a mapping such as "
     "'{0: negative, 1: positive}', a list such as '[negative, positive]', or null"),
    (lambda: source(label_words={True: "a"}), "task.label_words is {\"true\": \"a\"}, expected a "),
    (lambda: source(label_words=["a", 1]), 'task.label_words is ["a", 1], expected a mapping'),
    (lambda: DataConfig(buckets=[16, 8]), "data.buckets is [16, 8], expected increasing lengths of "
     "1 or more"),
    (lambda: OptimizerConfig(learning_rate=0), "optimizer.learning_rate is 0, expected more than"),
    (lambda: OptimizerConfig(learning_rate=10**400), ", expected a number"),
    (lambda: OptimizerConfig(weight_decay=-1), "optimizer.weight_decay is -1, expected 0 or more"),
    (lambda: OptimizerConfig(momentum=1), "optimizer.momentum is 1, expected at least 0 and less"),
    (lambda: OptimizerConfig(clip_norm=0), "optimizer.clip_norm is 0, expected more than 0"),
    (lambda: LossConfig(label_smoothing=1), "loss.label_smoothing is 1, expected at least 0 and"),
    (lambda: LogConfig(checkpoint_minutes=0), "log.checkpoint_minutes is 0, expected more than 0, "
     "or null"),
    (lambda: MeshConfig(data=0), "mesh.data is 0, expected 1 or more, or -1 for what is left"),
    (lambda: ArchitectureConfig(d_ff=0), "architecture.d_ff is 0, expected 1 or more"),
    (lambda: TrainConfig(task=TASK, steps=2**31), "steps is 2147483648, expected less than 2**31"),
    (lambda: EvalConfig(patience=10**30), "000, expected less than 2**31"),
    (lambda: source(label_words={1: "a", "1": "b"}), 'task.label_words is {"1": "a", "1": "b"}, '
     "expected keys that differ as text"),
    (lambda: source(label_words={np.True_: "a"}), "task.label_words is {np.True_: 'a'}, expected "),
    (lambda: source(group=BytesPath()), ", expected text or null"),
    *((lambda name=name: source(**{name: " "}), f"task.{name} is ' ', expected text that is not e")
      for name in ("source", "dev_source", "test_source", "label", "group", "name")),
    (lambda: TaskConfig(name="boolq", origin=""), "task.origin is '', expected text that is not e"),
    (lambda: TrainConfig(task=TASK, model=""), "model is '', expected text that is not empty"),
    (lambda: PromptConfig(init="file", file=""), "prompt.file is '', expected text that is not e"),
    (lambda: EvalConfig(patience=0), "eval.patience is 0, expected 1 or more"),
    (lambda: DistributedConfig(num_processes=0), "distributed.num_processes is 0, expected 1 or"),
]  # fmt: skip


@pytest.mark.parametrize("make, message", WRONG, ids=[message for _, message in WRONG])
def test_a_wrong_value_is_told_with_what_is_allowed(make, message):
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        make()
    assert "\n" not in str(error.value)


def test_values_of_numpy_paths_and_keys_that_are_numbers_are_converted():
    data = DataConfig(batch_size=np.int64(3), buckets=[np.int32(8), 16])
    assert data == DataConfig(batch_size=3, buckets=(8, 16))
    assert type(data.batch_size) is int and type(data.buckets[0]) is int
    optimizer = OptimizerConfig(learning_rate=np.float32(0.5), clip_norm=np.array(2))
    assert (optimizer.learning_rate, optimizer.clip_norm) == (0.5, 2.0)
    assert type(optimizer.learning_rate) is float and type(optimizer.clip_norm) is float
    assert type(TaskConfig(name=np.str_("x")).name) is str
    assert DataConfig(group_by_length=np.bool_(True)).group_by_length is True
    prompt = PromptConfig(init="file", file=Path("runs") / "x")
    assert prompt.file == str(Path("runs") / "x")
    assert source(label_words={0: "no", np.int64(1): "yes"}).label_words == {"0": "no", "1": "yes"}


def test_classes_of_text_give_their_value():
    class Name(str, enum.Enum):  # noqa: UP042  prints as 'Name.ADAMW'
        ADAMW = "adamw"

    name = OptimizerConfig(name=Name.ADAMW, learning_rate=0.1).name
    assert (name, type(name)) == ("adamw", str)
    words = source(label=Name.ADAMW, label_words={Name.ADAMW: Name.ADAMW})
    assert (words.label, words.label_words) == ("adamw", {"adamw": "adamw"})


def test_a_config_keeps_no_list_or_dict_of_its_caller():
    words = ["no", "yes"]
    config = source(label_words=words)
    words.append("maybe")
    assert config.label_words == ["no", "yes"]


def test_every_number_of_a_config_has_a_range():
    bare = {"warmup_steps", "prompt_length", "process_id"}  # whose range depends on other fields
    for cls in SMALLEST:
        for name, hint in field_types(cls).items():
            parts = [hint, *get_args(hint)]
            ruled = any(isinstance(rule, Rule) for part in parts for rule in get_args(part))
            if {*members(hint)} & {int, float} and name not in bare:
                assert ruled, f"{cls.__name__}.{name}"


@pytest.mark.parametrize(
    "options, users",
    [
        ({"name": "sgd", "weight_decay": 0.1}, "adafactor or adamw or lion"),
        ({"name": "adam", "weight_decay": 0.0}, "adafactor or adamw or lion"),
        ({"name": "adamw", "preset": "fresh"}, "adafactor"),
        ({"name": "lion", "multiply_by_parameter_scale": True}, "adafactor"),
    ],
)
def test_an_option_that_the_optimizer_ignores_is_refused(options, users):
    name = [*options][1]
    message = (
        f"optimizer.{name} is .* with optimizer.name '{options['name']}', which ignores it; "
        f"leave it out, or use {users}$"
    )
    with pytest.raises(ValueError, match=message):
        OptimizerConfig(**options)
    with pytest.raises(ValueError, match=message):
        from_dict(TrainConfig, {"task": {"name": "x"}, "optimizer": options})


def test_another_optimizer_leaves_the_pretraining_defaults_of_adafactor():
    config = from_dict(PretrainConfig, {"name": "x", "optimizer": {"name": "adamw"}})
    expected = dataclasses.replace(
        PretrainConfig(name="x").optimizer,
        name="adamw",
        preset="t5x_1100k",
        multiply_by_parameter_scale=False,
    )
    assert config.optimizer == expected


def test_dispatch_on_a_name_that_no_config_lets_through_raises():
    config = OptimizerConfig()
    for name, make in (("name", make_optimizer), ("preset", make_optimizer)):
        object.__setattr__(config := OptimizerConfig(), name, "adam_w")
        with pytest.raises(ValueError, match=f"optimizer.{name} is 'adam_w', expected one of "):
            make(config, 10)
    object.__setattr__(config := OptimizerConfig(warmup_steps=1), "schedule", "step")
    with pytest.raises(ValueError, match="optimizer.schedule is 'step', expected one of constant"):
        make_schedule(config, 10)
    one = np.ones(())
    with pytest.raises(ValueError, match="reduction is 'avg', expected one of sum, mean"):
        Loss(one, one, one, one).total("avg")
    with pytest.raises(ValueError, match=r"x is 'ab', expected one of abc \(did you mean 'abc'"):
        choose("x", "ab", {"abc": 1})


# Configs as dicts, and those of older versions.


def test_from_dict_names_what_is_unknown_or_missing():
    with pytest.raises(ValueError, match=r"LossConfig has no field 'zloss'; .*mean 'z_loss'"):
        from_dict(TrainConfig, {"task": {"name": "x"}, "loss": {"zloss": 1}})
    with pytest.raises(ValueError, match="option 'model' is not set, and it has no default"):
        from_dict(PlanConfig, {})


@pytest.mark.parametrize(
    "config",
    [TrainConfig(task=TASK, prompt=None, tune="model"), PretrainConfig(name="x", steps=9)],
)
def test_a_run_of_an_older_version_that_lacks_options_is_resumed(config, tmp_path):
    """Whatever option is the newest, a config without it is one with its default."""
    old, kind = to_dict(config), type(config)
    for name, value in to_dict(config).items():
        section = config_class(field_types(kind)[name])
        if isinstance(value, dict) and section is not None:
            for inner in field_types(section):
                if (name, inner) != ("task", "name"):
                    del old[name][inner]
        elif name not in ("task", "name", "prompt", "tune", "steps"):
            del old[name]
    folder = RunFolder(tmp_path)
    folder.config_file.write_text(yaml.safe_dump(old))
    folder.check_config(to_dict(config), kind)
    assert from_dict(kind, folder.read_config(), saved=True) == config
    with pytest.raises(ValueError, match=r"another config: seed \(0 there, 1 now\)"):
        folder.check_config(to_dict(dataclasses.replace(config, seed=1)), kind)


def test_a_run_of_an_older_version_may_have_options_that_its_optimizer_ignores(tmp_path):
    config = to_dict(TrainConfig(task=TASK, optimizer=OptimizerConfig(name="sgd")))
    old = {**config, "optimizer": {**config["optimizer"], "weight_decay": 0.1, "preset": "fresh"}}
    folder = RunFolder(tmp_path)
    folder.config_file.write_text(yaml.safe_dump(old))
    folder.check_config(config)
    assert to_dict(from_dict(TrainConfig, old, saved=True)) == config


def test_a_run_with_an_option_that_is_unknown_here_is_not_continued(tmp_path):
    config = to_dict(TrainConfig(task=TASK))
    folder = RunFolder(tmp_path)
    folder.config_file.write_text(yaml.safe_dump({**config, "sharpness": 1}))
    message = (
        "holds a run that this version cannot continue: TrainConfig has no field 'sharpness'; .*"
        "give another --workdir, or --overwrite to delete that run"
    )
    with pytest.raises(ValueError, match=message):
        folder.check_config(config)
