"""The encoder, the decoder and T5 (Raffel et al. 2020), consuming embeddings.

The layers of a stack are one scanned layer whose parameters carry a leading axis L, so that
compile time does not grow with depth. Parameter names are T5X's. Dropout sits where the original
has it: on the embedded input (after a prompt is prepended), on the attention weights, inside the
MLP, on the output of each sub-layer and after the final norm.

Decoding a target at a time keeps keys and values in a `cache.Cache`.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from spt_jax.t5.attention import Attention, RelativePositionBias
from spt_jax.t5.cache import LAYOUT, Cache, Past, append, cached, extend, visible
from spt_jax.t5.config import T5Config
from spt_jax.t5.layers import MLP, DType, Embedder, LogitsDense, RMSNorm, dropout
from spt_jax.typing import Array, Bool, Float, Int

UNROLLED = 4
"""Layers up to which a stack is unrolled: the copies that a scan makes cost more than it saves."""


class _Layer(nn.Module):
    config: T5Config
    dtype: DType
    dropout_rate: float

    def _norm(self) -> RMSNorm:
        return RMSNorm(self.config.layer_norm_epsilon, self.dtype)

    def _attention(self) -> Attention:
        return Attention(self.config, self.dtype, self.dropout_rate)

    def _mlp(self) -> MLP:
        return MLP(self.config, self.dtype, self.dropout_rate)

    def _residual(self, x: Array, y: Array, train: bool) -> Array:
        return x + dropout(self.dropout_rate, y, broadcast=-2, module=self, train=train)


class EncoderLayer(_Layer):
    """Self-attention and MLP, each with a norm before and a residual around."""

    def setup(self):
        self.pre_attention_layer_norm, self.attention = self._norm(), self._attention()
        self.pre_mlp_layer_norm, self.mlp = self._norm(), self._mlp()

    def __call__(self, x, bias, mask, train):
        y = self.pre_attention_layer_norm(x)
        y = self.attention(y, self.attention.keys_values(y), bias=bias, mask=mask, train=train)
        x = self._residual(x, y, train)
        y = self.mlp(self.pre_mlp_layer_norm(x), train=train)
        return self._residual(x, y, train), None


class DecoderLayer(_Layer):
    """Causal self-attention, attention to the encoder's output, and MLP."""

    def setup(self):
        self.pre_self_attention_layer_norm = self._norm()
        self.self_attention = self._attention()
        self.pre_cross_attention_layer_norm = self._norm()
        self.encoder_decoder_attention = self._attention()
        self.pre_mlp_layer_norm, self.mlp = self._norm(), self._mlp()

    def __call__(self, x, encoded, bias, mask, cross_mask, train):
        y = self.pre_self_attention_layer_norm(x)
        own = self.self_attention.keys_values(y)
        cross = self.encoder_decoder_attention.keys_values(encoded)
        return self._attend(x, y, own, cross, bias, mask, cross_mask, train), None

    def cross_keys_values(self, encoded):
        return tuple(map(cached, self.encoder_decoder_attention.keys_values(encoded)))

    def step(self, x, own, cross, bias, mask, cross_mask, position):
        y = self.pre_self_attention_layer_norm(x)
        new = self.self_attention.keys_values(y)
        own = tuple(append(old, one, position) for old, one in zip(own, new))
        return self._attend(x, y, own, cross, bias, mask, cross_mask, False, LAYOUT), own

    def _attend(self, x, y, own, cross, bias, mask, cross_mask, train, layout="BSNH"):
        """The layer on its input `x`, whose norm is `y`, with both pairs of keys and values."""
        y = self.self_attention(y, own, bias=bias, mask=mask, train=train, layout=layout)
        x = self._residual(x, y, train)
        y = self.pre_cross_attention_layer_norm(x)
        y = self.encoder_decoder_attention(y, cross, mask=cross_mask, train=train, layout=layout)
        x = self._residual(x, y, train)
        y = self.mlp(self.pre_mlp_layer_norm(x), train=train)
        return self._residual(x, y, train)


