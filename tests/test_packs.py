"""Packs of runs: who shares a program, how many fit into memory, and how near the estimate is."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spt_jax.config.devices import MeshConfig
from spt_jax.config.train import DataConfig, PromptConfig, TaskConfig, TrainConfig
from spt_jax.models.backbone import load_backbone
from spt_jax.optim import make_tx
from spt_jax.pytree import label_params, nbytes, split
from spt_jax.step import jit_steps
from spt_jax.studies import packs
from spt_jax.studies.packs import describe_packs, make_packs, most_together
from spt_jax.train_state import init_state

CONFIG = TrainConfig(
    task=TaskConfig(name="library"),
    prompt=PromptConfig(length=20),
    data=DataConfig(inputs_length=48, targets_length=8, batch_size=16),
    mesh=MeshConfig(data=1, model=8),  # all of the eight devices, so that rows are not spread
)


def with_length(length, **changes):
    return dataclasses.replace(CONFIG, prompt=PromptConfig(length=length), **changes)


@pytest.fixture
def memory(monkeypatch):
    """Sets the memory of a device in MB."""
    return lambda size: monkeypatch.setattr(packs, "device_bytes", lambda: int(size * 1e6))


def test_a_number_is_taken_as_it_is(memory):
    memory(1)
    assert make_packs([with_length(n) for n in (5, 1, 3)], 2) == [[1, 2], [0]]
    assert describe_packs([[1, 2], [0]]) == "3 runs in 2 programs, at most 2 in one"
    assert describe_packs([[1, 2]]) == "2 runs in 1 program, at most 2 in one"
    with pytest.raises(ValueError, match="together is 0 runs, expected 1 or more"):
        make_packs([CONFIG], 0)


def test_by_memory_packs_have_similar_sizes(memory):
    seeds = [dataclasses.replace(CONFIG, seed=seed) for seed in range(10)]
    memory(10_000)
    assert [len(pack) for pack in make_packs(seeds, None)] == [10]
    memory(1)
    assert [len(pack) for pack in make_packs(seeds, None)] == [1] * 10
    memory(1600)
    assert most_together([CONFIG]) == 7 and [len(p) for p in make_packs(seeds, None)] == [5, 5]


def test_no_more_than_the_most_share_a_program(memory):
    memory(1_000_000)
    assert most_together([CONFIG]) == packs.MOST


def test_longer_rows_need_more_memory(memory):
    memory(2000)
    fewer = most_together([with_length(100)])
    assert 1 <= fewer < most_together([CONFIG])


def test_by_memory_a_short_prompt_is_not_padded_to_a_long_one(memory):
    memory(1_000_000)
    lengths = [1, 100, 5, 10, 150, 110]
    found = make_packs([with_length(n) for n in lengths], None)
    assert [[lengths[n] for n in pack] for pack in found] == [[1, 5, 10], [100, 110], [150]]
    other = with_length(1, task=TaskConfig(name="type"))
    assert make_packs([with_length(100), other], None) == [[0], [1]]


def test_model_tuning_is_trained_alone(memory):
    memory(1_000_000)
    tuned = [dataclasses.replace(CONFIG, prompt=None, tune="model", seed=n) for n in (0, 1)]
    assert make_packs([*tuned, CONFIG], None) == [[0], [1], [2]]


def test_the_weights_are_counted():
    backbone = load_backbone("spt-nano")
    found = packs.weight_bytes(backbone.model.config, CONFIG)
    assert found == pytest.approx(nbytes(backbone.params), rel=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("count, length, inputs", [(1, 20, 48), (3, 20, 48), (2, 100, 256)])
def test_the_estimate_is_near_what_xla_reserves(count, length, inputs):
    data = dataclasses.replace(CONFIG.data, inputs_length=inputs)
    config = with_length(length, data=data)
    backbone = load_backbone("spt-nano", dropout_rate=0.1)
    params = {"t5": backbone.params, "prompt": jnp.zeros((length, 256))}
    trained, frozen = split(params, label_params(params, "prompt"))
    tx = make_tx(config.optimizer, 100, "prompt")
    state = init_state(trained, tx=tx, patience=None, keep_best=True)
    batch = {
        name: np.ones((count, config.data.batch_size, width), np.int32)
        for name, width in (("inputs", inputs), ("targets", config.data.targets_length))
    }
    steps = jit_steps(backbone.model, [(config.optimizer, 100)] * count, config.loss)
    lowered = steps.lower(
        (state,) * count, frozen, batch, (jax.random.key(0),) * count, (0.3,) * count
    )
    reserved = lowered.compile().memory_analysis().temp_size_in_bytes
    estimate = count * packs.activation_bytes(backbone.model.config, config)
    assert 0.8 < packs.MARGIN * estimate / reserved < 1.6
    assert packs.MARGIN * estimate > reserved
