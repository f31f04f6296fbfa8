import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from support import decoding
from support.decoding import INPUTS, MODEL, make_params

from spt_jax.config.decode import DecodeConfig
from spt_jax.decoding.generate import generate
from spt_jax.decoding.loop import EOS_ID, answer_log_probs, greedy

run = jax.jit(generate, static_argnames=("model", "config", "length"))

GREEDY = DecodeConfig(length_penalty=0.5)
SAMPLE = DecodeConfig(sample=True, temperature=1.5, top_k=9, top_p=0.9)
BEAMS = DecodeConfig(num_beams=3, num_results=2)
METHODS = pytest.mark.parametrize(
    "config", [GREEDY, SAMPLE, BEAMS], ids=["greedy", "sample", "beams"]
)
LENGTH = 6


@METHODS
def test_every_method_scores_its_answers_alike(config):
    params = make_params(prompt=3, eos=1.5)
    ids, scores = run(MODEL, params, INPUTS, config, length=LENGTH, key=jax.random.key(0))
    assert ids.shape == (4, config.num_results, LENGTH) and scores.shape == (4, config.num_results)
    assert not np.any(ids[3]) and np.all(np.isneginf(scores[3]))
    ended = np.any(np.asarray(ids) == EOS_ID, axis=2)
    assert np.any(ended)
    of_answers = jax.jit(functools.partial(answer_log_probs, MODEL))
    log_probs = of_answers(params, INPUTS, ids.reshape(-1, LENGTH)).reshape(4, *ids.shape[:2])
    for row, result in np.argwhere(ended):
        tokens = ids[row, result].tolist().index(EOS_ID) + 1
        assert 0 not in ids[row, result, :tokens]  # which answer_log_probs takes for padding
        expected = log_probs[row, row, result] / tokens**config.length_penalty
        np.testing.assert_allclose(scores[row, result], expected, rtol=1e-5)


def test_greedy_is_the_default_and_what_drawing_from_the_likeliest_token_gives():
    params = make_params(prompt=3, eos=1.5)
    expected = jax.jit(functools.partial(greedy, MODEL, length=LENGTH))(params, INPUTS)
    ids, _ = run(MODEL, params, INPUTS, GREEDY, length=LENGTH, key=jax.random.key(0))
    np.testing.assert_array_equal(ids[:, 0], expected)
    top = DecodeConfig(sample=True, top_k=1, temperature=3.0)
    ids, _ = run(MODEL, params, INPUTS, top, length=LENGTH, key=jax.random.key(0))
    np.testing.assert_array_equal(ids[:, 0], expected)


@METHODS
def test_masked_vectors_of_a_prompt_have_no_say(config):
    short = make_params(prompt=3, eos=1.5)
    prompt = jnp.concatenate([jnp.full((2, 16), 9.0), short["prompt"]])
    batch = functools.partial(run, MODEL, config=config, length=LENGTH, key=jax.random.key(0))
    ids, scores = batch(short, INPUTS)
    bank = {**short, "prompt": jnp.tile(prompt[None], (4, 1, 1))}
    mask = jnp.tile(jnp.array([False, False, True, True, True])[None], (4, 1))
    masked_ids, masked_scores = batch(bank, INPUTS, prompt_mask=mask)
    np.testing.assert_array_equal(masked_ids, ids)
    np.testing.assert_allclose(masked_scores, scores, rtol=1e-5)


@pytest.mark.parametrize("config", [SAMPLE, BEAMS], ids=["draw", "beams"])
def test_rows_over_data_devices(config):
    params, numbers = make_params(prompt=3, eos=1.5), jnp.tile(jnp.arange(4), 2)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    rows, everywhere = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (["data"], []))
    batch = functools.partial(run, MODEL, config=config, length=LENGTH, key=jax.random.key(0))
    ids, scores = batch(
        jax.device_put(params, everywhere),
        jax.device_put(np.tile(INPUTS, (2, 1)), rows),
        row_numbers=jax.device_put(numbers, rows),
    )
    alone, their_scores = batch(params, INPUTS)
    np.testing.assert_array_equal(ids, jnp.tile(alone, (2, 1, 1)))
    np.testing.assert_allclose(scores, jnp.tile(their_scores, (2, 1)), rtol=1e-5)


def test_several_samples_by_mapping_over_keys():
    params = make_params(prompt=3, eos=1.5)
    keys = jax.random.split(jax.random.key(1), 3)

    def one(key):
        return generate(MODEL, params, jnp.asarray(INPUTS), SAMPLE, length=LENGTH, key=key)[0]

    several = jax.jit(jax.vmap(one))(keys)
    for key, ids in zip(keys, several, strict=True):
        alone, _ = run(MODEL, params, INPUTS, SAMPLE, length=LENGTH, key=key)
        np.testing.assert_array_equal(ids, alone)
    assert len({tuple(ids[0, 0].tolist()) for ids in several}) == 3

    # What does not depend on the key is there once: no weight, no key of the encoder's output.
    every = decoding.equations(jax.make_jaxpr(jax.vmap(one))(keys).jaxpr)
    shapes = {variable.aval.shape for equation in every for variable in equation.outvars}
    weight, keys_of_inputs, keys_of_answers = (16, 24), (4, 2, 8, 8), (4, 2, 8, LENGTH)
    assert {weight, keys_of_inputs, (3, *keys_of_answers)} <= shapes
    assert not {(3, *weight), (3, *keys_of_inputs)} & shapes


def test_sampling_needs_a_key():
    with pytest.raises(ValueError, match=r"sampling needs a key but key is None; give key=jax"):
        generate(MODEL, make_params(), jnp.asarray(INPUTS), SAMPLE, length=LENGTH)
