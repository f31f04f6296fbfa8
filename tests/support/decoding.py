"""A tiny T5 that writes answers of different lengths, and rows for it to answer."""

import jax
import jax.extend
import numpy as np

import spt_jax.forward
from spt_jax.t5 import T5, T5Config
from support.tiny import random_params

SHAPE = T5Config(
    vocab_size=30,
    d_model=16,
    d_kv=8,
    d_ff=24,
    num_heads=2,
    num_layers=1,
    num_decoder_layers=2,
)
MODEL = T5(SHAPE)
# The last row is padding alone.
INPUTS = np.array([[7, 8, 9, 10, 1], [11, 12, 1, 0, 0], [3, 1, 0, 0, 0], [0, 0, 0, 0, 0]], np.int32)

forward = jax.jit(spt_jax.forward.forward, static_argnums=0)


def make_params(shape: T5Config = SHAPE, *, prompt: int | None = None, eos: float = 1.0) -> dict:
    """Random parameters, with a prompt of that length; `eos` scales the logit of the end marker."""
    t5 = random_params(shape, 4)
    # Logits that differ by more than rounding.
    kernel = t5["decoder"]["logits_dense"]["kernel"] * 3.0
    t5["decoder"]["logits_dense"]["kernel"] = kernel.at[:, 1].multiply(eos)
    if prompt is None:
        return {"t5": t5}
    return {"t5": t5, "prompt": jax.random.normal(jax.random.key(1), (prompt, shape.d_model))}


def next_log_probs(
    params: dict, row: np.ndarray, written: list[tuple], length: int, model: T5 = MODEL
) -> np.ndarray:
    """Log-probabilities of the next token of equally long answers of a row, by the full decoder."""
    ids = np.zeros((len(written), length), np.int32)
    for number, answer in enumerate(written):
        ids[number, : len(answer)] = answer
    logits = forward(model, params, np.tile(row, (len(written), 1)), ids)
    return np.asarray(jax.nn.log_softmax(logits[:, len(written[0])]))


def equations(jaxpr):
    """Everything that a program computes, inside its loops too."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            yield from equations(inner)


class CountingT5(T5):
    """A T5 that appends the position of each of its decoding steps to `steps`."""

    def decode_step(self, embedded, cache, position, mask):
        jax.debug.callback(lambda position: steps.append(int(position)), position)
        return super().decode_step(embedded, cache, position, mask)


steps: list[int] = []
