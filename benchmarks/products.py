"""Only the matrix products of T5 1.1's kernels when it writes an answer.

Products inside attention, norms, caches and the choice of tokens are left out. What remains is the
least time that an answer takes with XLA's matrix product.
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from spt_jax.t5 import T5Config
from spt_jax.typing import Array, Float

Product = Callable[[Array, Array], Array]


def make_kernels(config: T5Config, *, turned: bool) -> dict[str, Any]:
    """Return every kernel that decoding multiplies with. Their values are 0.

    Args:
        config: Shape of the model.
        turned: Whether the kernels of `step_products`, except the head's, are [out, in], as in
            decoding.
    """

    def make(rows: int, columns: int, turned: bool = False) -> Array:
        return jnp.zeros((columns, rows) if turned else (rows, columns), jnp.float32)

    d, heads, f = config.d_model, config.num_heads * config.d_kv, config.d_ff

    def attention(turned: bool = False) -> list:
        return [*(make(d, heads, turned) for _ in range(3)), make(heads, d, turned)]

    def mlp(turned: bool = False) -> list:
        return [make(d, f, turned), make(d, f, turned), make(f, d, turned)]

    def cross() -> list:
        return [make(d, heads, turned), make(d, heads), make(d, heads), make(heads, d, turned)]

    return {
        "encoder": [(attention(), mlp()) for _ in range(config.num_layers)],
        "decoder": [
            (attention(turned), cross(), mlp(turned)) for _ in range(config.num_decoder_layers)
        ],
        "head": make(d, config.vocab_size),
    }


def _attend(x: Array, kernels: list, times: Product = jnp.matmul) -> Array:
    query, key, value, out = kernels
    return x + times(times(x, query) + times(x, key) + times(x, value), out)


def _transform(x: Array, kernels: list, times: Product = jnp.matmul) -> Array:
    gate, up, down = kernels
    return x + times(times(x, gate) * times(x, up), down)


def encode_products(x: Float[Array, "BT D"], kernels: dict[str, Any]) -> Float[Array, "BT D"]:
    """Compute the products of the encoder, and those of cross-attention's keys and values."""
    for attention, mlp in kernels["encoder"]:
        x = _transform(_attend(x, attention), mlp)
    for _, (_, key, value, _), _ in kernels["decoder"]:
        x = x + (x @ key).max() + (x @ value).max()  # of all of it, so that none is left out
    return x


def step_products(
    x: Float[Array, "BM D"], kernels: dict[str, Any], *, turned: bool
) -> Float[Array, "BM D"]:
    """Compute the products of one step of the decoder and of the head, for M beams."""

    def times(x: Array, kernel: Array) -> Array:
        return x @ (kernel.T if turned else kernel)

    for own, (query, _, _, out), mlp in kernels["decoder"]:
        x = _attend(x, own, times)
        x = _transform(x + times(times(x, query), out), mlp, times)
    return x + (x @ kernels["head"]).max()
