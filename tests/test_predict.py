"""The Predictor answers rows in their order, whatever shares their batch."""

import dataclasses

import numpy as np
import pytest
from support.decoding import SHAPE, make_params
from support.fakes import FakeTokenizer

from spt_jax.config.decode import DecodeConfig
from spt_jax.models.backbone import Backbone
from spt_jax.prediction.predictor import Predictor
from spt_jax.prompts.bank import PromptBank
from spt_jax.t5 import T5

traces: list[tuple[int, ...]] = []


class TracedT5(T5):
    """A T5 that notes the shape of what it encodes, once for each compilation."""

    def encode(self, embedded, *args, **kwargs):
        traces.append(embedded.shape)
        return super().encode(embedded, *args, **kwargs)


BYTES = dataclasses.replace(SHAPE, vocab_size=384)
BACKBONE = Backbone(
    "bytes", TracedT5(BYTES), make_params(BYTES, eos=2.0)["t5"], FakeTokenizer(), "0" * 64
)
PROMPTS = {
    "a": np.random.default_rng(0).standard_normal((3, 16)).astype(np.float32),
    "b": np.random.default_rng(1).standard_normal((7, 16)).astype(np.float32),
}
BANK = PromptBank.from_prompts(PROMPTS, 16, capacity=3)
ROWS = [
    ("a", "short"), ("b", "a text that is longer than the others are"), (None, "x"),
    ("b", "short"), (None, "short"), ("a", ""), ("b", "of middling length"),
]  # fmt: skip


def predictor(bank=BANK, **changes):
    settings = {"inputs_length": 48, "targets_length": 5, "batch_size": 3}
    return Predictor(BACKBONE, bank, **{**settings, **changes})


def assert_alike(found, expected):
    assert [answers.texts for answers in found] == [answers.texts for answers in expected]
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one.scores, other.scores, rtol=1e-4)


@pytest.mark.parametrize(
    "decode",
    [
        pytest.param(DecodeConfig(), id="greedy"),
        pytest.param(
            DecodeConfig(sample=True, temperature=2.0), id="sample", marks=pytest.mark.slow
        ),
        pytest.param(DecodeConfig(num_beams=3, num_results=2), id="beams", marks=pytest.mark.slow),
    ],
)
def test_answers_do_not_depend_on_batches_and_keep_the_order(decode):
    numbers = [20, 30, 40, 50, 60, 70, 80]
    together = predictor(decode=decode).predict(ROWS, numbers)
    one_by_one = predictor(decode=decode)
    expected = [
        one_by_one.predict([row], [number])[0] for row, number in zip(ROWS, numbers, strict=True)
    ]
    assert_alike(together, expected)
    assert_alike(predictor(decode=decode).predict(ROWS[::-1], numbers[::-1]), together[::-1])
    assert {len(answers.texts) for answers in together} == {decode.num_results}
    assert len({answers.scores for answers in together}) == len(ROWS)
    assert all(list(answers.scores) == sorted(answers.scores)[::-1] for answers in together)


def test_what_a_row_draws_depends_on_seed_and_number_and_on_nothing_else():
    sample = DecodeConfig(sample=True, temperature=3.0)
    row = ("a", "the same text")
    first = predictor(decode=sample).predict([row] * 4, [5, 6, 5, 7])
    assert first[0] == first[2] and len({first[0], first[1], first[3]}) == 3
    assert predictor(decode=sample).predict([row], [7])[0].texts == first[3].texts
    assert predictor(decode=sample, seed=1).predict([row], [5]) != first[:1]
    assert predictor(decode=sample).predict([row] * 7)[5].texts == first[0].texts


def test_one_compilation_a_bucket_however_many_rows_and_prompts():
    traces.clear()
    answering = predictor(inputs_length=80, batch_size=4)
    texts = ["x" * size for size in (0, 5, 31, 32, 40, 63, 70, 79)]
    for bank in (BANK, BANK.add("c", PROMPTS["a"]), BANK.remove("b")):
        answering.bank = bank
        answering.predict([("a", text) for text in texts * 3])
        answering.predict([(None, text) for text in texts[:1]])
        answering.predict([("a", text) for text in texts[5:]])
    assert traces == [(4, 7 + width, 16) for width in (80, 64, 40, 32, 8)]


def test_no_rows_give_no_answers():
    assert predictor().predict([]) == [] == predictor().problems([])


def test_bad_rows_are_named_by_their_number():
    rows = [("a", "fine"), ("A", "fine"), ("b", "x" * 48)]
    unknown = r"unknown prompt 'A'; the bank has a, b \(did you mean 'a'\?\)"
    long = (
        "the text has 49 tokens with its end marker but inputs_length is 48; "
        "set --inputs_length to 49 or more"
    )
    with pytest.raises(ValueError, match=r"seed is 4294967296, expected 0 or more, and less than"):
        predictor(seed=2**32)
    with pytest.raises(ValueError, match="^row 12: " + unknown):
        predictor().predict(rows, [11, 12, 13])
    with pytest.raises(ValueError, match="^row 1: " + long):
        predictor().predict(rows[::2])
    fine, first, second = predictor().problems(rows)
    assert fine is None and second == long
    with pytest.raises(ValueError, match=unknown):
        raise ValueError(first)
