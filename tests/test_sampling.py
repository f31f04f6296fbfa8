import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import chi2
from support import decoding
from support.decoding import INPUTS, MODEL, SHAPE, make_params

from spt_jax.config.decode import DecodeConfig
from spt_jax.decoding.generate import generate
from spt_jax.decoding.loop import EOS_ID, write
from spt_jax.decoding.sampling import candidates, make_row_sampler
from spt_jax.t5 import T5

sample = jax.jit(generate, static_argnames=("model", "config", "length"))

SMALL = dataclasses.replace(SHAPE, vocab_size=8)


def softmax(logits):
    return np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()


def restricted(logits, config):
    """The probabilities that the options ask for, token by token."""
    probs = softmax(np.asarray(logits, np.float64) / config.temperature)
    order = sorted(range(len(probs)), key=lambda token: -probs[token])[: config.top_k]
    probs = {token: probs[token] / probs[order].sum() for token in order}
    kept, mass = [], 0.0
    for token in order:
        if mass < config.top_p:
            kept.append(token)
            mass += probs[token]
    return np.array([probs[t] / mass if t in kept else 0.0 for t in range(len(logits))])


def pairs(params, row, config):
    """The probability of every answer of two tokens of a row, [8, 8]; 0 comes after EOS."""
    targets = np.stack([np.arange(8), np.zeros(8)], axis=1).astype(np.int32)
    logits = np.asarray(decoding.forward(T5(SMALL), params, np.tile(row, (8, 1)), targets))
    first = restricted(logits[0, 0], config)
    second = np.array([restricted(logits[token, 1], config) for token in range(8)])
    second[EOS_ID] = np.eye(8)[0]
    return first[:, None] * second


def distance(counts, probs):
    """Pearson's statistic, and what it stays under in 999 of 1,000 draws from `probs`."""
    expected = probs * counts.sum()
    often = expected >= 5
    if np.any(~often):  # those that are expected less than 5 times count together
        counts = np.append(counts[often], counts[~often].sum())
        expected = np.append(expected[often], expected[~often].sum())
    counts, expected = counts[expected > 0], expected[expected > 0]
    return np.sum((counts - expected) ** 2 / expected), chi2.ppf(0.999, len(counts) - 1)


@pytest.mark.parametrize(
    "options",
    [{"temperature": 0.7}, {"top_k": 3}, {"top_p": 0.8, "temperature": 1.5, "top_k": 6}],
    ids=["temperature", "top_k", "all"],
)
def test_two_tokens_come_as_often_as_they_should(options):
    config, params = DecodeConfig(sample=True, **options), make_params(SMALL)
    row, count = INPUTS[0] % 8, 12_000
    inputs = np.tile(row, (count, 1))
    ids, _ = sample(T5(SMALL), params, inputs, config, length=2, key=jax.random.key(0))
    counts = np.zeros((8, 8))
    np.add.at(counts, (np.asarray(ids[:, 0, 0]), np.asarray(ids[:, 0, 1])), 1)
    probs = pairs(params, row, config)
    assert np.sum(probs > 0.01) >= 5 and not np.any(counts[probs == 0])
    found, limit = distance(counts, probs)
    assert found < limit
    # Such a number of draws tells a temperature that is a tenth off.
    other = dataclasses.replace(config, temperature=1.1 * config.temperature)
    found, limit = distance(counts, pairs(params, row, other))
    assert found > limit


def test_of_equal_tokens_the_lower_id_comes_first():
    logits = jnp.array([[0.0, 2.0, 1.0, 2.0, 1.0]])
    values, ids = candidates(logits, DecodeConfig(sample=True, top_k=3))
    assert ids.tolist() == [[1, 3, 2]] and values.tolist() == [[2.0, 2.0, 1.0]]


def test_top_k_beyond_the_vocabulary_and_a_tiny_top_p():
    logits = jnp.log(jnp.array([[0.5, 0.3, 0.2]]))
    values, ids = candidates(logits, DecodeConfig(sample=True, top_k=50))
    assert ids.tolist() == [[0, 1, 2]] and np.all(np.isfinite(values))
    values, _ = candidates(logits, DecodeConfig(sample=True, top_p=1e-9))
    assert np.isfinite(values).tolist() == [[True, False, False]]


def test_a_row_draws_by_its_number_and_no_other_row():
    params, config = make_params(), DecodeConfig(sample=True, temperature=2.0)
    inputs = INPUTS[[0, 0, 1, 3]]
    run = functools.partial(sample, MODEL, params, config=config, length=9, key=jax.random.key(5))
    numbers = jnp.arange(4)
    ids, scores = run(inputs, row_numbers=numbers)
    np.testing.assert_array_equal(ids, run(inputs)[0])  # the place in the batch by default
    assert not np.array_equal(ids[0], ids[1])  # equal inputs, other numbers
    assert not np.any(ids[3]) and np.isneginf(scores[3])
    order = np.array([2, 3, 1, 0])
    moved, their_scores = run(inputs[order], row_numbers=numbers[order])
    np.testing.assert_array_equal(moved, ids[order])
    np.testing.assert_allclose(their_scores, scores[order], rtol=1e-5)
    other = run(inputs, key=jax.random.key(6))[0]
    assert not np.array_equal(other[0], ids[0])


def test_a_row_with_settings_of_its_own_writes_what_a_batch_of_these_settings_writes():
    params, numbers = make_params(), jnp.array([7, 0, 3, 9])
    inputs = jnp.asarray(INPUTS[[0, 0, 1, 2]])

    @jax.jit
    def write_rows(temperatures, top_ps, seeds):
        choose = make_row_sampler(temperatures, top_ps, seeds, numbers)
        return write(MODEL, params, inputs, choose, length=9).ids

    def alone(row, config, seed=0):
        key = jax.random.key(seed) if config.sample else None
        ids, _ = sample(MODEL, params, inputs, config, length=9, key=key, row_numbers=numbers)
        return ids[row, 0]

    temperatures = np.array([0, 2, 2, 0], np.float32)
    top_ps = np.array([1, 1, 0.8, 0.5], np.float32)
    seeds = np.array([5, 5, 2**32 - 1, 5], np.uint32)
    plain = DecodeConfig(sample=True, temperature=2.0)
    cut = dataclasses.replace(plain, top_p=0.8)
    mixed = write_rows(temperatures, top_ps, seeds)
    np.testing.assert_array_equal(mixed[0], alone(0, DecodeConfig()))
    np.testing.assert_array_equal(mixed[1], alone(1, plain, 5))
    np.testing.assert_array_equal(mixed[2], alone(2, cut, 2**32 - 1))
    np.testing.assert_array_equal(mixed[3], alone(3, DecodeConfig()))
    # Each conditional has another branch: no row has a top-p, and no row draws.
    uncut = write_rows(temperatures, np.ones(4, np.float32), seeds)
    np.testing.assert_array_equal(uncut[1], mixed[1])
    assert not np.array_equal(uncut[2], mixed[2])
    likeliest = write_rows(np.zeros(4, np.float32), top_ps, seeds)
    np.testing.assert_array_equal(likeliest[3], mixed[3])
    assert not np.array_equal(likeliest[1], mixed[1])
    assert write_rows._cache_size() == 1
