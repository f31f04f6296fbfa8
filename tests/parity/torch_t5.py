"""transformers' torch T5 with our parameters: the oracle of the parity tests.

Every leaf of ours is copied into exactly one tensor of theirs, or one per layer where it has the
leading axis L, by the literal table `NAMES`; nothing of theirs keeps a value of its own.
"""

import numpy as np
import torch
import transformers
from transformers import T5ForConditionalGeneration
from transformers.models.t5.modeling_t5 import T5LayerNorm

from spt_jax.pytree import named_leaves
from spt_jax.t5 import T5Config
from spt_jax.typing import Batch, PyTree

torch.set_num_threads(1)

# {e} is encoder.block.{layer}.layer and {d} is decoder.block.{layer}.layer.
NAMES = {
    "token_embedder/embedding": "shared.weight",
    "encoder/relpos_bias/rel_embedding": (
        "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    ),
    "encoder/layers/pre_attention_layer_norm/scale": "{e}.0.layer_norm.weight",
    "encoder/layers/attention/query/kernel": "{e}.0.SelfAttention.q.weight",
    "encoder/layers/attention/key/kernel": "{e}.0.SelfAttention.k.weight",
    "encoder/layers/attention/value/kernel": "{e}.0.SelfAttention.v.weight",
    "encoder/layers/attention/out/kernel": "{e}.0.SelfAttention.o.weight",
    "encoder/layers/pre_mlp_layer_norm/scale": "{e}.1.layer_norm.weight",
    "encoder/layers/mlp/wi/kernel": "{e}.1.DenseReluDense.wi.weight",
    "encoder/layers/mlp/wi_0/kernel": "{e}.1.DenseReluDense.wi_0.weight",
    "encoder/layers/mlp/wi_1/kernel": "{e}.1.DenseReluDense.wi_1.weight",
    "encoder/layers/mlp/wo/kernel": "{e}.1.DenseReluDense.wo.weight",
    "encoder/encoder_norm/scale": "encoder.final_layer_norm.weight",
    "decoder/relpos_bias/rel_embedding": (
        "decoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    ),
    "decoder/layers/pre_self_attention_layer_norm/scale": "{d}.0.layer_norm.weight",
    "decoder/layers/self_attention/query/kernel": "{d}.0.SelfAttention.q.weight",
    "decoder/layers/self_attention/key/kernel": "{d}.0.SelfAttention.k.weight",
    "decoder/layers/self_attention/value/kernel": "{d}.0.SelfAttention.v.weight",
    "decoder/layers/self_attention/out/kernel": "{d}.0.SelfAttention.o.weight",
    "decoder/layers/pre_cross_attention_layer_norm/scale": "{d}.1.layer_norm.weight",
    "decoder/layers/encoder_decoder_attention/query/kernel": "{d}.1.EncDecAttention.q.weight",
    "decoder/layers/encoder_decoder_attention/key/kernel": "{d}.1.EncDecAttention.k.weight",
    "decoder/layers/encoder_decoder_attention/value/kernel": "{d}.1.EncDecAttention.v.weight",
    "decoder/layers/encoder_decoder_attention/out/kernel": "{d}.1.EncDecAttention.o.weight",
    "decoder/layers/pre_mlp_layer_norm/scale": "{d}.2.layer_norm.weight",
    "decoder/layers/mlp/wi/kernel": "{d}.2.DenseReluDense.wi.weight",
    "decoder/layers/mlp/wi_0/kernel": "{d}.2.DenseReluDense.wi_0.weight",
    "decoder/layers/mlp/wi_1/kernel": "{d}.2.DenseReluDense.wi_1.weight",
    "decoder/layers/mlp/wo/kernel": "{d}.2.DenseReluDense.wo.weight",
    "decoder/decoder_norm/scale": "decoder.final_layer_norm.weight",
    "decoder/logits_dense/kernel": "lm_head.weight",
}
ALIASES = {"encoder.embed_tokens.weight", "decoder.embed_tokens.weight"}
"""Other names of `shared.weight`; in T5 1.0 `lm_head.weight` is a third."""


def torch_names(name: str, layers: int) -> list[str]:
    """Their names of our leaf `name`, one per layer, or one where it belongs to no layer."""
    e, d = "encoder.block.{}.layer", "decoder.block.{}.layer"
    return [
        NAMES[name].format(e=e.format(layer), d=d.format(layer))
        for layer in range(layers if "/layers/" in name else 1)
    ]


def transposed(name: str, leaf: np.ndarray) -> np.ndarray:
    """Kernels and position biases are the other way around in torch; norms have one axis."""
    return leaf if name == "token_embedder/embedding" else leaf.T


def torch_model(config: T5Config, t5: PyTree, dtype: torch.dtype) -> T5ForConditionalGeneration:
    """Their T5 with our parameters, in evaluation mode."""
    model = T5ForConditionalGeneration(
        transformers.T5Config(
            vocab_size=config.vocab_size,
            d_model=config.d_model,
            d_kv=config.d_kv,
            d_ff=config.d_ff,
            num_heads=config.num_heads,
            num_layers=config.num_layers,
            num_decoder_layers=config.num_decoder_layers,
            relative_attention_num_buckets=config.relpos_buckets,
            relative_attention_max_distance=config.relpos_max_distance,
            layer_norm_epsilon=config.layer_norm_epsilon,
            feed_forward_proj="relu" if config.mlp == "relu" else "gated-gelu",
            tie_word_embeddings=config.tied_head,
            decoder_start_token_id=0,
            attn_implementation="eager",
        )
    )
    aliases = ALIASES | {"lm_head.weight"}
    if not config.tied_head:
        # transformers 5 ties the head of every T5 that is made from a config.
        model.lm_head.weight = torch.nn.Parameter(torch.zeros_like(model.lm_head.weight))
        aliases = ALIASES
    if dtype == torch.float64:
        # T5LayerNorm computes its statistics in float32 whatever its input is.
        for module in list(model.modules()):
            for child_name, child in list(module.named_children()):
                if isinstance(child, T5LayerNorm):
                    norm = torch.nn.RMSNorm(config.d_model, eps=config.layer_norm_epsilon)
                    setattr(module, child_name, norm)
    state = {}
    for name, leaf in named_leaves(t5):
        leaf = np.asarray(leaf)
        names = torch_names(name, leaf.shape[0])
        for one, part in zip(names, leaf if "/layers/" in name else [leaf], strict=True):
            assert one not in state, f"{one} would be written twice"
            state[one] = torch.tensor(transposed(name, part))
    missing, unexpected = model.to(dtype).load_state_dict(state, strict=False)
    assert set(missing) == aliases and not unexpected, (missing, unexpected)
    return model.eval()


def torch_grads(model: T5ForConditionalGeneration, t5: PyTree) -> dict[str, np.ndarray]:
    """The gradients of their parameters by our names, in our layout."""
    theirs = {name: p.grad for name, p in model.named_parameters()}
    grads = {}
    for name, leaf in named_leaves(t5):
        parts = [
            transposed(name, theirs.pop(one).numpy()) for one in torch_names(name, leaf.shape[0])
        ]
        grads[name] = np.stack(parts) if "/layers/" in name else parts[0]
    assert not theirs, f"no leaf of ours is {sorted(theirs)}"
    return grads


def torch_logits(
    model: T5ForConditionalGeneration, batch: Batch, prompt: torch.Tensor | None
) -> torch.Tensor:
    """Logits of every target, with the prompt in front of the embedded input."""
    inputs, targets = (torch.tensor(np.asarray(batch[key])).long() for key in ("inputs", "targets"))
    embedded, mask = model.shared(inputs), (inputs > 0).long()
    if prompt is not None:
        rows = prompt.expand(len(inputs), *prompt.shape)
        embedded = torch.cat([rows, embedded], dim=1)
        mask = torch.cat([torch.ones(rows.shape[:2], dtype=torch.long), mask], dim=1)
    shifted = torch.nn.functional.pad(targets, (1, -1))
    return model(
        inputs_embeds=embedded, attention_mask=mask, decoder_input_ids=shifted, use_cache=False
    ).logits


def torch_loss(logits: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Cross-entropy summed over the targets that are no padding."""
    targets = torch.tensor(np.asarray(batch["targets"])).long()
    return torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), targets.flatten(), ignore_index=0, reduction="sum"
    )
