import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import random_params

import spt_jax.forward
from spt_jax import decode
from spt_jax.t5 import T5, T5Config

SHAPE = T5Config(
    vocab_size=30,
    d_model=16,
    d_kv=8,
    d_ff=24,
    num_heads=2,
    num_layers=1,
    num_decoder_layers=2,
)
MODEL = T5(SHAPE)
INPUTS = jnp.array([[7, 8, 9, 10, 1], [11, 12, 1, 0, 0], [3, 1, 0, 0, 0], [0, 0, 0, 0, 0]])

greedy = jax.jit(decode.greedy, static_argnums=0, static_argnames="length")
answer_log_probs = jax.jit(decode.answer_log_probs, static_argnums=0)
forward = jax.jit(spt_jax.forward.forward, static_argnums=0)


@pytest.fixture(params=[None, 3], ids=["plain", "prompted"])
def params(request):
    t5 = random_params(SHAPE, 4)
    # Logits that differ by more than rounding, and an end marker that some rows choose.
    t5["decoder"]["logits_dense"]["kernel"] *= 3.0
    if request.param is None:
        return {"t5": t5}
    return {"t5": t5, "prompt": jax.random.normal(jax.random.key(1), (request.param, 16))}


def by_hand(params, length):
    """Greedy decoding with the full decoder at every step."""
    ids = np.zeros((4, length), np.int32)
    done = np.array([False, False, False, True])
    for t in range(length):
        logits = np.asarray(forward(MODEL, params, INPUTS, jnp.asarray(ids)))
        ids[:, t] = np.where(done, 0, logits[:, t].argmax(-1))
        done |= ids[:, t] == 1
    return ids


def test_greedy_equals_the_full_decoder_at_every_step(params):
    found = greedy(MODEL, params, INPUTS, length=9)
    assert found.tolist() == by_hand(params, 9).tolist()


def test_rows_end_at_eos_and_padding_rows_write_nothing(params):
    # Force the end marker as the second token: its head row wins wherever token 20 was read.
    eager = jax.tree.map(jnp.copy, params)
    kernel = eager["t5"]["decoder"]["logits_dense"]["kernel"]
    eager["t5"]["decoder"]["logits_dense"]["kernel"] = jnp.zeros_like(kernel)
    found = greedy(MODEL, eager, INPUTS, length=5)
    assert found.tolist() == [[0] * 5] * 4  # all logits equal: id 0, never EOS, full length
    eager["t5"]["decoder"]["logits_dense"]["kernel"] = (
        jnp.zeros_like(kernel).at[:, 1].set(kernel[:, 1])
    )
    found = np.asarray(greedy(MODEL, eager, INPUTS, length=5))
    assert found[3].tolist() == [0] * 5
    for row in found[:3]:
        if 1 in row.tolist():
            assert not row[row.tolist().index(1) + 1 :].any()


def test_stopping_early_changes_nothing(params):
    short, long = (np.asarray(greedy(MODEL, params, INPUTS, length=u)) for u in (4, 12))
    np.testing.assert_array_equal(long[:, :4], short)


def test_answer_log_probs_are_those_of_the_forward_pass(params):
    answers = jnp.array([[4, 5, 1], [6, 1, 0], [7, 8, 1]])
    found = answer_log_probs(MODEL, params, INPUTS, answers)
    for number, answer in enumerate(answers):
        targets = jnp.tile(answer[None], (4, 1))
        log_probs = jax.nn.log_softmax(forward(MODEL, params, INPUTS, targets))
        picked = jnp.take_along_axis(log_probs, targets[..., None], axis=-1)[..., 0]
        expected = jnp.sum(picked * (targets > 0), axis=1)
        np.testing.assert_allclose(found[:, number], expected, atol=1e-4)
