"""Lower the programs of a run for abstract arrays.

    traced, lowered = lower_train_step(model, PlanConfig(...))

They are the programs of `train.fit` and of evaluation: the same jitted functions, for arguments of
the same shapes, with the same shardings and donation.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding

from spt_jax.config.plan import PlanConfig
from spt_jax.config.train import LossConfig, OptimizerConfig
from spt_jax.optim import make_tx
from spt_jax.prediction.predictor import answer_batch
from spt_jax.prompts.bank import PromptBank
from spt_jax.pytree import label_params, split
from spt_jax.sharding import param_shardings, replicated, spec, spreadable_rows, state_shardings
from spt_jax.step import train_step, train_steps
from spt_jax.t5 import T5
from spt_jax.t5.quantize import quantize_params
from spt_jax.train_state import init_state
from spt_jax.typing import PyTree


def lower_train_step(model: T5, config: PlanConfig) -> tuple[Any, Any]:
    """Trace and lower the training step of a model with a mesh, for one prompt or for several.

    Returns:
        The traced and the lowered step.

    Raises:
        ValueError: The mesh does not divide a weight.
    """
    mesh = _mesh(model)
    params = abstract_params(model, config)
    trained, frozen = split(params, label_params(params, config.tune))
    # The paper's optimizer for prompts; T5's own, with its slots, for a whole model.
    tuned = config.tune == "model"
    optimizer = OptimizerConfig(multiply_by_parameter_scale=tuned, accumulate=config.accumulate)
    tx = make_tx(optimizer, 1, config.tune)
    state = jax.eval_shape(lambda x: init_state(x, tx, patience=None, keep_best=True), trained)
    stored, whole = state_shardings(state, mesh), replicated(mesh)
    state, key = _place(state, stored), _place(jax.eval_shape(jax.random.key, 0), whole)
    options = {"model": model, "loss": LossConfig(), "accumulate": config.accumulate}
    count = config.together
    if count == 1:
        step = functools.partial(train_step, tx=tx, **options)
        jitted = jax.jit(step, donate_argnums=0, out_shardings=(stored, whole))
        traced = jitted.trace(state, frozen, _batch(config, mesh), key)
    else:
        step = functools.partial(train_steps, optimizers=[(optimizer, 1)] * count, **options)
        jitted = jax.jit(step, donate_argnums=0, out_shardings=((stored,) * count, whole))
        rates = (optimizer.learning_rate,) * count
        traced = jitted.trace((state,) * count, frozen, _batch(config, mesh), (key,) * count, rates)
    return traced, traced.lower()


def lower_decoding(model: T5, config: PlanConfig) -> tuple[Any, Any]:
    """Trace and lower what evaluation runs for a batch of the longest inputs.

    Each row gets its prompt from a bank of as many as train together, is answered greedily, and
    scores each label word. A label word is counted with `targets_length` tokens, which is the most
    that it may have. See `lower_train_step` for what is returned.
    """
    mesh, length = _mesh(model), config.targets_length
    rows = spreadable_rows(mesh, config.eval_batch_size)
    prompts = config.together if config.prompt_length else 0
    bank = jax.eval_shape(
        lambda: PromptBank.empty(prompts, config.prompt_length, model.config.d_model).arrays
    )
    words = (rows, config.label_words, length if config.label_words else 0)
    traced = answer_batch.trace(
        model,
        {"t5": abstract_params(model, config)["t5"]},
        bank,
        inputs=_ids((rows, config.inputs_length), mesh),
        task_ids=_ids((rows,), mesh),
        answers=_ids(words, mesh),
        length=length,
    )
    return traced, traced.lower()


def abstract_params(model: T5, config: PlanConfig) -> PyTree:
    """Return the shapes of params with their shardings, with a prompt if the config has one."""
    mesh = _mesh(model)
    shapes = jax.eval_shape(model.init_params, jax.random.key(0))
    if config.param_dtype == "int8":
        shapes = jax.eval_shape(
            functools.partial(quantize_params, rest=jnp.dtype(config.dtype)), shapes
        )
        dtype = None  # each leaf has its own
    else:
        dtype = jnp.dtype("float32" if config.tune == "model" else config.param_dtype)
    params: PyTree = {"t5": _place(shapes, param_shardings(shapes, mesh), dtype)}
    if config.prompt_length:
        prompt = jax.ShapeDtypeStruct((config.prompt_length, model.config.d_model), jnp.float32)
        params["prompt"] = _place(prompt, replicated(mesh))
    return params


def _mesh(model: T5) -> Mesh:
    if model.mesh is None:
        raise ValueError("the model has no mesh; a program is compiled for the devices of one")
    return model.mesh


def _batch(config: PlanConfig, mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
    widths = {"inputs": config.inputs_length, "targets": config.targets_length}
    runs = (config.together,) if config.together > 1 else ()
    return {
        name: _ids((*runs, config.batch_size, width), mesh, "." * len(runs) + "B")
        for name, width in widths.items()
    }


def _ids(shape: tuple[int, ...], mesh: Mesh, axes: str = "B") -> jax.ShapeDtypeStruct:
    """Return an abstract int32 array whose rows are cut as `sharding.place_batch` cuts them."""
    axes += "." * (len(shape) - len(axes))
    return jax.ShapeDtypeStruct(shape, jnp.int32, sharding=NamedSharding(mesh, spec(axes)))


def _place(tree: PyTree, shardings: Any, dtype: Any = None) -> PyTree:
    def place(leaf: Any, sharding: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, dtype or leaf.dtype, sharding=sharding)

    if isinstance(shardings, NamedSharding):
        return jax.tree.map(lambda leaf: place(leaf, shardings), tree)
    return jax.tree.map(place, tree, shardings)
