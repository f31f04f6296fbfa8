import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from spt_jax.config.train import LossConfig
from spt_jax.losses import cross_entropy

LOGITS = 3 * jax.random.normal(jax.random.key(0), (2, 4, 7))
TARGETS = jnp.array([[3, 5, 1, 0], [2, 1, 0, 0]])
MASK = TARGETS > 0


def test_sum_over_target_tokens_equals_optax():
    loss = cross_entropy(LOGITS, TARGETS, MASK, LossConfig(z_loss=0.0))
    theirs = optax.softmax_cross_entropy_with_integer_labels(LOGITS, TARGETS)
    np.testing.assert_allclose(loss.total("sum"), jnp.sum(theirs * MASK), rtol=1e-6)
    np.testing.assert_allclose(loss.total("mean"), jnp.sum(theirs * MASK) / 5, rtol=1e-6)
    assert float(loss.tokens) == 5


def test_z_loss_is_the_squared_log_partition():
    loss = cross_entropy(LOGITS, TARGETS, MASK, LossConfig(z_loss=0.01))
    log_z = np.log(np.exp(np.asarray(LOGITS, np.float64)).sum(-1))
    np.testing.assert_allclose(loss.z_loss, 0.01 * (log_z**2 * MASK).sum(), rtol=1e-6)


def test_label_smoothing_equals_optax_less_the_entropy():
    smoothing = 0.2
    loss = cross_entropy(LOGITS, TARGETS, MASK, LossConfig(z_loss=0.0, label_smoothing=smoothing))
    soft = np.full((2, 4, 7), smoothing / 6)
    np.put_along_axis(soft, np.asarray(TARGETS)[..., None], 1 - smoothing, axis=-1)
    theirs = optax.softmax_cross_entropy(LOGITS, jnp.asarray(soft))
    entropy = -(soft * np.log(soft)).sum(-1)
    np.testing.assert_allclose(loss.cross_entropy, ((theirs - entropy) * MASK).sum(), rtol=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_padding_has_neither_loss_nor_gradient(smoothing):
    config = LossConfig(label_smoothing=smoothing)

    def total(logits):
        return cross_entropy(logits, TARGETS, MASK, config).total("sum")

    grads = jax.grad(total)(LOGITS)
    assert jnp.all(jnp.where(MASK[..., None], 0.0, grads) == 0)
    assert jnp.all(jnp.any(grads != 0, axis=-1) == MASK)


def test_correct_counts_the_highest_logit():
    logits = jnp.zeros((2, 4, 7)).at[0, 0, 3].set(1.0).at[1, 0, 6].set(1.0).at[1, 3, 0].set(1.0)
    assert float(cross_entropy(logits, TARGETS, MASK, LossConfig()).correct) == 1
