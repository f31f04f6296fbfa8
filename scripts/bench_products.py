"""The products of an answer with the kernels of T5 1.1, and nothing else of it.

Attention's own products, norms, caches and the choice of tokens are left out. What is left is what
an answer takes at least, with the matrix product that a side has. The functions run on arrays of
any framework.
"""

import time
from collections.abc import Callable
from typing import Any

import numpy as np


def make_kernels(config: Any, convert: Callable[[np.ndarray], Any]) -> dict[str, Any]:
    """Every kernel that an answer is multiplied with, as arrays of a side.

    Their values do not matter: all are 0, and written, since memory that nobody wrote is not there.

    Args:
        config: The shape.
        convert: From NumPy's array.
    """

    def make(rows: int, columns: int) -> Any:
        return convert(np.full((rows, columns), 0, np.float32))

    d, heads, f = config.d_model, config.num_heads * config.d_kv, config.d_ff

    def attention() -> list:
        return [make(d, heads), make(d, heads), make(d, heads), make(heads, d)]

    def mlp() -> list:
        return [make(d, f), make(d, f), make(f, d)]

    return {
        "encoder": [(attention(), mlp()) for _ in range(config.num_layers)],
        "decoder": [(attention(), attention(), mlp()) for _ in range(config.num_decoder_layers)],
        "head": make(d, config.vocab_size),
    }


def _attend(x: Any, kernels: list) -> Any:
    query, key, value, out = kernels
    return x + (x @ query + x @ key + x @ value) @ out


def _transform(x: Any, kernels: list) -> Any:
    gate, up, down = kernels
    return x + ((x @ gate) * (x @ up)) @ down


def encode_products(x: Any, kernels: dict[str, Any]) -> Any:
    """The products of the encoder with its kernels, and those that make cross-attention's keys.

    Args:
        x: Of every position of every row, [B * T, D], of any framework.
        kernels: What `make_kernels` made.
    """
    for attention, mlp in kernels["encoder"]:
        x = _transform(_attend(x, attention), mlp)
    for _, (_, key, value, _), _ in kernels["decoder"]:
        x = x + (x @ key).max() + (x @ value).max()  # of all of it, so that none is left out
    return x


def step_products(x: Any, kernels: dict[str, Any]) -> Any:
    """The products of one step of the decoder and of the head, with x [B * M, D]."""
    for own, (query, _, _, out), mlp in kernels["decoder"]:
        x = _attend(x, own)
        x = _transform(x + (x @ query) @ out, mlp)
    return x + (x @ kernels["head"]).max()


def second_time(run: Callable[[], object]) -> float:
    """Seconds of the second of two calls; the first may compile."""
    run()
    started = time.perf_counter()
    run()
    return time.perf_counter() - started
