"""Measure a backbone in training on text that it has not seen.

A loss does not show whether the decoder uses the encoder. The *encoder gap* does: it is the loss
with the encoder's inputs rolled by one row, so that every row reads another row's text, minus the
loss. If it is 0, no prompt can steer the model. The share of right answers to each task shows what
a prompt can build on.

Invariant: the mixture alone fixes the rows, so measurements of two steps can be compared.
"""

import jax
import jax.numpy as jnp
import numpy as np

from spt_jax.config.train import LossConfig
from spt_jax.decoding.loop import greedy
from spt_jax.distributed.preemption import poll
from spt_jax.forward import forward
from spt_jax.losses import cross_entropy
from spt_jax.pretraining.mixture import TASKS, Mixture
from spt_jax.t5 import T5
from spt_jax.typing import Array, Batch, Params

GAP_BATCHES = 8  # batches of each group that the gap is measured on
PROBE_ROWS = 256  # rows of each task that the scores are measured on, at least


class Probes:
    """Measurements of a model on a mixture of held-out text.

    Args:
        model: The T5.
        held_out: The mixture. Its long and short batches are measured separately.
    """

    def __init__(self, model: T5, held_out: Mixture):
        self._model, self._held_out = model, held_out
        self._batches: dict[str, list[dict[str, np.ndarray]]] = {g: [] for g in held_out.groups}
        step = 0
        while any(len(batches) < GAP_BATCHES for batches in self._batches.values()):
            group, batch = held_out[step]
            if len(self._batches[group]) < GAP_BATCHES:
                self._batches[group].append(batch)
            step += 1

    def gaps(self, params: Params) -> dict[str, float]:
        """Return loss and gap in nats per target token: `{"short_loss", "short_gap", ...}`."""
        measured = {}
        for group, batches in self._batches.items():
            pairs = []
            for batch in batches:
                poll()
                pairs.append(_right_and_rolled(self._model, params, batch))
            right, rolled = np.mean(jax.device_get(pairs), axis=0)
            measured[f"{group}_loss"] = float(right)
            measured[f"{group}_gap"] = float(rolled - right)
        return measured

    def scores(self, params: Params) -> dict[str, float]:
        """Return the exact match, 0 to 100, of greedy answers to each short task."""
        rows = self._held_out.config.batch_size
        measured = {}
        for name in self._held_out.tasks:
            if TASKS[name].long:
                continue
            right = []
            for step in range(-(-PROBE_ROWS // rows)):
                poll()
                batch = self._held_out.task_batch(name, step)
                length = batch["targets"].shape[1]
                ids = _greedy(self._model, params, batch["inputs"], length=length)
                right.append(np.all(np.asarray(ids) == batch["targets"], axis=1))
            measured[name] = float(100 * np.mean(right))
        return measured


_greedy = jax.jit(greedy, static_argnums=0, static_argnames="length")


@jax.jit(static_argnums=0)
def _right_and_rolled(model: T5, params: Params, batch: Batch) -> tuple[Array, Array]:
    """Return the loss per target token with each row's inputs, and with those of the row before."""

    def per_token(inputs):
        logits = forward(model, params, inputs, batch["targets"])
        sums = cross_entropy(logits, batch["targets"], batch["targets"] > 0, LossConfig(z_loss=0.0))
        return sums.cross_entropy / sums.tokens

    return per_token(batch["inputs"]), per_token(jnp.roll(batch["inputs"], 1, axis=0))
