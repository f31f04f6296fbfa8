"""The state of a run, which is what a checkpoint holds; which evaluation is the best so far.

A leaf that is added here is missing in older checkpoints: name it in `added=` in `loop.py`.

Evaluations compare by (score, rank_score) in float32, the precision that checkpoints keep: a Python
float would often beat its own rounded value. Equal pairs are no gain, so the first of them stays.
The rank score decides between equal scores, as where a prompt cannot make the model write a label
yet and every score is 0.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct

from spt_jax.typing import Array, Int, PyTree


@struct.dataclass
class Best:
    """The best evaluation so far.

    Args:
        step: Its step, 0 before the first evaluation.
        score: Its score on dev, -inf before the first evaluation.
        rank_score: Its rank score; -inf where there is none.
        trained: The trained leaves at that step.
    """

    step: Int[Array, ""]
    score: Array
    rank_score: Array
    trained: PyTree


@struct.dataclass
class TrainState:
    """The whole state of a run, and the content of a checkpoint.

    Args:
        step: Number of updates done.
        trained: Trained leaves of the params tree; frozen leaves are None.
        opt_state: Slots of the optimizer, for trained leaves only.
        best: The `Best` so far; None in pretraining, which keeps the last weights.
        patience_left: Evaluations without improvement until the run stops; -1 for no limit.
    """

    step: Int[Array, ""]
    trained: PyTree
    opt_state: Any
    best: Any
    patience_left: Int[Array, ""]


def init_state(
    trained: PyTree, tx: optax.GradientTransformation, *, patience: int | None, keep_best: bool
) -> TrainState:
    """Return the state before the first step."""
    return TrainState(
        step=jnp.int32(0),
        trained=trained,
        opt_state=tx.init(trained),
        best=no_best(trained) if keep_best else None,
        patience_left=jnp.int32(-1 if patience is None else patience),
    )


def no_best(trained: PyTree) -> Best:
    """Return the best of no evaluation. Scores start below all others: correlations reach -100."""
    # A copy: the state is donated leaf by leaf, and a buffer can be donated only once.
    lowest = jnp.float32(-jnp.inf)
    return Best(jnp.int32(0), lowest, jnp.copy(lowest), jax.tree.map(jnp.copy, trained))


def keep_best(
    state: TrainState, score: float, rank_score: float | None, patience: int | None
) -> TrainState:
    """Return the train state after an evaluation of its step.

    Args:
        state: The `TrainState` that was evaluated.
        score: Its score.
        rank_score: Its rank score, where it has one.
        patience: Evaluations without gain after which the run stops; None for never.
    """
    best = state.best
    rank = -np.inf if rank_score is None else rank_score
    pair = np.float32(score), np.float32(rank)
    gain = pair > (np.float32(best.score), np.float32(best.rank_score))
    if gain:
        trained = jax.tree.map(jnp.copy, state.trained)
        scores = put_scalar(score, best.score), put_scalar(rank, best.rank_score)
        best = Best(jnp.copy(state.step), *scores, trained)
    if patience is None:
        left = -1
    elif gain:
        left = patience
    else:
        left = (int(state.patience_left) if state.patience_left >= 0 else patience) - 1
    return dataclasses.replace(
        state, best=best, patience_left=put_scalar(left, state.patience_left)
    )


def put_scalar(value: float, old: Array) -> Array:
    """Return a scalar with the dtype and the placement of the leaf `old` that it replaces.

    jax compiles a step once more for a state of which one leaf is placed in another way.
    """
    array = np.asarray(value, old.dtype)
    return jax.make_array_from_callback((), old.sharding, lambda _: array)


def patience_left(left: int, then: int | None, now: int | None) -> int:
    """Return the evaluations that a resumed run may still take without gain; -1 for any number.

    Args:
        left: The evaluations that were left when the run was saved; -1 for any number.
        then: The patience of the run when it was saved.
        now: The patience with which it is resumed. A run that starts to have one counts from here.
    """
    if now is None:
        return -1
    if then is None or left < 0:
        return now
    return max(now - (then - left), 0)
