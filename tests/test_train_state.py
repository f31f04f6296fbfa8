"""Which evaluation is the best: float32 scores, ties, rank scores, and patience."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spt_jax.train_state import TrainState, keep_best, no_best, patience_left


def state(step: int = 1, left: int = -1, best=None) -> TrainState:
    trained = {"prompt": jnp.full((1, 2), float(step))}
    return TrainState(jnp.int32(step), trained, (), best or no_best(trained), jnp.int32(left))


def test_every_first_evaluation_is_the_best_so_far():
    after = keep_best(state(step=3), -100.0, None, 2)
    assert int(after.best.step) == 3 and int(after.patience_left) == 2


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(0, 872), st.none() | st.integers(0, 872))
def test_a_score_is_never_better_than_itself(right, ranked):
    # 444 of 872 is one of the many scores that a Python float rounds down to as a float32.
    score, rank = 100 * right / 872, None if ranked is None else 100 * ranked / 872
    first = keep_best(state(step=1), score, rank, 2)
    second = keep_best(state(step=2, left=2, best=first.best), score, rank, 2)
    assert int(second.best.step) == 1 and int(second.patience_left) == 1


def test_patience_ends_on_a_plateau_of_any_score():
    for right in range(1, 873, 41):
        now = keep_best(state(step=1), 100 * right / 872, None, 3)
        for step in (2, 3, 4):
            now = state(step, int(now.patience_left), now.best)
            now = keep_best(now, 100 * right / 872, None, 3)
        assert int(now.patience_left) == 0, right


def test_the_rank_score_decides_between_equal_scores_and_nothing_else():
    first = keep_best(state(step=1), 0.0, 30.0, None)
    better = keep_best(state(step=2, best=first.best), 0.0, 31.0, None)
    assert int(better.best.step) == 2 and float(better.best.rank_score) == 31.0
    np.testing.assert_array_equal(better.best.trained["prompt"], [[2.0, 2.0]])
    lower = keep_best(state(step=3, best=better.best), -1.0, 90.0, None)
    assert int(lower.best.step) == 2


@pytest.mark.parametrize(
    "left, then, now, expected",
    [
        (-1, None, None, -1),
        (2, 3, None, -1),  # no patience any more: it never stops
        (-1, None, 3, 3),  # a run that gets a patience counts from here
        (2, 3, 3, 2),
        (0, 3, 3, 0),  # still out of patience
        (0, 3, 5, 2),  # three evaluations without gain are over
        (2, 5, 2, 0),
        (4, 5, 2, 1),
    ],
)
def test_the_patience_of_now_decides(left, then, now, expected):
    assert patience_left(left, then, now) == expected
