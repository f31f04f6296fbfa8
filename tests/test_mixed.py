"""A row among rows of other prompts gives what it gives with its own prompt, right in front."""

import functools

import jax
import numpy as np
import pytest
from support.decoding import MODEL, make_params

from spt_jax.config.decode import DecodeConfig
from spt_jax.decoding import beam
from spt_jax.decoding import loop as decode
from spt_jax.decoding.generate import generate
from spt_jax.decoding.loop import answer_log_probs
from spt_jax.forward import encode, forward
from spt_jax.prediction import predictor
from spt_jax.prediction.predictor import answer_batch
from spt_jax.prompts.bank import PromptBank

LENGTHS = np.linspace(1, 100, 16).astype(int).tolist()
FEW_LENGTHS = [1, 2, 41, 100]  # alone, each length of a prompt is a program of its own
ROWS, TEXT, TARGET = 24, 9, 4
PARAMS = make_params(eos=1.5)
logits = jax.jit(functools.partial(forward, MODEL))


@jax.jit
def mixed_logits(arrays, task_ids, inputs, targets):
    params, mask = arrays.prompted(PARAMS, task_ids)
    return forward(MODEL, params, inputs, targets, prompt_mask=mask)


def draw_rows(rng, tasks):
    """Texts of 1 to TEXT tokens with targets, and the task of each row; 0 is none."""
    ids = rng.integers(3, 30, (ROWS, TEXT + TARGET)).astype(np.int32)
    ids[:, :TEXT] *= np.arange(TEXT) < rng.integers(1, TEXT + 1, ROWS)[:, None]
    return ids[:, :TEXT], ids[:, TEXT:], rng.integers(0, tasks + 1, ROWS).astype(np.int32)


def draw_bank(rng, lengths):
    """Prompts of these lengths, and the bank that has them as tasks 1, 2, ..."""
    prompts = [rng.standard_normal((length, 16)).astype(np.float32) for length in lengths]
    named = {str(task): prompt for task, prompt in enumerate(prompts, 1)}
    return [None, *prompts], PromptBank.from_prompts(named, 16, capacity=16, length=100)


def alone(prompt):
    """The params of one prompt for all rows, as in training."""
    return PARAMS if prompt is None else {**PARAMS, "prompt": prompt}


# The first two have 16 prompts and rows of every task, the others what they draw.
@pytest.mark.parametrize(
    ("seed", "lengths"),
    [
        pytest.param(0, LENGTHS, marks=pytest.mark.slow, id="16 lengths"),
        pytest.param(0, FEW_LENGTHS * 4, id="4 lengths"),
        *((seed, None) for seed in (1, 2, 3)),
    ],
)
def test_rows_of_a_mixed_batch_are_those_of_each_task_alone(seed, lengths):
    rng = np.random.default_rng(seed)
    drawn = rng.choice(FEW_LENGTHS, rng.integers(1, 5)).tolist()
    prompts, bank = draw_bank(rng, lengths or drawn)
    inputs, targets, task_ids = draw_rows(rng, len(prompts) - 1)
    if lengths:
        task_ids = rng.permutation(np.arange(ROWS) % 17).astype(np.int32)
    mixed = np.asarray(mixed_logits(bank.arrays, task_ids, inputs, targets))
    for task in np.unique(task_ids):
        expected = np.asarray(logits(alone(prompts[task]), inputs, targets))
        rows = task_ids == task
        tolerance = 1e-5 * np.abs(expected).max()
        np.testing.assert_allclose(mixed[rows], expected[rows], rtol=0, atol=tolerance)


@pytest.mark.parametrize(
    "config",
    [
        pytest.param(DecodeConfig(), id="greedy"),
        pytest.param(DecodeConfig(num_beams=3, num_results=2), id="beams", marks=pytest.mark.slow),
    ],
)
def test_answers_of_a_mixed_batch_are_those_of_each_task_alone(config):
    rng = np.random.default_rng(7)
    prompts, bank = draw_bank(rng, (1, 41, 100))
    inputs, _, task_ids = draw_rows(rng, 3)
    ids, scores = map(
        np.asarray,
        answer_batch(MODEL, PARAMS, bank.arrays, task_ids, inputs, config, length=TARGET),
    )
    by_task = jax.jit(functools.partial(generate, MODEL, config=config, length=TARGET))
    seen = set()
    for task, prompt in enumerate(prompts):
        expected, their_scores = map(np.asarray, by_task(alone(prompt), inputs))
        rows = task_ids == task
        np.testing.assert_array_equal(ids[rows], expected[rows])
        np.testing.assert_allclose(scores[rows], their_scores[rows], rtol=1e-4)
        seen.add(expected.tobytes())
    assert len(seen) == 4  # the prompts matter


def test_each_row_ranks_its_own_answers():
    rng = np.random.default_rng(8)
    inputs = draw_rows(rng, 1)[0][:4]
    answers = rng.integers(3, 30, (4, 3, 5)).astype(np.int32)
    answers[:, :, 3:] = 0
    ranked = jax.jit(functools.partial(answer_log_probs, MODEL))
    own = ranked(PARAMS, inputs, answers)
    assert own.shape == (4, 3)
    for row in range(4):
        shared = ranked(PARAMS, inputs, answers[row])
        np.testing.assert_allclose(own[row], shared[row], rtol=1e-5)


@pytest.mark.parametrize("config", [DecodeConfig(), DecodeConfig(num_beams=3)])
def test_generating_and_ranking_encode_once(monkeypatch, config):
    _, bank = draw_bank(np.random.default_rng(0), [3])
    inputs, answers, task_ids = np.ones((2, 5), int), np.ones((2, 3, 2), int), np.ones(2, int)
    calls = []
    for module in (predictor, decode, beam):
        monkeypatch.setattr(
            module, "encode", lambda *args, **kw: calls.append(0) or encode(*args, **kw)
        )
    run = functools.partial(answer_batch, MODEL, config=config, length=4)
    ids, log_probs = jax.eval_shape(run, PARAMS, bank.arrays, task_ids, inputs, answers=answers)
    assert (ids.shape, log_probs.shape, len(calls)) == ((2, 1, 4), (2, 3), 1)
