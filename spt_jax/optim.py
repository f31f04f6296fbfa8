"""Optimizers and schedules by name, and the partition that does not update frozen leaves.

A new name also goes into `OptimizerConfig` in `config/train.py`.

`optax.partition` gives `trained` leaves to the optimizer and `frozen` ones to `set_to_zero`.
`optax.masked` alone would not do, because it returns the gradients of unmasked leaves as updates.

Adafactor's preset `t5x_1100k` does what the official prompt runs do. T5X restores the step count
of the pretrained model, 1,100,000, beside an empty second moment v. The decay 1 - (t + 1)**-0.8 is
then within 1.5e-5 of 1 from the first update, so that v is in effect a running sum. Clipping the
update to RMS 1 then sets the step size: the first update is 0.3 times the sign of the gradient.

The factors of a prompt that is not trained directly (`prompts/parameterization.py`) have a learning
rate of their own, and no weight decay, which would shrink the product twice.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from spt_jax.config.train import OptimizerConfig
from spt_jax.errors import choose
from spt_jax.pytree import FACTORS, FROZEN, TRAINED, label_params, leaf_name

PRETRAINED_STEPS = 1_100_000
"""Steps of the LM-adapted T5 1.1 checkpoints: 1M of span corruption, 100k of LM adaptation."""


def make_schedule(config: OptimizerConfig, steps: int, peak: Any = None) -> optax.ScalarOrSchedule:
    """Return the learning rate: a scalar if it is constant, else a function of the step.

    A scalar has no step counter in the optimizer's state.

    Args:
        config: Schedule, peak, warm-up and cool-down.
        steps: Steps of the whole run; `linear` and `cosine` are 0 at its end.
        peak: Peak learning rate, a scalar that may be traced; that of `config` by default.
    """
    peak = config.learning_rate if peak is None else peak
    warmup = config.warmup_steps
    if config.schedule == "constant" and warmup == 0 and config.cooldown_steps == 0:
        return peak

    def rsqrt(count):
        # join_schedules counts from the end of the warm-up, so that `count` is negative during it.
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


def make_optimizer(
    config: OptimizerConfig, steps: int, peak: Any = None
) -> optax.GradientTransformation:
    """Return the optimizer of the trained leaves; the arguments are those of `make_schedule`."""
    rate = make_schedule(config, steps, peak)
    decay = config.weight_decay
    b1 = 0.9 if config.momentum is None else config.momentum
    makers: dict[str, Callable[[], optax.GradientTransformation]] = {
        "adafactor": lambda: _adafactor(config, rate),
        "adamw": lambda: _decayed(optax.scale_by_adam(b1=b1), decay, rate),
        "adam": lambda: optax.adam(rate, b1=b1),
        "lion": lambda: _decayed(optax.scale_by_lion(b1=b1), decay, rate),
        "sgd": lambda: optax.sgd(rate, momentum=config.momentum),
    }
    tx = choose("optimizer.name", config.name, makers)()
    if config.clip_norm is not None:
        tx = optax.chain(optax.clip_by_global_norm(config.clip_norm), tx)
    return _on_factors(tx, lambda update, _: config.factor_rate * update)


def _decayed(
    tx: optax.GradientTransformation, decay: float, rate: optax.ScalarOrSchedule
) -> optax.GradientTransformation:
    """Chain as `optax.adamw` and `optax.lion` do: the rule, weight decay, the learning rate."""
    return optax.chain(tx, _decay(decay), optax.scale_by_learning_rate(rate))


def _decay(decay: float) -> optax.GradientTransformation:
    return _on_factors(optax.add_decayed_weights(decay), lambda _, undecayed: undecayed)


def _on_factors(
    tx: optax.GradientTransformation, change: Callable[[jax.Array, jax.Array], jax.Array]
) -> optax.GradientTransformation:
    """Change the updates of a transformation where a leaf is a factor of a prompt.

    Args:
        tx: Transformation, whose state stays as it is.
        change: Makes the update of a factor, of the update after `tx` and the one before it.
    """

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        after, state = tx.update(updates, state, params)

        def of_leaf(path, after, before):
            name = leaf_name(path)
            of_factor = name.startswith("prompt/") and f"/{FACTORS}/" in name
            return change(after, before) if of_factor else after

        return jax.tree_util.tree_map_with_path(of_leaf, after, updates), state

    return optax.GradientTransformation(tx.init, update)


def _adafactor(
    config: OptimizerConfig, rate: optax.ScalarOrSchedule
) -> optax.GradientTransformation:
    """Make `optax.adafactor` of its own parts, with the two that look at a whole leaf by layer."""
    # optax subtracts the offset from the step, so that the first update of t5x_1100k has the decay
    # of step 1,100,000.
    offset = choose("optimizer.preset", config.preset, {"t5x_1100k": -PRETRAINED_STEPS, "fresh": 0})
    parts = [
        optax.scale_by_factored_rms(
            decay_rate=0.8, step_offset=offset, min_dim_size_to_factor=128, epsilon=1e-30
        ),
        _by_layer(optax.clip_by_block_rms(1.0)),
        optax.scale_by_learning_rate(rate, flip_sign=False),
    ]
    if config.multiply_by_parameter_scale:
        parts.append(_by_layer(optax.scale_by_param_block_rms()))
    if config.momentum is not None:
        parts.append(optax.ema(config.momentum, debias=False))
    if config.weight_decay:
        parts.append(_decay(config.weight_decay))
    return optax.chain(*parts, optax.scale(-1))


def _by_layer(tx: optax.GradientTransformation) -> optax.GradientTransformation:
    """Apply a stateless transformation of single leaves to each layer of a scanned stack alone.

    The layers of a stack are one leaf, [L, ...], of our tree. In T5X's they are L leaves, and the
    RMS of a leaf, which Adafactor clips and scales by, is that of one layer.
    """

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        def of_leaf(path, update, param):
            def apply(update, param):
                return tx.update(update, state, param)[0]

            stacked = "/layers/" in f"/{leaf_name(path)}"
            return (jax.vmap(apply) if stacked else apply)(update, param)

        return jax.tree_util.tree_map_with_path(of_leaf, updates, params), state

    return optax.GradientTransformation(tx.init, update)


def make_tx(config: OptimizerConfig, steps: int, tune: str) -> optax.GradientTransformation:
    """Return the optimizer of a whole params tree, whose frozen leaves may be None.

    Equal settings give one object, so that `jit_step` finds its program again. With a constant
    learning rate, runs of different lengths have equal settings too.

    Args:
        config: Optimizer of the trained leaves.
        steps: Steps of the whole run.
        tune: `prompt` or `model`, as in `label_params`.
    """
    return _make_tx(config, steps if callable(make_schedule(config, steps)) else 0, tune)


@functools.lru_cache
def _make_tx(config: OptimizerConfig, steps: int, tune: str) -> optax.GradientTransformation:
    return partition(make_optimizer(config, steps), tune)


def partition(tx: optax.GradientTransformation, tune: str) -> optax.GradientTransformation:
    """Return a transformation that gives the trained leaves to `tx` and updates no frozen one."""
    return optax.partition(
        {TRAINED: tx, FROZEN: optax.set_to_zero()}, lambda tree: label_params(tree, tune)
    )
