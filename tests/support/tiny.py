"""A tiny backbone and a tiny task, made in a second: everything of a run but the size."""

import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from spt_jax.config.train import (
    DataConfig,
    EvalConfig,
    LogConfig,
    PromptConfig,
    TaskConfig,
    TrainConfig,
)
from spt_jax.models.backbone import save_backbone
from spt_jax.pretraining.packing import PackedRows
from spt_jax.t5 import T5, T5Config
from spt_jax.tokenizers.bpe import train_tokenizer

SHAPE = T5Config(
    vocab_size=320,
    d_model=16,
    d_kv=8,
    d_ff=32,
    num_heads=2,
    num_layers=1,
    num_decoder_layers=1,
)

ANIMALS, PLANTS = ("cat", "dog", "cow", "owl"), ("oak", "elm", "fern", "moss")


def sentences() -> list[tuple[str, str]]:
    """(text, label) of 64 different rows, half of each label."""
    rows = []
    for place in ("garden", "forest", "yard", "field"):
        for verb in ("likes", "meets"):
            rows += [(f"the {a} {verb} the {place}", "animal") for a in ANIMALS]
            rows += [(f"the {p} {verb} the {place}", "plant") for p in PLANTS]
    return rows


@functools.cache
def _abstract_params(shape: T5Config) -> dict:
    """Shapes and dtypes of the parameters; tracing the initialization takes a while."""
    return jax.eval_shape(T5(shape).init_params, jax.random.key(0))


def random_params(shape: T5Config, seed: int = 0) -> dict:
    """Random float32 parameters, drawn by numpy: compiling `init_params` takes seconds."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        name, size = path[-1].key, leaf.shape[-2] if len(leaf.shape) > 1 else 1
        if name == "scale":
            return jnp.asarray((1 + 0.1 * rng.standard_normal(leaf.shape)).astype(np.float32))
        stddev = 1.0 if name == "embedding" else size**-0.5
        return jnp.asarray((stddev * rng.standard_normal(leaf.shape)).astype(np.float32))

    return jax.tree_util.tree_map_with_path(draw, _abstract_params(shape))


def pack(inputs, targets, room: int = 0) -> dict[str, np.ndarray]:
    """All examples of a batch in one row, with `room` positions of padding behind them."""
    examples = [tuple(x[x > 0].tolist() for x in map(np.asarray, e)) for e in zip(inputs, targets)]
    rows = PackedRows(1, *(sum(map(len, part)) + room for part in zip(*examples)))
    assert all(rows.add(*example) for example in examples)
    return rows.batch()


def write_backbone(folder: Path, seed: int = 0, words: str = "") -> Path:
    """A random T5 1.1 with a tokenizer of its own, which knows the characters of `words` too."""
    texts = [f"{text} {label}" for text, label in sentences()]
    tokenizer = train_tokenizer([*texts, words] if words else texts, 320)
    params = random_params(SHAPE, seed)
    save_backbone(folder, f"tiny-{seed}", SHAPE, params, tokenizer)
    return folder


def write_rows(path: Path) -> Path:
    """The rows as JSONL."""
    lines = [json.dumps({"text": text, "label": label}) for text, label in sentences()]
    path.write_text("\n".join(lines) + "\n")
    return path


def train_config(folder: Path, **changes) -> TrainConfig:
    """A run of 12 steps on the tiny backbone and rows, which it writes to `folder`."""
    rows = folder / "rows.jsonl"
    if not rows.exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_rows(rows)
        write_backbone(folder / "tiny")
    settings = {
        "model": str(folder / "tiny"),
        "task": TaskConfig(name="tiny", source=str(rows), template="{text}", label="label"),
        "prompt": PromptConfig(length=3),
        "data": DataConfig(inputs_length=16, targets_length=4, batch_size=8, buckets=(12,)),
        "eval": EvalConfig(every=4, batch_size=8, baselines=False),
        "log": LogConfig(every=3, checkpoint_every=3),
        "steps": 12,
    }
    return TrainConfig(**{**settings, **changes})