def _scan(layer: type[nn.Module], length: int, arguments: int) -> type[nn.Module]:
    """`length` copies of `layer` in a row, which all see the same `arguments` after the first."""
    in_axes: Any = (nn.broadcast,) * arguments
    return nn.scan(
        layer,
        variable_axes={"params": 0},
        split_rngs={"params": True, "dropout": True},
        in_axes=in_axes,
        length=length,
        unroll=length if length <= UNROLLED else 1,
    )


class Encoder(nn.Module):
    config: T5Config
    dtype: DType
    dropout_rate: float
    remat: bool

    def setup(self):
        c = self.config
        layer = EncoderLayer
        if self.remat:
            layer = nn.remat(layer, prevent_cse=False, static_argnums=(4,))
        self.relpos_bias = RelativePositionBias(c, True, self.dtype)
        scanned = _scan(layer, c.num_layers, 3)
        self.layers = scanned(c, self.dtype, self.dropout_rate)
        self.encoder_norm = RMSNorm(c.layer_norm_epsilon, self.dtype)

    def __call__(self, x, mask, train):
        x = dropout(self.dropout_rate, x.astype(self.dtype), broadcast=-2, module=self, train=train)
        bias = self.relpos_bias(x.shape[1], x.shape[1])
        x, _ = self.layers(x, bias, mask[:, None, None, :], train)
        return dropout(
            self.dropout_rate, self.encoder_norm(x), broadcast=-2, module=self, train=train
        )


class Decoder(nn.Module):
    config: T5Config
    dtype: DType
    dropout_rate: float
    remat: bool

    def setup(self):
        c = self.config
        layer = DecoderLayer
        if self.remat:
            layer = nn.remat(layer, prevent_cse=False, static_argnums=(6,))
        self.relpos_bias = RelativePositionBias(c, False, self.dtype)
        scanned = _scan(layer, c.num_decoder_layers, 5)
        self.layers = scanned(c, self.dtype, self.dropout_rate)
        self.decoder_norm = RMSNorm(c.layer_norm_epsilon, self.dtype)
        if not c.tied_head:
            self.logits_dense = LogitsDense(c, self.dtype)

    def __call__(self, x, encoded, mask, train):
        x = dropout(self.dropout_rate, x.astype(self.dtype), broadcast=-2, module=self, train=train)
        targets = x.shape[1]
        causal = jnp.tril(jnp.ones((targets, targets), bool))[None, None]
        bias = self.relpos_bias(targets, targets)
        x, _ = self.layers(x, encoded, bias, causal, mask[:, None, None, :], train)
        return dropout(
            self.dropout_rate, self.decoder_norm(x), broadcast=-2, module=self, train=train
        )

    def _run_layer(self, params, *args, method) -> Any:
        layer = DecoderLayer(self.config, self.dtype, self.dropout_rate, parent=None)
        return layer.apply({"params": params}, *args, method=method)

    def _layer(self, number) -> Any:
        stacked = self.variables["params"]["layers"]
        return jax.tree.map(lambda leaf: leaf[number].astype(self.dtype), stacked)

    def start(self, encoded, targets, beams):
        c = self.config
        layers = tuple(map(self._layer, range(c.num_decoder_layers)))
        cross = tuple(
            self._run_layer(layer, encoded, method="cross_keys_values") for layer in layers
        )
        batch = encoded.shape[0]
        empty = jnp.zeros((batch, c.num_heads, c.d_kv, targets * beams), self.dtype)
        ancestors = jnp.zeros((batch, beams, targets), jnp.int32)
        return Cache(Past(((empty, empty),) * len(layers), ancestors), cross, layers)

    def step(self, x, cache, position, mask):
        ancestors = extend(cache.past.ancestors, position)
        seen, cross_mask = visible(ancestors, position), mask[:, None, None, :]
        bias = self.relpos_bias.row(position, ancestors.shape[2])
        bias = jnp.repeat(bias, x.shape[1], axis=3)  # of positions, for every beam's slot
        x, grown = x.astype(self.dtype), []
        # No scan: it would copy every layer's weights out of the stack, at every step.
        for layer, own, cross in zip(cache.layers, cache.past.own, cache.cross):
            x, own = self._run_layer(
                layer, x, own, cross, bias, seen, cross_mask, position, method="step"
            )
            grown.append(own)
        past = Past(tuple(grown), ancestors)
        return self.decoder_norm(x), dataclasses.replace(cache, past=past)

    def logits(self, x):
        return self.logits_dense(x)


