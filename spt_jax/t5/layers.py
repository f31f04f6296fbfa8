"""The parts of a T5 layer other than attention: dense, norm, embedding, MLP, dropout.

Parameters are float32 or the dtype they were loaded in, matrices also `Quantized`; `dtype` is that
of the activations. Norm statistics and logits are computed in `promote_types(dtype, float32)`, as
in T5X.

On a mesh, a kernel is stored cut along `fsdp` and gathered where it is used (`multiply`).
"""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from spt_jax.errors import choose
from spt_jax.sharding import constrain
from spt_jax.t5.config import T5Config
from spt_jax.t5.quantize import Kernel, Quantized, values_of
from spt_jax.typing import Array, Float, Int

DType = jnp.dtype | type


def wide(dtype: DType) -> jnp.dtype:
    """Return the dtype of norm statistics, softmax and logits for activations of `dtype`."""
    return jnp.promote_types(dtype, jnp.float32)


def multiply(
    product: Callable[[Array, Array], Array],
    x: Array,
    kernel: Array,
    axes: str,
    dtype: DType,
    mesh: Mesh | None,
) -> Array:
    """Return `product(x, kernel)`, with the kernel cast to `dtype` and gathered over `fsdp`.

    The backward pass casts and gathers the stored kernel again. If it kept the results, a frozen
    model would be in memory twice, and whole on every device.

    Args:
        product: Function of the activations and the kernel in `dtype`.
        x: Activations.
        kernel: Kernel as it is stored; of a quantized one its values, and `rescale` follows.
        axes: Axes of the kernel.
        dtype: Dtype of the activations.
        mesh: The devices.
    """
    x = x.astype(dtype)
    as_stored = kernel.dtype == dtype and (mesh is None or mesh.shape["fsdp"] == 1)
    if as_stored and product is jnp.matmul:  # other products reshape the kernel, which copies it
        return product(x, kernel)

    def cast_and_multiply(x: Array, kernel: Array) -> Array:
        if kernel.dtype == jnp.int8:  # gathered in int8, which is less to send
            return product(x, constrain(kernel, axes, mesh).astype(dtype))
        return product(x, constrain(kernel.astype(dtype), axes, mesh))

    return jax.checkpoint(cast_and_multiply, prevent_cse=False)(x, kernel)


def rescale(x: Array, kernel: Kernel, features: int | None = None) -> Array:
    """Return `x` times the scales of a quantized kernel [in, out]; of a float kernel `x` as it is.

    Args:
        x: Activations [..., out], or [..., heads, features] if `features` is given.
        kernel: The kernel.
        features: Features of a head.
    """
    if not isinstance(kernel, Quantized):
        return x
    scales = kernel.scales if features is None else kernel.scales.reshape(-1, features)
    scales = scales.reshape((1,) * (x.ndim - scales.ndim) + scales.shape)
    return (x.astype(wide(x.dtype)) * scales).astype(x.dtype)


class Dense(nn.Module):
    """A dense layer without bias.

    Args:
        shape: Shape of the kernel, [in, out].
        dtype: Dtype of the activations.
        stddev: Standard deviation of the initial kernel.
        axes: Axes of the kernel, such as `DF`.
        mesh: The devices.
    """

    shape: tuple[int, int]
    dtype: DType
    stddev: float
    axes: str
    mesh: Mesh | None

    def setup(self):
        self.kernel = self.param("kernel", nn.initializers.normal(self.stddev), self.shape)

    def __call__(self, x: Float[Array, "B T i"]) -> Float[Array, "B T o"]:
        return self.product(x, self.kernel)

    def product(self, x: Float[Array, "B T i"], kernel: Kernel) -> Float[Array, "B T o"]:
        """Return what `__call__` returns for this kernel instead of the module's."""
        y = self._multiply(jnp.matmul, x.reshape(-1, x.shape[-1]), values_of(kernel))
        # If the scales came before this reshape, XLA would fuse less into the product.
        y = rescale(y.reshape(*x.shape[:-1], -1), kernel)
        return constrain(y, f"BT{self.axes[-1]}", self.mesh)

    def by_head(self, x: Array, product: str, features: int) -> Array:
        """Return the einsum `product` of `x` and the kernel as [in, heads, features]."""

        def multiply_heads(x: Array, kernel: Array) -> Array:
            return jnp.einsum(product, x, kernel.reshape(len(kernel), -1, features))

        values = values_of(self.kernel)
        if product.endswith("NH"):
            return rescale(self._multiply(multiply_heads, x, values), self.kernel, features)
        # The product sums over the channels, so the scales come first.
        return self._multiply(multiply_heads, rescale(x, self.kernel, features), values)

    def _multiply(self, product: Callable[[Array, Array], Array], x: Array, kernel: Array) -> Array:
        return multiply(product, x, kernel, self.axes, self.dtype, self.mesh)


