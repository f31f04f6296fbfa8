"""Random models, prompts and batches for the parity tests, and what spt_jax makes of them.

The shapes are tiny, depth and width are uneven, and sequences reach beyond the last position
bucket.
"""

import copy
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from spt_jax.config.train import LossConfig
from spt_jax.decoding.loop import EOS_ID
from spt_jax.forward import forward
from spt_jax.losses import cross_entropy
from spt_jax.pytree import leaf_name
from spt_jax.t5 import T5, T5Config
from spt_jax.typing import Batch, Params, PyTree

# 40 inputs and 24 targets lie far beyond the last of these buckets.
SHALLOW_DECODER = T5Config(
    vocab_size=50,
    d_model=16,
    d_kv=6,
    d_ff=24,
    num_heads=3,  # 18 wide in attention
    num_layers=3,
    num_decoder_layers=1,
    relpos_buckets=8,
    relpos_max_distance=16,
)
SHALLOW_ENCODER = dataclasses.replace(
    SHALLOW_DECODER,
    vocab_size=43,
    d_model=24,
    d_kv=4,
    d_ff=20,
    num_heads=2,  # 8 wide in attention
    num_layers=1,
    num_decoder_layers=3,
)
STANDARD_BUCKETS = dataclasses.replace(
    SHALLOW_DECODER,
    d_model=32,
    d_kv=8,
    num_heads=4,
    num_layers=2,
    num_decoder_layers=2,
    relpos_buckets=32,
    relpos_max_distance=128,
)
SHAPES = {  # config, length of the prompt, of the inputs, of the targets
    "3+1": (SHALLOW_DECODER, 5, 40, 24),
    "1+3": (SHALLOW_ENCODER, 7, 40, 24),
    "2+2": (STANDARD_BUCKETS, 20, 140, 150),
}
VERSIONS = {"v1_0": {"mlp": "relu", "tied_head": True}, "v1_1": {}}
CASES = [
    ("v1_0", "3+1"),
    ("v1_0", "1+3"),
    ("v1_1", "3+1"),
    ("v1_1", "1+3"),
    ("v1_1", "2+2"),
]
LIMITS = {"float32": (1e-5, 1e-4), "float64": (1e-9, 1e-9)}  # of logits, of gradients

# Compiling is most of the time of these tests, so the compiler does not optimize. None of these
# options is needed: leave out what a jax does not know.
quick_jit = functools.partial(
    jax.jit,
    compiler_options={
        "xla_backend_optimization_level": 0,
        "xla_llvm_disable_expensive_passes": True,
        "xla_cpu_use_fusion_emitters": False,
    },
)


def random_t5(config: T5Config, seed: int) -> PyTree:
    """Parameters that hide nothing: norm scales differ from 1, position biases are large."""
    rng = np.random.default_rng(seed)

    def draw(path, shape):
        name, noise = leaf_name(path), rng.standard_normal(shape.shape, np.float32)
        if name.endswith("scale"):
            return 1 + np.float32(0.3) * noise
        if name.endswith("kernel"):
            return noise * np.float32(shape.shape[-2] ** -0.5)
        return noise

    shapes = jax.eval_shape(T5(config).init_params, jax.random.key(0))
    return jax.tree_util.tree_map_with_path(draw, shapes)


def random_ids(config: T5Config, lengths: list[int], width: int, seed: int) -> np.ndarray:
    """One row of ids for each length, EOS at its end and padding behind."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(2, config.vocab_size, (len(lengths), width), np.int32)
    for row, length in zip(ids, lengths, strict=True):
        row[length - 1], row[length:] = EOS_ID, 0
    return ids


@functools.cache
def random_case(version: str, shape: str) -> tuple[T5Config, PyTree, np.ndarray, Batch]:
    """(config, parameters, prompt, batch) of a version and a shape."""
    config, prompt_length, inputs, targets = SHAPES[shape]
    config = dataclasses.replace(config, **VERSIONS[version])
    prompt = np.random.default_rng(2).standard_normal((prompt_length, config.d_model), np.float32)
    batch = {  # a full row, a shorter one, and one of EOS alone
        "inputs": random_ids(config, [inputs, inputs // 2, 1], inputs, seed=3),
        "targets": random_ids(config, [targets, 2, targets // 2], targets, seed=4),
    }
    return config, random_t5(config, seed=1), prompt, batch


def talkative(config: T5Config, t5: PyTree) -> PyTree:
    """Smaller embeddings, so that a tied head does not repeat its input, and a louder EOS."""
    t5 = copy.deepcopy(t5)
    embedding = t5["token_embedder"]["embedding"]
    embedding *= np.float32(0.1)
    head = embedding.T if config.tied_head else t5["decoder"]["logits_dense"]["kernel"]
    head[:, EOS_ID] *= 2
    return t5


def our_params(params: Params, dtype: str) -> Params:
    """The parameters as jax arrays; in float64 where the caller has enabled x64."""
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), params)


@functools.cache
def our_logits_and_grad(version: str, shape: str, dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """Our logits with the case's prompt, and the prompt's gradient of the summed cross-entropy."""
    config, t5, prompt, batch = random_case(version, shape)
    model = T5(config, dtype=jnp.dtype(dtype))

    def loss(prompt, t5, batch):
        logits = forward(model, {"t5": t5, "prompt": prompt}, batch["inputs"], batch["targets"])
        mask = batch["targets"] > 0
        sums = cross_entropy(logits, batch["targets"], mask, LossConfig(z_loss=0.0))
        return sums.total("sum"), logits

    with jax.enable_x64(dtype == "float64"):
        run = quick_jit(jax.grad(loss, has_aux=True))
        grad, logits = run(our_params(prompt, dtype), our_params(t5, dtype), batch)
    return np.asarray(logits), np.asarray(grad)


def relative_difference(ours: np.ndarray, theirs: np.ndarray) -> float:
    """max|ours - theirs| / max|theirs|."""
    assert ours.shape == theirs.shape and ours.dtype == theirs.dtype
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


def relative_norm(ours: np.ndarray, theirs: np.ndarray) -> float:
    """The norm of the difference over the norm of theirs."""
    assert ours.shape == theirs.shape and ours.dtype == theirs.dtype
    return float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))