class T5(nn.Module):
    """T5 1.0 or 1.1 over embeddings. Parameters are an argument of every call, as in Linen.

    Args:
        config: The shape.
        dtype: Of the activations, float32 or bfloat16.
        dropout_rate: Where a call says `train=True`.
        remat: Recompute each layer in the backward pass instead of storing its activations.
        mesh: The devices that activations are laid out over; None where that is left to XLA.
    """

    config: T5Config
    dtype: DType = jnp.float32
    dropout_rate: float = 0.0
    remat: bool = False
    mesh: Mesh | None = None

    def setup(self):
        parts = self.config, self.dtype, self.dropout_rate, self.remat
        self.token_embedder = Embedder(self.config, self.dtype)
        self.encoder = Encoder(*parts)
        self.decoder = Decoder(*parts)

    def embed(self, ids: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        """The embeddings of ids, of inputs and of targets alike."""
        return self.token_embedder(ids)

    def encode(
        self, embedded: Float[Array, "B S D"], mask: Bool[Array, "B S"], *, train: bool = False
    ) -> Float[Array, "B S D"]:
        """The encoder's output; what it holds at masked positions means nothing."""
        return self.encoder(embedded, mask, train)

    def decode(
        self,
        embedded: Float[Array, "B U D"],
        encoded: Float[Array, "B S D"],
        mask: Bool[Array, "B S"],
        *,
        train: bool = False,
    ) -> Float[Array, "B U V"]:
        """Logits of the next target at every position, in float32 or wider."""
        return self._logits(self.decoder(embedded, encoded, mask, train))

    def start_cache(self, encoded: Float[Array, "B S D"], targets: int, beams: int = 1) -> Cache:
        """A cache with room for `targets` steps of `decode_step`, with `beams` targets each."""
        return self.decoder.start(encoded, targets, beams)

    def decode_step(
        self,
        embedded: Float[Array, "B M D"],
        cache: Cache,
        position: Int[Array, ""],
        mask: Bool[Array, "B S"],
    ) -> tuple[Float[Array, "B M V"], Cache]:
        """Logits of the target after the one at `position` of each beam, and the cache with it."""
        x, cache = self.decoder.step(embedded, cache, position, mask)
        return self._logits(x), cache

    def __call__(
        self,
        embedded: Float[Array, "B S D"],
        mask: Bool[Array, "B S"],
        decoder_embedded: Float[Array, "B U D"],
        *,
        train: bool = False,
    ) -> Float[Array, "B U V"]:
        """`encode`, then `decode`."""
        encoded = self.encode(embedded, mask, train=train)
        return self.decode(decoder_embedded, encoded, mask, train=train)

    def _logits(self, x):
        if self.config.tied_head:
            return self.token_embedder.attend(x * self.config.d_model**-0.5)
        return self.decoder.logits(x)

    def init_params(self, key: jax.Array) -> dict:
        """Fresh float32 parameters with T5's initial scales, as a plain nested dict."""
        ids = jnp.zeros((1, 1), jnp.int32)

        def init(model: "T5"):
            embedded = model.embed(ids)
            return model(embedded, ids == 0, embedded)

        variables: Any = self.init({"params": key}, method=init)
        return variables["params"]
