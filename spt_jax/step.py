"""One optimizer step: the same for prompt tuning, model tuning and pretraining.

    trained, frozen = split(params, label_params(params, tune))

Gradients are taken with respect to `trained` alone. A prompt that is not trained directly is folded
into [P, D] before the forward pass, and its gradient goes back through that fold. A text may pull
the prompt; its term of the loss is a function of the prompt alone.

`frozen` is an argument, so that it is neither a constant of the compiled step nor donated with the
state. The dropout key of step n is a function of (seed, n), so that a resumed run draws the same
masks as an undisturbed one.

`train_steps` is the same step for the prompts of several runs in one program.
"""

import dataclasses
import functools
import math
import platform as machine
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding

from spt_jax.config.train import LossConfig, OptimizerConfig
from spt_jax.errors import RunError, choose
from spt_jax.forward import forward
from spt_jax.losses import Loss, cross_entropy
from spt_jax.optim import make_optimizer, partition
from spt_jax.prompts.parameterization import fold_params, materialize
from spt_jax.prompts.wayward import Pull
from spt_jax.pytree import merge
from spt_jax.sharding import constrain, platform
from spt_jax.t5 import T5, Segments
from spt_jax.train_state import TrainState
from spt_jax.typing import Array, Batch, Key, PyTree


def loss_and_grads(
    trained: PyTree,
    frozen: PyTree,
    batch: Batch,
    key: Key,
    *,
    model: T5,
    loss: LossConfig,
    accumulate: int = 1,
) -> tuple[Loss, PyTree]:
    """Return the loss of a batch and its gradient with respect to `trained`.

    Args:
        trained: Leaves to differentiate.
        frozen: All other leaves.
        batch: Rows of `inputs` and `targets`; their segments if rows hold several examples; the
            `prompt_mask` [B, P] of `forward.prepend` if it is not all True.
        key: Key of the dropout; unused without dropout.
        model: The T5.
        loss: Loss to minimize.
        accumulate: Number of micro-batches, which are in memory one after the other. The sums over
            them are those of the whole batch; only the dropout masks differ.
    """

    def loss_fn(trained, batch, key):
        sums = cross_entropy(
            forward(
                model,
                merge(trained, frozen),
                batch["inputs"],
                batch["targets"],
                prompt_mask=batch.get("prompt_mask"),
                segments=_segments(batch),
                dropout_key=key if model.dropout_rate else None,
            ),
            batch["targets"],
            batch["targets"] > 0,
            loss,
        )
        return sums.total("sum"), sums

    grad_fn = jax.grad(loss_fn, has_aux=True)
    if accumulate == 1:
        grads, sums = grad_fn(trained, batch, key)
    else:
        micro = jax.tree.map(lambda x: x.reshape(accumulate, -1, *x.shape[1:]), batch)
        micro = constrain(micro, ".B.", model.mesh)  # cut the rows of each over all devices
        keys = jax.random.split(key, accumulate)
        shapes = jax.eval_shape(grad_fn, trained, jax.tree.map(lambda x: x[0], micro), key)
        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)

        def add(total, part):
            return jax.tree.map(jnp.add, total, grad_fn(trained, *part)), None

        (grads, sums), _ = jax.lax.scan(add, zeros, (micro, keys))
    if choose("loss.reduction", loss.reduction, {"mean": True, "sum": False}):
        tokens = jnp.maximum(sums.tokens, 1)
        grads = jax.tree.map(lambda g: g / tokens.astype(g.dtype), grads)
    return sums, grads


def _segments(batch: Batch) -> Segments | None:
    if "inputs_segments" not in batch:
        return None
    return Segments(batch["inputs_segments"], batch["targets_segments"])


def train_step(
    state: TrainState,
    frozen: PyTree,
    batch: Batch,
    key: Key,
    pull: Pull | None = None,
    *,
    model: T5,
    tx: optax.GradientTransformation,
    loss: LossConfig,
    accumulate: int = 1,
) -> tuple[TrainState, dict[str, Array]]:
    """Update the trained leaves once. `jit_step` jits this pure function and donates `state`.

    Args:
        state: State, whose `step`, `trained` and `opt_state` change.
        frozen: Leaves that do not change.
        batch: Rows of this step.
        key: Key of the run, the same at every step.
        pull: Term of the loss that pulls the prompt towards a text, if there is one.
        model: The T5.
        tx: Optimizer of `make_tx`.
        loss: Loss to minimize.
        accumulate: Micro-batches of this step.

    Returns:
        The next state, and the `step_metrics` of this step.
    """
    key = jax.random.fold_in(key, state.step)
    trained, unfold = jax.vjp(fold_params, state.trained)
    sums, grads = loss_and_grads(
        trained, frozen, batch, key, model=model, loss=loss, accumulate=accumulate
    )
    grads, distance = _add_pull(pull, trained, grads, sums, loss)
    [grads] = unfold(grads)
    return _apply(state, sums, grads, distance, tx)