class RMSNorm(nn.Module):
    """T5's layer norm: no mean, no bias; statistics in float32.

    Args:
        features: Width D of the normalized axis.
        epsilon: Number that is added to the mean of squares.
        dtype: Dtype of the activations.
    """

    features: int
    epsilon: float
    dtype: DType

    def setup(self):
        self.scale = self.param("scale", nn.initializers.ones, (self.features,))

    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        def normalize(x: Array, scale: Array) -> Array:
            return self.scaled(x, self._inverse(x), scale)

        # Save only `x` for the backward pass, and compute the normalized value again.
        return jax.checkpoint(normalize, prevent_cse=False)(x, self.scale)

    def inverse(self, x: Float[Array, "B T D"]) -> Float[Array, "B T 1"]:
        """Return one over the root of the mean of squares, in float32 or wider."""
        # The checkpoint saves `x` in its own dtype; autodiff would save it in float32.
        return jax.checkpoint(self._inverse, prevent_cse=False)(x)

    def scaled(self, x: Array, inverse: Array, scale: Array) -> Float[Array, "B T D"]:
        """Return the norm of `x`, given `inverse(x)`, for this scale instead of the module's."""
        x = x.astype(wide(self.dtype)) * inverse
        return x.astype(self.dtype) * scale[None, None, :].astype(self.dtype)

    def _inverse(self, x: Array) -> Array:
        squares = jnp.square(x.astype(wide(self.dtype)))
        return jax.lax.rsqrt(jnp.mean(squares, axis=-1, keepdims=True) + self.epsilon)


class Embedder(nn.Module):
    """The embedding table of encoder and decoder, and of the head in T5 1.0.

    Embeddings are not scaled by sqrt(D).
    """

    config: T5Config
    dtype: DType
    mesh: Mesh | None

    def setup(self):
        shape = (self.config.vocab_size, self.config.d_model)
        self.embedding = self.param("embedding", nn.initializers.normal(1.0), shape)

    def __call__(self, ids: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        def take(table: Array) -> Array:
            return jnp.take(constrain(table, "VD", self.mesh), ids, axis=0)

        if isinstance(self.embedding, Quantized):
            scales = jnp.take(self.embedding.scales, ids, axis=0)
            rows = take(self.embedding.values) * scales[..., None]
        else:
            rows = take(self.embedding)
        return constrain(rows.astype(self.dtype), "BTD", self.mesh)

    def attend(self, x: Float[Array, "B U D"]) -> Float[Array, "B U V"]:
        """Return the logits of the tied head; the caller has scaled `x`."""
        return _logits(x, self.embedding, "VD", self.dtype, self.mesh)


def _logits(x: Array, kernel: Kernel, axes: str, dtype: DType, mesh: Mesh | None) -> Array:
    def product(x: Array, kernel: Array) -> Array:
        return jnp.einsum(f"BUD,{axes}->BUV", x, kernel, preferred_element_type=wide(dtype))

    logits = multiply(product, x, values_of(kernel), axes, dtype, mesh)
    return constrain(rescale(logits, kernel), "BUV", mesh)


class LogitsDense(nn.Module):
    """The head of T5 1.1. Logits are float32 or wider, whatever the activations are."""

    config: T5Config
    dtype: DType
    mesh: Mesh | None

    @nn.compact
    def __call__(self, x: Float[Array, "B U D"]) -> Float[Array, "B U V"]:
        shape = (self.config.d_model, self.config.vocab_size)
        kernel = self.param("kernel", nn.initializers.normal(shape[0] ** -0.5), shape)
        return _logits(x, kernel, "DV", self.dtype, self.mesh)


def dropout(rate: float, x: Array, *, broadcast: int, module: nn.Module, train: bool) -> Array:
    """Apply dropout with the same mask at all places of axis `broadcast`.

    T5 drops whole features of a sequence: axis -2 of [B, T, D].
    """
    if not train or rate == 0:
        return x
    shape = list(x.shape)
    shape[broadcast] = 1
    keep = jax.random.bernoulli(module.make_rng("dropout"), 1 - rate, shape)

    # The checkpoint saves the mask with size 1 along the axis; autodiff would save it broadcast.
    @functools.partial(jax.checkpoint, prevent_cse=False)
    def drop(x: Array, keep: Array) -> Array:
        return jnp.where(keep, x / (1 - rate), jnp.zeros((), x.dtype))

    return drop(x, keep)


def _gated(gate: Array, x: Array) -> Array:
    return nn.gelu(gate, approximate=True) * x


@jax.custom_vjp
def gated_gelu(gate: Array, x: Array) -> Array:
    """Return gelu(gate) * x, and save only the two arguments for the backward pass."""
    return _gated(gate, x)


def _gated_backward(saved: tuple[Array, Array], grads: Array) -> tuple[Array, Array]:
    # This barrier stops XLA from reusing the tanh of the forward pass (common-subexpression
    # elimination), which would keep it alive.
    saved = jax.lax.optimization_barrier(saved)
    # This one makes XLA write the two gradients once. Without it XLA fuses their computation into
    # every product that reads them.
    return jax.lax.optimization_barrier(jax.vjp(_gated, *saved)[1](grads))


gated_gelu.defvjp(lambda gate, x: (_gated(gate, x), (gate, x)), _gated_backward)


class MLP(nn.Module):
    """(gelu(x wi_0) * (x wi_1)) wo in T5 1.1, relu(x wi) wo in T5 1.0; dropout before wo."""

    config: T5Config
    dtype: DType
    dropout_rate: float
    mesh: Mesh | None

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"], *, train: bool) -> Float[Array, "B T D"]:
        c = self.config

        def project(name: str):
            shape = c.d_model, c.d_ff
            return Dense(shape, self.dtype, c.d_model**-0.5, "DF", self.mesh, name=name)(x)

        inner = {
            "gated_gelu": lambda: gated_gelu(project("wi_0"), project("wi_1")),
            "relu": lambda: nn.relu(project("wi")),
        }
        h = choose("mlp", c.mlp, inner)()
        h = dropout(self.dropout_rate, h, broadcast=-2, module=self, train=train)
        shape = c.d_ff, c.d_model
        return Dense(shape, self.dtype, c.d_ff**-0.5, "FD", self.mesh, name="wo")(h)
