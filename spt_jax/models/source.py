"""A stored model: its tensors by name, and the leaves of our model that are made of them.

Opening a source reads headers only. Leaves are read one by one, so that host memory holds one leaf
at a time.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal

import ml_dtypes
import numpy as np

from spt_jax.t5 import T5Config
from spt_jax.tokenizers.base import Tokenizer

FLOATS = {"float16", "bfloat16", "float32", "float64"}
BLOCK_BYTES = 1 << 24

Layout = Literal["same", "transposed", "scanned"]
"""The axes of a tensor in the source: as in ours; [out, in]; or with the layers on axis 1."""


@dataclass(frozen=True)
class Tensor:
    """One tensor of a source.

    Args:
        name: Name in the source.
        shape: Shape in the source.
        dtype: Dtype in the source.
        read: Function that reads the tensor into new memory.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray] = field(repr=False)


@dataclass(frozen=True)
class Leaf:
    """One leaf of our model, not read yet.

    Args:
        shape: Shape of the leaf; the first axis of a stacked leaf is the layer.
        tensors: Tensors of the source: one for each layer, or a single one.
        layout: Layout of each tensor.
        stacked: Whether the leaf has an axis of layers.
    """

    shape: tuple[int, ...]
    tensors: tuple[Tensor, ...]
    layout: Layout
    stacked: bool = False

    @property
    def dtype(self) -> np.dtype:
        """The dtype that holds the values of every tensor of the leaf."""
        return np.result_type(*(tensor.dtype for tensor in self.tensors))

    def read(self) -> np.ndarray:
        """Return the leaf on the host, in the source's dtype.

        Raises:
            ValueError: A tensor cannot be read, or holds NaN or inf.
        """
        if not self.stacked or self.layout == "scanned":
            return self._place(self.tensors[0]).reshape(self.shape)
        out = np.empty(self.shape, self.dtype)
        for index, tensor in enumerate(self.tensors):
            out[index] = self._place(tensor).reshape(self.shape[1:])
        return out

    def _place(self, tensor: Tensor) -> np.ndarray:
        array = tensor.read()
        require_finite(array, tensor.name)
        if self.layout == "transposed":
            return array.T
        return np.moveaxis(array, 1, 0) if self.layout == "scanned" else array


@dataclass(frozen=True)
class Source:
    """A stored model, opened and checked but not read.

    Args:
        name: Name of the model.
        origin: Folder or address, for messages.
        config: Shape of the model.
        leaves: Every leaf of the model, by name.
        tokenizer: Tokenizer of the model.
        fingerprint: Fingerprint of the weights where the source stores it; the weights that are
            read must have the same.
    """

    name: str
    origin: str
    config: T5Config
    leaves: dict[str, Leaf]
    tokenizer: Tokenizer
    fingerprint: str | None = None


def float_dtype(name: str, tensor: str) -> np.dtype:
    """Return the floating dtype of a name, of numpy or ml_dtypes.

    Args:
        name: Name of the dtype.
        tensor: Name of the tensor, for the message.

    Raises:
        ValueError: It is no floating dtype.
    """
    if name not in FLOATS:
        raise ValueError(
            f"tensor {tensor} has dtype {name}, expected {', '.join(sorted(FLOATS))}; "
            "quantized weights are not supported"
        )
    return np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)


def blocks(array: np.ndarray) -> Iterator[np.ndarray]:
    """Yield an array in C-contiguous pieces of about `BLOCK_BYTES` along its first axis."""
    if array.ndim == 0 or array.nbytes <= BLOCK_BYTES:
        yield np.ascontiguousarray(array)
        return
    rows = max(1, BLOCK_BYTES * len(array) // array.nbytes)
    for start in range(0, len(array), rows):
        yield np.ascontiguousarray(array[start : start + rows])


def require_finite(array: np.ndarray, name: str) -> None:
    """Raise ValueError where an array holds NaN or inf."""
    for block in blocks(array):
        if not np.isfinite(block).all():
            bad = "NaN" if np.isnan(block).any() else "inf"
            raise ValueError(
                f"tensor {name} holds {bad}, expected finite weights; the file is damaged, "
                "or training diverged"
            )


def equal_tensors(a: Tensor, b: Tensor) -> bool:
    """Return whether two tensors hold the same values."""
    return a is b or (a.shape == b.shape and bool(np.array_equal(a.read(), b.read())))
