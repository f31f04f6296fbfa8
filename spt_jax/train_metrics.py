"""What the log says of a training step: its loss, accuracy and norms.

What the log says of an evaluation is `Scores.to_dict` in `evaluation/scores.py`, and its speed is
in `runs/timing.py`.
"""

import math
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import optax

from spt_jax.errors import RunError
from spt_jax.losses import Loss
from spt_jax.typing import Array, PyTree


def step_metrics(sums: Loss, grads: PyTree, updates: PyTree, trained: Any) -> dict[str, Array]:
    """Return scalars on the device: the values of a step's line in the log.

    Args:
        sums: Sums over the target tokens of the batch.
        grads: Gradient with respect to the trained leaves.
        updates: Updates of the trained leaves.
        trained: Trained leaves after the update.

    Returns:
        `loss` (nats per target token), `z_loss`, `token_accuracy`, `grad_norm`, `update_norm`, and
        `prompt_norm` (mean L2 norm of the prompt's rows) if a prompt is trained.
    """
    tokens = jnp.maximum(sums.tokens, 1)
    metrics = {
        "loss": sums.cross_entropy / tokens,
        "z_loss": sums.z_loss / tokens,
        "token_accuracy": sums.correct / tokens,
        "grad_norm": optax.tree.norm(grads),
        "update_norm": optax.tree.norm(updates),
    }
    if trained.get("prompt") is not None:
        metrics["prompt_norm"] = jnp.mean(jnp.linalg.norm(trained["prompt"], axis=-1))
    return metrics


def require_finite(step: int, metrics: Mapping[str, float]) -> None:
    """Require that the metrics of `train_step` are finite.

    Raises:
        RunError: A metric is not; the message names it and the step.
    """
    bad = [name for name, value in metrics.items() if not math.isfinite(value)]
    if bad:
        shown = ", ".join(f"{name} {float(value):.3g}" for name, value in metrics.items())
        raise RunError(
            f"{bad[0]} is {float(metrics[bad[0]])} at step {step} ({shown}); "
            "lower optimizer.learning_rate or set optimizer.clip_norm, and run again"
        )
