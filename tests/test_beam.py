import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import decoding
from support.decoding import INPUTS, MODEL, SHAPE, make_params, next_log_probs

from spt_jax.config.decode import DecodeConfig
from spt_jax.decoding.beam import beam_search
from spt_jax.decoding.loop import EOS_ID, likeliest, write
from spt_jax.t5 import T5

search = jax.jit(beam_search, static_argnums=(0, 3), static_argnames="length")

FOUR, LENGTH = DecodeConfig(num_beams=4, num_results=4), 5


def search_by_hand(params, row, length, beams, penalty):
    """[(score, answer)] of one row, best first, with the full decoder at every step."""
    running, ended = [(0.0, ())], []
    for t in range(length):
        written = [answer for _, answer in running]
        padded = written + written[:1] * (beams - len(written))  # one shape for every step
        after = next_log_probs(params, row, padded, length)[: len(written)]
        candidates = [
            (log_prob + more, (*answer, token))
            for (log_prob, answer), row_after in zip(running, after, strict=True)
            for token, more in enumerate(row_after.tolist())
        ]
        candidates = sorted(candidates, reverse=True)[: 2 * beams]
        running = []
        for rank, (log_prob, answer) in enumerate(candidates):
            if answer[-1] == EOS_ID or t == length - 1:
                ended += [(log_prob / (t + 1) ** penalty, answer)] if rank < beams else []
            elif len(running) < beams:
                running.append((log_prob, answer))
        ended = sorted(ended, reverse=True)[:beams]
        if len(ended) == beams and running and running[0][0] / (t + 1) ** penalty <= ended[-1][0]:
            break
    return ended


def unpadded(ids) -> list[tuple]:
    """Answers as tuples that end in EOS or are full."""
    rows = np.asarray(ids).tolist()
    return [tuple(row[: row.index(EOS_ID) + 1] if EOS_ID in row else row) for row in rows]


@pytest.mark.parametrize("prompt, results, penalty", [(None, 3, 0.6), (3, 4, 1.0), (None, 2, 2.0)])
def test_it_is_the_search_by_hand_with_the_full_decoder(prompt, results, penalty):
    params = make_params(prompt=prompt, eos=1.5)
    config = dataclasses.replace(FOUR, num_results=results, length_penalty=penalty)
    ids, scores = search(MODEL, params, INPUTS, config, length=LENGTH)
    for number, row in enumerate(INPUTS[:3]):
        expected = search_by_hand(params, row, LENGTH, 4, penalty)[:results]
        answers = unpadded(ids[number])
        assert answers == [answer for _, answer in expected]
        np.testing.assert_allclose(scores[number], [score for score, _ in expected], rtol=1e-5)
        assert len(set(answers)) == results and np.all(np.diff(scores[number]) <= 0)
    assert len({len(answer) for row in ids[:3] for answer in unpadded(row)}) > 1
    assert not np.any(ids[3]) and np.all(np.isneginf(scores[3]))  # padding has nothing to say


def test_one_beam_is_greedy():
    params, one = make_params(prompt=3), DecodeConfig(length_penalty=0.0)
    ids, scores = search(MODEL, params, INPUTS, one, length=9)
    run = jax.jit(functools.partial(write, MODEL, choose=likeliest, length=9))
    expected, log_probs, _ = run(params, INPUTS)
    assert 0 < np.sum(np.any(np.asarray(expected) == EOS_ID, axis=1)) < 3
    np.testing.assert_array_equal(ids[:, 0], expected)
    np.testing.assert_allclose(scores[:, 0], log_probs, rtol=1e-5)


