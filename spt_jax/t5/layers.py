"""The parts of a T5 layer that are not attention: dense, norm, embedding, MLP, dropout.

Parameters are float32 or whatever they were loaded as; `dtype` is that of the activations. Norm
statistics and logits are computed in `promote_types(dtype, float32)`, as in T5X.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from spt_jax.t5.config import T5Config
from spt_jax.typing import Array, Float, Int

DType = jnp.dtype | type


def wide(dtype: DType) -> jnp.dtype:
    """The dtype of norms, softmax and logits where activations are `dtype`."""
    return jnp.promote_types(dtype, jnp.float32)


class Dense(nn.Module):
    """A matrix without bias, kernel [in, out]."""

    features: int
    dtype: DType
    stddev: float

    @nn.compact
    def __call__(self, x: Float[Array, "... i"]) -> Float[Array, "... o"]:
        kernel = self.param(
            "kernel", nn.initializers.normal(self.stddev), (x.shape[-1], self.features)
        )
        flat = x.astype(self.dtype).reshape(-1, x.shape[-1])
        return (flat @ kernel.astype(self.dtype)).reshape(*x.shape[:-1], self.features)


class RMSNorm(nn.Module):
    """T5's layer norm: no mean, no bias; statistics in float32."""

    epsilon: float
    dtype: DType

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        x = x.astype(wide(self.dtype))
        x = x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + self.epsilon)
        return x.astype(self.dtype) * scale[None, None, :].astype(self.dtype)


class Embedder(nn.Module):
    """The table shared by encoder and decoder, and in T5 1.0 by the head. Not scaled by sqrt(D)."""

    config: T5Config
    dtype: DType

    def setup(self):
        shape = (self.config.vocab_size, self.config.d_model)
        self.embedding = self.param("embedding", nn.initializers.normal(1.0), shape)

    def __call__(self, ids: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        return jnp.take(self.embedding, ids, axis=0).astype(self.dtype)

    def attend(self, x: Float[Array, "B U D"]) -> Float[Array, "B U V"]:
        """Logits of the tied head, before the scale."""
        return jnp.einsum(
            "BUD,VD->BUV",
            x.astype(self.dtype),
            self.embedding.astype(self.dtype),
            preferred_element_type=wide(self.dtype),
        )


class LogitsDense(nn.Module):
    """The head of T5 1.1, with float32 logits whatever the activations are."""

    config: T5Config
    dtype: DType

    @nn.compact
    def __call__(self, x: Float[Array, "B U D"]) -> Float[Array, "B U V"]:
        shape = (self.config.d_model, self.config.vocab_size)
        kernel = self.param("kernel", nn.initializers.normal(shape[0] ** -0.5), shape)
        return jnp.einsum(
            "BUD,DV->BUV",
            x.astype(self.dtype),
            kernel.astype(self.dtype),
            preferred_element_type=wide(self.dtype),
        )


def dropout(rate: float, x: Array, *, broadcast: int, module: nn.Module, train: bool) -> Array:
    """Dropout with one mask along axis `broadcast` (T5 drops whole features of a sequence)."""
    if not train or rate == 0:
        return x
    shape = list(x.shape)
    shape[broadcast] = 1
    keep = jax.random.bernoulli(module.make_rng("dropout"), 1 - rate, shape)
    return jnp.where(keep, x / (1 - rate), jnp.zeros((), x.dtype))


class MLP(nn.Module):
    """gelu(x wi_0) * (x wi_1) wo in T5 1.1, relu(x wi) wo in T5 1.0; dropout before wo."""

    config: T5Config
    dtype: DType
    dropout_rate: float

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"], *, train: bool) -> Float[Array, "B T D"]:
        c = self.config

        def project(name: str):
            return Dense(c.d_ff, self.dtype, c.d_model**-0.5, name=name)(x)

        if c.mlp == "gated_gelu":
            h = nn.gelu(project("wi_0"), approximate=True) * project("wi_1")
        else:
            h = nn.relu(project("wi"))
        h = dropout(self.dropout_rate, h, broadcast=-2, module=self, train=train)
        return Dense(c.d_model, self.dtype, c.d_ff**-0.5, name="wo")(h)
