"""Which tensor of a source is which leaf of our model.

The table of transformers' names is literal, so that it can be checked by eye. `{i}` is the number
of the layer. Our layers are stacked: the leaf `encoder/layers/...` has a leading axis of layers.
Both tables name the MLPs of T5 1.0 (`wi`) and of T5 1.1 (`wi_0`, `wi_1`); a model has one of them.
"""

import functools
import math
from collections.abc import Mapping

import jax

from spt_jax.models.source import Leaf, Tensor
from spt_jax.pytree import named_leaves
from spt_jax.t5 import T5, T5Config

_E, _D = "encoder.block.{i}.layer.", "decoder.block.{i}.layer."
_BIAS = ".block.0.layer.0.SelfAttention.relative_attention_bias.weight"

TRANSFORMERS = {
    "token_embedder/embedding": "shared.weight",
    "encoder/relpos_bias/rel_embedding": "encoder" + _BIAS,
    "encoder/layers/pre_attention_layer_norm/scale": _E + "0.layer_norm.weight",
    "encoder/layers/attention/query/kernel": _E + "0.SelfAttention.q.weight",
    "encoder/layers/attention/key/kernel": _E + "0.SelfAttention.k.weight",
    "encoder/layers/attention/value/kernel": _E + "0.SelfAttention.v.weight",
    "encoder/layers/attention/out/kernel": _E + "0.SelfAttention.o.weight",
    "encoder/layers/pre_mlp_layer_norm/scale": _E + "1.layer_norm.weight",
    "encoder/layers/mlp/wi/kernel": _E + "1.DenseReluDense.wi.weight",
    "encoder/layers/mlp/wi_0/kernel": _E + "1.DenseReluDense.wi_0.weight",
    "encoder/layers/mlp/wi_1/kernel": _E + "1.DenseReluDense.wi_1.weight",
    "encoder/layers/mlp/wo/kernel": _E + "1.DenseReluDense.wo.weight",
    "encoder/encoder_norm/scale": "encoder.final_layer_norm.weight",
    "decoder/relpos_bias/rel_embedding": "decoder" + _BIAS,
    "decoder/layers/pre_self_attention_layer_norm/scale": _D + "0.layer_norm.weight",
    "decoder/layers/self_attention/query/kernel": _D + "0.SelfAttention.q.weight",
    "decoder/layers/self_attention/key/kernel": _D + "0.SelfAttention.k.weight",
    "decoder/layers/self_attention/value/kernel": _D + "0.SelfAttention.v.weight",
    "decoder/layers/self_attention/out/kernel": _D + "0.SelfAttention.o.weight",
    "decoder/layers/pre_cross_attention_layer_norm/scale": _D + "1.layer_norm.weight",
    "decoder/layers/encoder_decoder_attention/query/kernel": _D + "1.EncDecAttention.q.weight",
    "decoder/layers/encoder_decoder_attention/key/kernel": _D + "1.EncDecAttention.k.weight",
    "decoder/layers/encoder_decoder_attention/value/kernel": _D + "1.EncDecAttention.v.weight",
    "decoder/layers/encoder_decoder_attention/out/kernel": _D + "1.EncDecAttention.o.weight",
    "decoder/layers/pre_mlp_layer_norm/scale": _D + "2.layer_norm.weight",
    "decoder/layers/mlp/wi/kernel": _D + "2.DenseReluDense.wi.weight",
    "decoder/layers/mlp/wi_0/kernel": _D + "2.DenseReluDense.wi_0.weight",
    "decoder/layers/mlp/wi_1/kernel": _D + "2.DenseReluDense.wi_1.weight",
    "decoder/layers/mlp/wo/kernel": _D + "2.DenseReluDense.wo.weight",
    "decoder/decoder_norm/scale": "decoder.final_layer_norm.weight",
    "decoder/logits_dense/kernel": "lm_head.weight",
}
"""Ours to transformers'. Their matrices are [out, in], and the position bias [buckets, N]."""

T5X = {name: name.replace("/layers/", "/layers_{i}/") for name in TRANSFORMERS}
"""Ours to T5X's, which differ in the layers alone. Their matrices are [in, out], as ours are."""

_LISTED = 12


@functools.lru_cache  # tracing the initialization takes a tenth of a second
def leaf_shapes(config: T5Config) -> dict[str, tuple[int, ...]]:
    """Return the shape of every leaf of the model, by name."""
    abstract = jax.eval_shape(T5(config).init_params, jax.random.key(0))
    return {name: leaf.shape for name, leaf in named_leaves(abstract)}


def count_weights(config: T5Config) -> int:
    """Return the number of parameters of a model of this shape."""
    return sum(map(math.prod, leaf_shapes(config).values()))


def match(
    tensors: Mapping[str, Tensor],
    config: T5Config,
    origin: str,
    table: Mapping[str, str] | None,
    *,
    transposed: bool = False,
    scanned: bool = False,
) -> dict[str, Leaf]:
    """Return every leaf with its tensors; every tensor belongs to one leaf.

    Args:
        tensors: Tensors of the source, by name.
        config: Shape of our model.
        origin: Folder or address of the source, for messages.
        table: `TRANSFORMERS` or `T5X`; None where the tensors are our leaves themselves.
        transposed: Whether matrices are [out, in]; the embedding table never is.
        scanned: Whether the layers of a T5X checkpoint are one tensor, with the layer on axis 1.

    Raises:
        ValueError: Leaves lack tensors, tensors are left over, or shapes differ. The message lists
            them.
    """
    leaves, used = {}, set()
    missing, misshapen = [], []
    for name, shape in leaf_shapes(config).items():
        stacked = table is not None and "/layers/" in name
        names, layout, fitting = [table[name] if table else name], "same", [shape]
        if stacked:
            fitting = [shape[1:]]
            if table is T5X and "attention/" in name:
                fitting.append(_heads_apart(name, shape[1:], config))
        if stacked and scanned:
            names, layout = [names[0].replace("layers_{i}", name.split("/")[0])], "scanned"
            fitting = [(one[0], shape[0], *one[1:]) for one in fitting]
        elif stacked:
            names = [names[0].format(i=i) for i in range(shape[0])]
        if transposed and name != "token_embedder/embedding":
            layout, fitting = "transposed", [one[::-1] for one in fitting]
        for one in names:
            if one not in tensors:
                missing.append(f"{one} {fitting[0]}")
            elif tensors[one].shape not in fitting:
                misshapen.append(f"{one} has shape {tensors[one].shape}, expected {fitting[0]}")
        used.update(names)
        if tensors.keys() >= set(names):
            leaves[name] = Leaf(shape, tuple(tensors[one] for one in names), layout, stacked)
    unexpected = [f"{one} {tensors[one].shape}" for one in sorted(tensors.keys() - used)]
    problems = [
        *_listed("missing ", sorted(missing)),
        *_listed("unexpected ", unexpected),
        *_listed("", misshapen),
    ]
    if problems:
        raise ValueError(f"weights of {origin} do not fit its config: " + "; ".join(problems))
    return leaves


def _heads_apart(name: str, shape: tuple[int, ...], config: T5Config) -> tuple[int, ...]:
    """Return the shape of an attention kernel whose heads [N, H] are two axes, as T5X may have."""
    heads = config.num_heads, config.d_kv
    return (*heads, shape[1]) if name.endswith("out/kernel") else (shape[0], *heads)


def _listed(prefix: str, items: list[str]) -> list[str]:
    more = [f"and {len(items) - _LISTED} more"] if len(items) > _LISTED else []
    return [*(prefix + item for item in items[:_LISTED]), *more]
