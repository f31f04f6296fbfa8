"""The layers of the encoder and of the decoder, and stacks of them.

A stack is one layer whose parameters have a leading axis L. It is scanned, so that neither compile
time nor the memory of gathered weights grows with depth, or unrolled where that is faster
(`is_unrolled`).
"""

from typing import Any, get_args

import flax.linen as nn
import jax
from jax.sharding import Mesh

from spt_jax.config.devices import AttentionVersion, Remat
from spt_jax.sharding import constrain, platform
from spt_jax.t5 import thresholds
from spt_jax.t5.attention import Attention
from spt_jax.t5.cache import LAYOUT, cached
from spt_jax.t5.config import T5Config
from spt_jax.t5.layers import MLP, DType, RMSNorm, dropout
from spt_jax.typing import Array


def is_unrolled(layers: int, mesh: Mesh | None, *, encoder: bool = False) -> bool:
    """Return whether the layers of a stack run one by one, and not as a scan of one layer.

    Args:
        layers: Layers of the stack.
        mesh: The devices; jax's default where None.
        encoder: Whether they are layers of the encoder.
    """
    kind, most = platform(mesh), thresholds.UNROLLED
    if kind == "cpu":
        most = thresholds.UNROLLED_ON_CPU
    elif kind == "tpu" and encoder and (mesh is None or mesh.shape["fsdp"] == 1):
        most = thresholds.UNROLLED_ENCODER_ON_TPU
    return layers <= most


def scan_layers(
    layer: type[nn.Module],
    layers: int,
    arguments: int,
    static: int,
    remat: Remat,
    mesh: Mesh | None,
) -> type[nn.Module]:
    """Return a module that applies `layers` copies of `layer` one after the other.

    Args:
        layer: Module that is called with the array that passes from layer to layer, then with the
            arguments that are the same for all layers.
        layers: Number of layers.
        arguments: Number of arguments that are the same for all layers.
        static: Number of these, the last ones, that are bools instead of arrays.
        remat: What the backward pass computes again.
        mesh: The devices; jax's default where None.

    Raises:
        ValueError: `remat` is no `config.devices.Remat`.
    """
    if remat not in get_args(Remat):
        *names, last = map(repr, get_args(Remat))
        raise ValueError(f"remat is {remat!r}, expected {', '.join(names)} or {last}")
    unrolled = is_unrolled(layers, mesh, encoder=issubclass(layer, EncoderLayer))
    if remat in ("minimal", "full"):
        products = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
        last = arguments + 1  # numbers of arguments begin with `self` 0, the layer's input 1
        layer = nn.remat(
            layer,
            # In unrolled layers XLA would reuse the forward values (common-subexpression
            # elimination), which would keep them alive. In a scan it cannot.
            prevent_cse=unrolled,
            static_argnums=tuple(range(last - static + 1, last + 1)),
            policy=products if remat == "minimal" else None,
        )
    in_axes: Any = (nn.broadcast,) * arguments
    return nn.scan(
        layer,
        variable_axes={"params": 0},
        split_rngs={"params": True, "dropout": True},
        in_axes=in_axes,
        length=layers,
        unroll=layers if unrolled else 1,
    )


class _Layer(nn.Module):
    config: T5Config
    dtype: DType
    dropout_rate: float
    remat: Remat
    mesh: Mesh | None
    attention_version: AttentionVersion = "auto"

    def _norm(self) -> RMSNorm:
        return RMSNorm(self.config.d_model, self.config.layer_norm_epsilon, self.dtype)

    def _attention(self) -> Attention:
        return Attention(
            self.config, self.dtype, self.dropout_rate, self.mesh, self.attention_version
        )

    def _mlp(self) -> MLP:
        return MLP(self.config, self.dtype, self.dropout_rate, self.mesh)

    def _residual(self, x: Array, y: Array, train: bool) -> Array:
        y = dropout(self.dropout_rate, y, broadcast=-2, module=self, train=train)
        return constrain(x + y, "BTD", self.mesh)


class EncoderLayer(_Layer):
    """Self-attention and MLP, each with a norm before it and a residual around it."""

    def setup(self):
        self.pre_attention_layer_norm, self.attention = self._norm(), self._attention()
        self.pre_mlp_layer_norm, self.mlp = self._norm(), self._mlp()

    def __call__(self, x, bias, mask, train):
        norm, again = self.pre_attention_layer_norm, self.remat == "light"
        y = self.attention.within(x, norm, bias=bias, mask=mask, train=train, project_again=again)
        x = self._residual(x, y, train)
        y = self.mlp(self.pre_mlp_layer_norm(x), train=train)
        return self._residual(x, y, train), None


class DecoderLayer(_Layer):
    """Causal self-attention, attention to the encoder's output, and MLP, each as in the encoder."""

    def setup(self):
        self.pre_self_attention_layer_norm = self._norm()
        self.self_attention = self._attention()
        self.pre_cross_attention_layer_norm = self._norm()
        self.encoder_decoder_attention = self._attention()
        self.pre_mlp_layer_norm, self.mlp = self._norm(), self._mlp()

    def __call__(self, x, encoded, bias, mask, cross_mask, train, few):
        y = self.pre_self_attention_layer_norm(x)
        own = self.self_attention.keys_values(y)
        cross = encoded if few else self.encoder_decoder_attention.keys_values(encoded)
        return self._attend(x, y, own, cross, bias, mask, cross_mask, train), None

    def cross_keys_values(self, encoded):
        """Return the keys and values that `step` takes as `cross`, in the order of `LAYOUT`."""
        keys_values = self.encoder_decoder_attention.keys_values(encoded)
        return tuple(constrain(cached(x), LAYOUT, self.mesh) for x in keys_values)

    def step(self, x, write, cross, bias, mask, cross_mask):
        """Apply the layer to one more position.

        `write` is a function of the position's keys and values that adds them to the past. It
        returns the keys and values to attend to, and the past.
        """
        y = self.pre_self_attention_layer_norm(x)
        own, past = write(self.self_attention.keys_values(y))
        return self._attend(x, y, own, cross, bias, mask, cross_mask, False, LAYOUT), past

    def _attend(self, x, y, own, cross, bias, mask, cross_mask, train, layout="BSNH"):
        """Apply the layer to `x`, whose norm is `y`, with the `others` of both attentions."""
        y = self.self_attention(y, own, bias=bias, mask=mask, train=train, layout=layout)
        x = self._residual(x, y, train)
        y = self.pre_cross_attention_layer_norm(x)
        y = self.encoder_decoder_attention(y, cross, mask=cross_mask, train=train, layout=layout)
        x = self._residual(x, y, train)
        y = self.mlp(self.pre_mlp_layer_norm(x), train=train)
        return self._residual(x, y, train)
