"""Optimizers by name, and the partition that leaves frozen leaves alone.

`optax.partition` marks every leaf by label: `trained` leaves go to the optimizer, `frozen` ones to
`set_to_zero`. (A bare `optax.masked` would pass the gradients of unmasked leaves on as updates.)

Adafactor's `t5x_1100k` is what the official prompt runs really do. T5X restores the step count of
the pretrained model, 1,100,000, next to an empty second moment v. Its decay 1 - (t + 1)**-0.8 is
then within 1.5e-5 of 1 from the first update, v is in effect a running sum, and the clipping of
the update to RMS 1 sets the step size: the first update is 0.3 times the sign of the gradient.
"""

import functools
from collections.abc import Callable

import jax.numpy as jnp
import optax

from spt_jax.config.train import OptimizerConfig
from spt_jax.errors import choose
from spt_jax.pytree import FROZEN, TRAINED, label_params

PRETRAINED_STEPS = 1_100_000
"""Steps behind the LM-adapted T5 1.1 checkpoints: 1M of span corruption, 100k of LM adaptation."""


def make_schedule(config: OptimizerConfig, steps: int) -> optax.ScalarOrSchedule:
    """The learning rate: a float if constant (it then has no counter), else a function of the step.

    Args:
        config: Which.
        steps: Steps of the whole run, where `linear` and `cosine` end at 0.
    """
    peak, warmup = config.learning_rate, config.warmup_steps
    if config.schedule == "constant" and warmup == 0 and config.cooldown_steps == 0:
        return peak

    def rsqrt(count):
        # join_schedules counts from the end of the warm-up, so below 0 during it.
        return peak * (warmup / jnp.maximum(count + warmup, 1)) ** 0.5

    schedules: dict[str, Callable[[], optax.Schedule]] = {
        "constant": lambda: optax.constant_schedule(peak),
        "linear": lambda: optax.linear_schedule(peak, 0.0, max(steps - warmup, 1)),
        "cosine": lambda: optax.cosine_decay_schedule(peak, max(steps - warmup, 1)),
        "rsqrt": lambda: rsqrt,
    }
    schedule = choose("optimizer.schedule", config.schedule, schedules)()
    if warmup:
        warm = optax.linear_schedule(0.0, peak, warmup)
        schedule = optax.join_schedules([warm, schedule], [warmup])
    if not config.cooldown_steps:
        return schedule
    start = max(steps - config.cooldown_steps, 0)
    cool = optax.linear_schedule(1.0, 0.0, config.cooldown_steps, transition_begin=start)
    return lambda count: schedule(count) * cool(count)


def make_optimizer(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    """The optimizer of the trained leaves."""
    rate = make_schedule(config, steps)
    decay = config.weight_decay
    b1 = 0.9 if config.momentum is None else config.momentum
    # Negative for t5x_1100k, so that the first update sees the decay of step 1,100,000.
    offset = choose("optimizer.preset", config.preset, {"t5x_1100k": -PRETRAINED_STEPS, "fresh": 0})
    makers: dict[str, Callable[[], optax.GradientTransformation]] = {
        "adafactor": lambda: optax.adafactor(
            rate,
            min_dim_size_to_factor=128,
            decay_rate=0.8,
            decay_offset=offset,
            multiply_by_parameter_scale=config.multiply_by_parameter_scale,
            clipping_threshold=1.0,
            momentum=config.momentum,
            weight_decay_rate=decay or None,
            eps=1e-30,
        ),
        "adamw": lambda: optax.adamw(rate, b1=b1, weight_decay=decay),
        "adam": lambda: optax.adam(rate, b1=b1),
        "lion": lambda: optax.lion(rate, b1=b1, weight_decay=decay),
        "sgd": lambda: optax.sgd(rate, momentum=config.momentum),
    }
    tx = choose("optimizer.name", config.name, makers)()
    if config.clip_norm is not None:
        tx = optax.chain(optax.clip_by_global_norm(config.clip_norm), tx)
    return tx


@functools.lru_cache  # one object for equal settings, so that `jit_step` finds its program
def make_tx(config: OptimizerConfig, steps: int, tune: str) -> optax.GradientTransformation:
    """The optimizer over a whole params tree, frozen leaves included or left out as None.

    Args:
        config: The optimizer of the trained leaves.
        steps: Steps of the whole run.
        tune: `prompt` or `model`, as in `label_params`.
    """
    return optax.partition(
        {TRAINED: make_optimizer(config, steps), FROZEN: optax.set_to_zero()},
        lambda tree: label_params(tree, tune),
    )
