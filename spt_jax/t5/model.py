"""The encoder, the decoder and T5 (Raffel et al. 2020), consuming embeddings.

Parameters have T5X's names. Dropout is where the original has it: on the embedded input (after a
prompt is prepended), on the attention weights, inside the MLP, on the output of each sub-layer and
after the final norm.

Decoding one target at a time keeps keys and values in a `cache.Cache`.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from spt_jax.config.devices import AttentionVersion, Remat
from spt_jax.sharding import constrain, platform
from spt_jax.t5 import thresholds
from spt_jax.t5.attention import RelativePositionBias
from spt_jax.t5.cache import LAYOUT, Cache, Past, append, append_to_layer, extend, visible
from spt_jax.t5.config import T5Config
from spt_jax.t5.layers import DType, Embedder, LogitsDense, RMSNorm, dropout
from spt_jax.t5.masks import Segments, seen
from spt_jax.t5.quantize import cast_floats
from spt_jax.t5.stack import DecoderLayer, EncoderLayer, is_unrolled, scan_layers
from spt_jax.typing import Array, Bool, Float, Int


class _Stack(nn.Module):
    config: T5Config
    dtype: DType
    dropout_rate: float
    remat: Remat
    mesh: Mesh | None
    attention: AttentionVersion

    def _layers(self, layer: type[nn.Module], layers: int, arguments: int, static: int) -> Any:
        stack: Any = scan_layers(layer, layers, arguments, static, self.remat, self.mesh)
        return stack(*self._parts())

    def _parts(self) -> tuple:
        parts = self.config, self.dtype, self.dropout_rate, self.remat, self.mesh
        return *parts, self.attention

    def _bias(self, bidirectional: bool) -> RelativePositionBias:
        return RelativePositionBias(self.config, bidirectional, self.dtype, self.mesh)

    def _norm(self) -> RMSNorm:
        return RMSNorm(self.config.d_model, self.config.layer_norm_epsilon, self.dtype)

    def _dropout(self, x: Array, train: bool) -> Array:
        x = dropout(self.dropout_rate, x, broadcast=-2, module=self, train=train)
        return constrain(x, "BTD", self.mesh)


class Encoder(_Stack):
    def setup(self):
        self.relpos_bias = self._bias(bidirectional=True)
        self.layers = self._layers(EncoderLayer, self.config.num_layers, 3, 1)
        self.encoder_norm = self._norm()

    def __call__(self, x, mask, segments, train):
        x = self._dropout(x.astype(self.dtype), train)
        # The barrier makes XLA keep this array for the backward pass. Without it XLA computes the
        # array again from its parts, the prompt and the embeddings, and keeps these as well.
        x = jax.lax.optimization_barrier(x)
        bias = self.relpos_bias(x.shape[1], x.shape[1])
        own = segments and segments.inputs
        x, _ = self.layers(x, bias, seen(mask, own, own), train)
        return self._dropout(self.encoder_norm(x), train)


class Decoder(_Stack):
    def setup(self):
        self.relpos_bias = self._bias(bidirectional=False)
        self.layers = self._layers(DecoderLayer, self.config.num_decoder_layers, 6, 2)
        self.decoder_norm = self._norm()
        if not self.config.tied_head:
            self.logits_dense = LogitsDense(self.config, self.dtype, self.mesh)

    def __call__(self, x, encoded, mask, segments, train, calls):
        x = self._dropout(x.astype(self.dtype), train)
        targets = x.shape[1]
        few = targets * calls < self.config.d_kv
        inputs, own = segments or (None, None)
        causal = jnp.tril(jnp.ones((targets, targets), bool))[None, None]
        if own is not None:
            causal &= seen(own > 0, own, own)
        bias = self.relpos_bias(targets, targets)
        x, _ = self.layers(x, encoded, bias, causal, seen(mask, own, inputs), train, few)
        return self._dropout(self.decoder_norm(x), train)

    def _run_layer(self, params, *args, method) -> Any:
        layer = DecoderLayer(*self._parts(), parent=None)
        return layer.apply({"params": params}, *args, method=method)

    def _stacked(self) -> Any:
        return self.variables["params"]["layers"]

    def _layer(self, number) -> Any:
        layer = jax.tree.map(lambda leaf: leaf[number], self._stacked())
        return cast_floats(layer, self.dtype)

    def _transpose(self, layer, rows) -> Any:
        """Transpose the kernels of a layer if products with [out, in] are faster for these rows."""
        faster = platform(self.mesh) == "cpu" and rows >= thresholds.TRANSPOSED_ROWS
        return jax.tree.map(jnp.transpose, layer) if faster else layer

    def start(self, encoded, targets, beams):
        c, batch = self.config, encoded.shape[0]
        ancestors = jnp.zeros((batch, beams, targets), jnp.int32)
        shape = (batch, c.num_heads, c.d_kv, targets * beams)

        def cross_keys_values(layer):
            return self._run_layer(layer, encoded, method="cross_keys_values")

        if is_unrolled(c.num_decoder_layers, self.mesh):
            layers = tuple(map(self._layer, range(c.num_decoder_layers)))
            cross = tuple(map(cross_keys_values, layers))
            # `step` transposes the kernels back where it uses them, and XLA fuses that into the
            # product. The barrier stops XLA from cancelling the two transpositions.
            layers = jax.lax.optimization_barrier(
                tuple(self._transpose(layer, batch * beams) for layer in layers)
            )
            empty = constrain(jnp.zeros(shape, self.dtype), LAYOUT, self.mesh)
            own = ((empty, empty),) * len(layers)
            return Cache(Past(own, ancestors), cross, layers)
        empty = jnp.zeros((c.num_decoder_layers, *shape), self.dtype)
        empty = constrain(empty, f"L{LAYOUT}", self.mesh)
        cross = jax.lax.map(cross_keys_values, self._stacked())
        return Cache(Past((empty, empty), ancestors), cross, None)

    def step(self, x, cache, position, mask):
        ancestors = extend(cache.past.ancestors, position)
        own, cross_mask = visible(ancestors, position), seen(mask)
        bias = self.relpos_bias.row(position, ancestors.shape[2])
        bias = jnp.repeat(bias, x.shape[1], axis=3)  # a position has a slot for every beam
        run = self._step_scanned if cache.layers is None else self._step_unrolled
        x, past = run(x.astype(self.dtype), cache, position, (bias, own, cross_mask))
        return self.decoder_norm(x), dataclasses.replace(cache, past=Past(past, ancestors))

    def _step_unrolled(self, x, cache, position, arguments):
        grown = []
        for layer, own, cross in zip(cache.layers, cache.past.own, cache.cross):

            def write(new, own=own):
                own = tuple(append(old, one, position) for old, one in zip(own, new))
                return own, own

            layer = self._transpose(layer, x.shape[0] * x.shape[1])
            x, own = self._run_layer(layer, x, write, cross, *arguments, method="step")
            grown.append(own)
        return x, tuple(grown)

    def _step_scanned(self, x, cache, position, arguments):
        def run(carry, xs):
            (x, past), (number, layer, cross) = carry, xs

            def write(new):
                grown = tuple(
                    append_to_layer(old, one, number, position) for old, one in zip(past, new)
                )
                return tuple(stack[number] for stack in grown), grown

            return self._run_layer(layer, x, write, cross, *arguments, method="step"), None

        numbers = jnp.arange(self.config.num_decoder_layers)
        # The past is a carry, which XLA updates in place; as an input and output of the scan it
        # would be copied at every step.
        carry, _ = jax.lax.scan(run, (x, cache.past.own), (numbers, self._stacked(), cache.cross))
        return carry

    def logits(self, x):
        return self.logits_dense(x)


class T5(nn.Module):
    """T5 1.0 or 1.1 over embeddings. Parameters are an argument of every call, as in Linen.

    Args:
        config: Shape of the model.
        dtype: Dtype of the activations, float32 or bfloat16.
        dropout_rate: Rate of the dropout in calls with `train=True`.
        remat: What the backward pass computes again in each layer, see `config.devices.Remat`.
        mesh: Devices that activations are laid out over; None leaves that to XLA.
        attention: What computes the encoder's attention, see `config.devices.AttentionVersion`.
    """

    config: T5Config
    dtype: DType = jnp.float32
    dropout_rate: float = 0.0
    remat: Remat = "none"
    mesh: Mesh | None = None
    attention: AttentionVersion = "auto"

    def setup(self):
        parts = self.config, self.dtype, self.dropout_rate, self.remat, self.mesh, self.attention
        self.token_embedder = Embedder(self.config, self.dtype, self.mesh)
        self.encoder = Encoder(*parts)
        self.decoder = Decoder(*parts)

    def embed(self, ids: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        """The embeddings of ids, of inputs and of targets alike."""
        return self.token_embedder(ids)

    def encode(
        self,
        embedded: Float[Array, "B S D"],
        mask: Bool[Array, "B S"],
        *,
        segments: Segments | None = None,
        train: bool = False,
    ) -> Float[Array, "B S D"]:
        """Return the encoder's output, which is meaningless at masked positions.

        Args:
            embedded: Embedded inputs.
            mask: True where an input is no padding.
            segments: The example of each position, if rows hold several examples.
            train: Whether dropout is on.
        """
        return self.encoder(embedded, mask, segments, train)

    def decode(
        self,
        embedded: Float[Array, "B U D"],
        encoded: Float[Array, "B S D"],
        mask: Bool[Array, "B S"],
        *,
        segments: Segments | None = None,
        train: bool = False,
        calls: int = 1,
    ) -> Float[Array, "B U V"]:
        """Return the logits of the next target at every position, in float32 or wider.

        Args:
            embedded: Embedded targets, shifted right.
            encoded: Output of `encode`.
            mask: Mask that was given to `encode`.
            segments: The example of each position, if rows hold several examples.
            train: Whether dropout is on.
            calls: Size of a `vmap` over this call that maps the targets and not `encoded`. With
                enough targets in all, keys and values are computed once for all calls.
        """
        return self._logits(self.decoder(embedded, encoded, mask, segments, train, calls))

    def start_cache(self, encoded: Float[Array, "B S D"], targets: int, beams: int = 1) -> Cache:
        """Return a cache for `targets` calls of `decode_step`, each with `beams` targets a row."""
        return self.decoder.start(encoded, targets, beams)

    def decode_step(
        self,
        embedded: Float[Array, "B M D"],
        cache: Cache,
        position: Int[Array, ""],
        mask: Bool[Array, "B S"],
    ) -> tuple[Float[Array, "B M V"], Cache]:
        """Decode the target at `position` of each beam.

        Returns:
            Logits of the next target, and the cache with this one.
        """
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
        """Return the logits of `decode` after `encode`."""
        encoded = self.encode(embedded, mask, train=train)
        return self.decode(decoder_embedded, encoded, mask, train=train)

    def _logits(self, x):
        if self.config.tied_head:
            return self.token_embedder.attend(x * self.config.d_model**-0.5)
        return self.decoder.logits(x)

    def init_params(self, key: jax.Array) -> dict:
        """Draw float32 parameters with T5's initial scales, as a plain nested dict."""
        ids = jnp.zeros((1, 1), jnp.int32)

        def init(model: "T5"):
            embedded = model.embed(ids)
            return model(embedded, ids == 0, embedded)

        # Without the mesh, because a single row cannot be cut over it.
        variables: Any = self.clone(mesh=None).init({"params": key}, method=init)
        return variables["params"]