def test_enough_beams_find_the_best_of_all_sequences():
    penalty, small = 0.6, dataclasses.replace(SHAPE, vocab_size=8)
    model, params = T5(small), make_params(small)
    inputs = INPUTS % 8
    config = DecodeConfig(num_beams=64, num_results=1, length_penalty=penalty)
    ids, scores = search(model, params, inputs, config, length=3)
    pairs = list(itertools.product(range(8), repeat=2))
    for number, row in enumerate(inputs[:3]):
        logits = decoding.forward(
            model,
            params,
            np.tile(row, (64, 1)),
            np.pad(np.array(pairs, np.int32), ((0, 0), (0, 1))),
        )
        first, second, third = np.moveaxis(np.asarray(jax.nn.log_softmax(logits)), 1, 0)
        every = {(EOS_ID,): first[0, EOS_ID]}
        for n, (a, b) in enumerate(pairs):
            if a != EOS_ID:
                every[a, b] = (first[n, a] + second[n, b]) / 2**penalty
                if b != EOS_ID:
                    more = (first[n, a] + second[n, b] + third[n]) / 3**penalty
                    every.update({(a, b, c): more[c] for c in range(8)})
                    del every[a, b]
        best = max(every, key=every.get)
        assert unpadded(ids[number]) == [best]
        np.testing.assert_allclose(scores[number, 0], every[best], rtol=1e-5)


def test_a_row_depends_on_no_other_row():
    params = make_params(prompt=3, eos=1.5)
    ids, scores = search(MODEL, params, INPUTS, FOUR, length=LENGTH)
    others = INPUTS[[2, 3, 0, 3]]
    found, their_scores = search(MODEL, params, others, FOUR, length=LENGTH)
    np.testing.assert_array_equal(found, ids[np.array([2, 3, 0, 3])])
    np.testing.assert_allclose(their_scores[::2], scores[np.array([2, 0])], rtol=1e-5)


def test_the_loop_ends_when_the_answers_of_every_row_are_final():
    params, model = make_params(eos=4.0), decoding.CountingT5(SHAPE)
    decoding.steps.clear()
    ids, scores = search(model, params, INPUTS, FOUR, length=12)
    jax.effects_barrier()
    longest = max(len(answer) for row in ids for answer in unpadded(row) if any(answer))
    assert 1 < longest <= len(decoding.steps) < 12
    for number, row in enumerate(INPUTS[:3]):  # each row by hand to its own end
        expected = search_by_hand(params, row, 12, 4, 1.0)
        assert unpadded(ids[number]) == [answer for _, answer in expected]


def test_places_without_an_answer_are_empty():
    small = dataclasses.replace(SHAPE, vocab_size=8)
    config = DecodeConfig(num_beams=10, num_results=10)
    ids, scores = search(T5(small), make_params(small), INPUTS % 8, config, length=1)
    for row in range(3):  # there are 8 answers of one token
        assert sorted(ids[row, :8, 0].tolist()) == list(range(8))
        np.testing.assert_allclose(np.exp(scores[row]).sum(), 1, rtol=1e-5)
    assert not np.any(ids[:, 8:]) and np.all(np.isneginf(scores[:, 8:]))


def test_scores_in_bfloat16_are_those_of_its_full_decoder():
    model, params = T5(SHAPE, dtype=jnp.bfloat16), make_params(eos=1.5)
    ids, scores = search(model, params, INPUTS, FOUR, length=LENGTH)
    assert scores.dtype == jnp.float32
    for number in range(3):
        logits = decoding.forward(model, params, np.tile(INPUTS[number], (4, 1)), ids[number])
        log_probs = np.asarray(jax.nn.log_softmax(logits))
        for answer, row, score in zip(
            unpadded(ids[number]), log_probs, scores[number], strict=True
        ):
            expected = sum(row[t, token] for t, token in enumerate(answer)) / len(answer)
            np.testing.assert_allclose(score, expected, rtol=0.03)


def test_keys_are_there_once_and_stay_where_they_are():
    config = DecodeConfig(num_beams=7)
    run = functools.partial(beam_search, MODEL, config=config, length=11)
    inputs = jnp.ones((3, 13), jnp.int32)
    every = list(decoding.equations(jax.make_jaxpr(run)(make_params(), inputs).jaxpr))
    shapes = {variable.aval.shape for equation in every for variable in equation.outvars}
    assert any({7 * 11, 8} <= set(shape) for shape in shapes)  # keys of the beams: M * U, H
    assert any({13, 8} <= set(shape) for shape in shapes)  # of the encoder's output: S, H
    assert not any({7, 13, 8} <= set(shape) for shape in shapes)
    makers = {
        equation.primitive.name
        for equation in every
        for variable in equation.outvars
        if {7 * 11, 8} <= set(variable.aval.shape)
    }
    assert "dynamic_update_slice" in makers and "gather" not in makers, makers