def _add_pull(
    pull: Pull | None, trained: PyTree, grads: PyTree, sums: Loss, loss: LossConfig
) -> tuple[PyTree, dict[str, Array]]:
    """Add the gradient of the term that pulls a prompt towards a text, and return its distance."""
    if pull is None:
        return grads, {}
    distance, slope = jax.value_and_grad(pull.distance)(trained["prompt"])
    tokens = jnp.maximum(sums.tokens, 1)
    times = choose("loss.reduction", loss.reduction, {"mean": jnp.ones_like(tokens), "sum": tokens})
    prompt = grads["prompt"] + (pull.gamma * times).astype(slope.dtype) * slope
    return {**grads, "prompt": prompt}, {"text_distance": distance}


def _apply(
    state: TrainState,
    sums: Loss,
    grads: PyTree,
    distance: dict[str, Array],
    tx: optax.GradientTransformation,
) -> tuple[TrainState, dict[str, Array]]:
    """Return the next state, given the gradients of this one, and the metrics of the step."""
    updates, opt_state = tx.update(grads, state.opt_state, state.trained)
    trained: Any = optax.apply_updates(state.trained, updates)
    metrics = {**step_metrics(sums, grads, updates, trained), **distance}
    state = dataclasses.replace(state, step=state.step + 1, trained=trained, opt_state=opt_state)
    return state, metrics


