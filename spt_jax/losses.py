"""Cross-entropy and z-loss over the target tokens, as T5X computes them."""

import dataclasses

import jax
import jax.numpy as jnp

from spt_jax.config.train import LossConfig
from spt_jax.errors import choose
from spt_jax.typing import Array, Bool, Float, Int


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Loss:
    """Sums over the target tokens of a batch.

    Args:
        cross_entropy: Cross-entropy in nats; with label smoothing, minus its lower bound.
        z_loss: Penalty z_loss * log(Z)**2, weighted.
        tokens: Number of target tokens, EOS included.
        correct: Number of target tokens that have the highest logit.
    """

    cross_entropy: Float[Array, ""]
    z_loss: Float[Array, ""]
    tokens: Float[Array, ""]
    correct: Float[Array, ""]

    def total(self, reduction: str) -> Float[Array, ""]:
        """Return the loss to minimize: the `sum` over the tokens, or their `mean`.

        Raises:
            ValueError: `reduction` is neither.
        """
        total = self.cross_entropy + self.z_loss
        mean = total / jnp.maximum(self.tokens, 1)
        return choose("reduction", reduction, {"sum": total, "mean": mean})


def token_losses(
    logits: Float[Array, "B U V"], targets: Int[Array, "B U"], config: LossConfig
) -> tuple[Float[Array, "B U"], Float[Array, "B U"]]:
    """Return the cross-entropy and the z-loss of every target, padding included.

    With label smoothing s, the target distribution is 1 - s on the token and s / (V - 1) on every
    other one. Its entropy is subtracted, so that a perfect model has loss 0.
    """
    log_z = jax.nn.logsumexp(logits, axis=-1)
    picked = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    loss = log_z - picked
    if config.label_smoothing:
        vocab = logits.shape[-1]
        on, off = 1 - config.label_smoothing, config.label_smoothing / (vocab - 1)
        others = log_z * (vocab - 1) - (jnp.sum(logits, axis=-1) - picked)
        lowest = -(on * jnp.log(on) + (vocab - 1) * off * jnp.log(off + 1e-20))
        loss = on * loss + off * others - lowest
    return loss, config.z_loss * jnp.square(log_z)


def cross_entropy(
    logits: Float[Array, "B U V"],
    targets: Int[Array, "B U"],
    mask: Bool[Array, "B U"],
    config: LossConfig,
) -> Loss:
    """Return the loss of a batch over the targets where `mask` is True."""
    loss, z_loss = token_losses(logits, targets, config)
    correct = jnp.argmax(logits, axis=-1) == targets

    def total(x):
        return jnp.sum(jnp.where(mask, x, jnp.zeros((), logits.dtype)))

    return Loss(total(loss), total(z_loss), total(jnp.ones_like(loss)), total(correct))
