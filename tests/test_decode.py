import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import decoding
from support.decoding import INPUTS, MODEL, SHAPE, forward, make_params

from spt_jax.decoding import loop as decode

greedy = jax.jit(decode.greedy, static_argnums=0, static_argnames="length")
write = jax.jit(decode.write, static_argnums=(0, 3), static_argnames="length")
answer_log_probs = jax.jit(decode.answer_log_probs, static_argnums=0)


@pytest.fixture(params=[None, 3], ids=["plain", "prompted"])
def params(request):
    return make_params(prompt=request.param)


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
    found = greedy(MODEL, eager, INPUTS, length=9)
    assert found.tolist() == [[0] * 9] * 4  # all logits equal: id 0, never EOS, full length
    eager["t5"]["decoder"]["logits_dense"]["kernel"] = (
        jnp.zeros_like(kernel).at[:, 1].set(kernel[:, 1])
    )
    found = np.asarray(greedy(MODEL, eager, INPUTS, length=9))
    assert found[3].tolist() == [0] * 9
    for row in found[:3]:
        if 1 in row.tolist():
            assert not row[row.tolist().index(1) + 1 :].any()


def test_stopping_early_changes_nothing(params):
    short, long = (np.asarray(greedy(MODEL, params, INPUTS, length=u)) for u in (4, 9))
    np.testing.assert_array_equal(long[:, :4], short)


def test_the_loop_ends_with_its_last_row():
    params, model = make_params(eos=4.0), decoding.CountingT5(SHAPE)
    decoding.steps.clear()
    ids = np.asarray(greedy(model, params, INPUTS, length=12))
    jax.effects_barrier()
    longest = max(row.tolist().index(decode.EOS_ID) + 1 for row in ids[:3])
    assert decoding.steps == list(range(longest)) and 1 < longest < 12


def test_log_probs_are_the_models_whatever_was_chosen():
    params = make_params()

    def choose(logits, position):
        return jnp.where(position == jnp.arange(4), decode.EOS_ID, 5 + position)

    ids, log_probs, of_tokens = write(MODEL, params, INPUTS, choose, length=6)
    assert ids[:, :4].tolist() == [[1, 0, 0, 0], [5, 1, 0, 0], [5, 6, 1, 0], [0, 0, 0, 0]]
    expected = jnp.diagonal(answer_log_probs(MODEL, params, INPUTS, ids))
    np.testing.assert_allclose(log_probs[:3], expected[:3], rtol=1e-5)
    assert np.isneginf(log_probs[3])
    np.testing.assert_allclose(of_tokens.sum(axis=1)[:3], expected[:3], rtol=1e-5)
    np.testing.assert_array_equal(of_tokens != 0, ids > 0)


def test_answer_log_probs_are_those_of_the_forward_pass(params):
    answers = jnp.array([[4, 5, 1], [6, 1, 0], [7, 8, 1]])
    found = answer_log_probs(MODEL, params, INPUTS, answers)
    for number, answer in enumerate(answers):
        targets = jnp.tile(answer[None], (4, 1))
        log_probs = jax.nn.log_softmax(forward(MODEL, params, INPUTS, targets))
        picked = jnp.take_along_axis(log_probs, targets[..., None], axis=-1)[..., 0]
        expected = jnp.sum(picked * (targets > 0), axis=1)
        np.testing.assert_allclose(found[:, number], expected, atol=1e-4)


def test_the_encoders_output_is_shared_by_all_answers():
    answers = jnp.array([[4, 5, 1], [6, 1, 0], [7, 8, 1]])
    run = jax.make_jaxpr(
        lambda: decode.answer_log_probs(MODEL, make_params(), jnp.asarray(INPUTS), answers)
    )
    every = list(decoding.equations(run().jaxpr))
    shapes = {variable.aval.shape for equation in every for variable in equation.outvars}
    keys_of_inputs, keys_of_answers = (4, 5, 2, 8), (4, 3, 2, 8)  # [B, S, N, H] and [B, U, N, H]
    assert {keys_of_inputs, (3, *keys_of_answers)} <= shapes
    assert (3, *keys_of_inputs) not in shapes