def step_metrics(sums: Loss, grads: PyTree, updates: PyTree, trained: Any) -> dict[str, Array]:
    """Return scalars on the device: what the log says of a step.

    What the log says of an evaluation is `Scores.to_dict` in `evaluation/scores.py`, and its speed
    is in `runs/timing.py`.

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
        prompt = materialize(trained["prompt"])
        metrics["prompt_norm"] = jnp.mean(jnp.linalg.norm(prompt, axis=-1))
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


def train_steps(
    states: Sequence[TrainState],
    frozen: PyTree,
    batch: Batch,
    keys: Sequence[Key],
    rates: Sequence[float | Array],
    pulls: Sequence[Pull | None] | None = None,
    *,
    model: T5,
    optimizers: Sequence[tuple[OptimizerConfig, int]],
    loss: LossConfig,
    accumulate: int = 1,
) -> tuple[tuple[TrainState, ...], tuple[dict[str, Array], ...]]:
    """Update the prompts of K runs once, each as `train_step` updates that of a run alone.

    The forward and the backward pass are `loss_and_grads` mapped over the runs, so that rows of all
    prompts pass through the frozen model together. Prompts of different lengths are padded on the
    left and masked. Everything behind the gradients is computed for each run by itself, with its
    own optimizer and without padding.

    Args:
        states: State of each run, which trains a prompt and nothing else.
        frozen: Leaves that do not change, the same for all runs.
        batch: Rows of this step of each run, arrays [K, B, ...].
        keys: Key of each run, the same at every step.
        rates: Peak learning rate of each run, which replaces that in `optimizers`.
        pulls: Term of the loss of each run that pulls its prompt towards a text; None for none.
        model: The T5.
        optimizers: Optimizer and number of all steps of each run.
        loss: Loss to minimize.
        accumulate: Micro-batches of this step.

    Returns:
        The next state and the `step_metrics` of each run.
    """
    folded, unfold = zip(*(jax.vjp(fold_params, state.trained) for state in states))
    lengths = [len(trained["prompt"]) for trained in folded]
    longest, rows = max(lengths), batch["inputs"].shape[1]
    padded = [
        jax.tree.map(lambda p, n=n: jnp.pad(p, ((longest - n, 0), (0, 0))), trained)
        for trained, n in zip(folded, lengths)
    ]
    prompts = jax.tree.map(lambda *prompts: jnp.stack(prompts), *padded)
    mask = np.arange(longest) >= longest - np.array(lengths)[:, None]
    masks = jnp.broadcast_to(mask[:, None], (len(states), rows, longest))
    step_keys = [jax.random.fold_in(key, state.step) for key, state in zip(keys, states)]
    sums, grads = jax.vmap(
        functools.partial(loss_and_grads, model=model, loss=loss, accumulate=accumulate),
        in_axes=(0, None, 0, 0),
    )(prompts, frozen, {**batch, "prompt_mask": masks}, jnp.stack(step_keys))
    nexts, metrics = [], []
    for k, (state, n, rate) in enumerate(zip(states, lengths, rates)):
        config, steps = optimizers[k]
        tx = partition(make_optimizer(config, steps, rate), "prompt")
        of_run = jax.tree.map(lambda x, k=k: x[k], sums)
        gradient = jax.tree.map(lambda g, k=k, n=n: g[k, longest - n :], grads)
        pull = None if pulls is None else pulls[k]
        gradient, distance = _add_pull(pull, folded[k], gradient, of_run, loss)
        [gradient] = unfold[k](gradient)
        state, of_step = _apply(state, of_run, gradient, distance, tx)
        nexts.append(state)
        metrics.append(of_step)
    return tuple(nexts), tuple(metrics)


def jit_step(
    model: T5,
    tx: optax.GradientTransformation,
    loss: LossConfig,
    *,
    accumulate: int = 1,
    shardings: PyTree = None,
) -> Callable[..., tuple[TrainState, dict[str, Array]]]:
    """Return `train_step` as a jitted function of its array arguments that donates `state`.

    Equal arguments give the same function. So the next run of a process, such as the next one of a
    sweep, neither traces nor compiles the step again.

    Args:
        model: The T5, whose mesh runs the step.
        tx: From `make_tx`, which returns one object for equal settings.
        loss: The training loss.
        accumulate: Micro-batches of a step.
        shardings: Of the next state and of the metrics; None leaves them to XLA.
    """
    options = ("tx", tx), ("loss", loss), ("accumulate", accumulate)
    return _jit_with(train_step, model, options, shardings)


def jit_steps(
    model: T5,
    optimizers: Sequence[tuple[OptimizerConfig, int]],
    loss: LossConfig,
    *,
    accumulate: int = 1,
    shardings: PyTree = None,
) -> Callable[..., tuple[tuple[TrainState, ...], tuple[dict[str, Array], ...]]]:
    """Return `train_steps` as a jitted function of its array arguments.

    It donates `states`. Equal arguments give the same function, as with `jit_step`; the learning
    rates are arguments of it, so that runs which differ in their rates share a program.

    Args:
        model: The T5, whose mesh runs the step.
        optimizers: Optimizer and number of all steps of each run.
        loss: The training loss.
        accumulate: Micro-batches of a step.
        shardings: Of the next states and of their metrics; None leaves them to XLA.
    """
    # The rate of the config is not used, so all configs get the same one.
    free = tuple((dataclasses.replace(c, learning_rate=1.0), steps) for c, steps in optimizers)
    options = ("optimizers", free), ("loss", loss), ("accumulate", accumulate)
    return _jit_with(train_steps, model, options, shardings)


def _jit_with(step: Callable[..., Any], model: T5, options: Any, shardings: PyTree) -> Any:
    """Call `_jit` with shardings as their leaves and their tree, which can be hashed."""
    leaves, tree = jax.tree.flatten(shardings)
    # For type checkers, a Flax module cannot be hashed.
    settings: tuple[Any, ...] = (step, model, options, tuple(leaves), tree)
    return _jit(*settings)


@functools.lru_cache(maxsize=16)
def _jit(
    step: Callable[..., Any],
    model: T5,
    options: tuple[tuple[str, Any], ...],
    leaves: tuple[NamedSharding, ...],
    tree: Any,
) -> Callable[..., Any]:
    return jax.jit(
        functools.partial(step, model=model, **dict(options)),
        donate_argnums=0,
        out_shardings=jax.tree.unflatten(tree, leaves),
        compiler_options=step_options(model.mesh),
    )


_EIGEN = {"xla_cpu_experimental_ynn_fusion_type": ""}
"""Makes XLA multiply matrices with Eigen instead of YNNPACK on CPU.

YNNPACK takes a quarter longer for a training step of T5 small on x86 (commit 259ef58). Other
processors were not measured and keep XLA's default; so does decoding, where YNNPACK needs 0.6 of
Eigen's time for 32 rows of small (docs/benchmarks.md).
"""


def step_options(mesh: Mesh | None) -> dict[str, str]:
    """Return the `compiler_options` of `jax.jit` for a training step.

    Args:
        mesh: The devices; jax's default where None.
    """
    on_x86 = platform(mesh) == "cpu" and machine.machine().lower() in ("x86_64", "amd64")
    return dict(_EIGEN) if on_x86 and _knows_eigen() else {}


@functools.cache
def _knows_eigen() -> bool:
    """Return whether this XLA has the option; an unknown option is an error of the compilation."""
    try:
        jax.jit(jnp.negative, compiler_options=_EIGEN).lower(0.0).compile()
    except jax.errors.JaxRuntimeError:
        return False
    return True
