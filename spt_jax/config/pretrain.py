"""Every option of pretraining a backbone, as frozen dataclasses.

The defaults are those of spt-nano, the smallest of the bundled backbones.
"""

import math
from dataclasses import dataclass, field
from typing import Annotated, Literal

from spt_jax.config.fields import Config, Count, CountOrZero, Rate, Rule, Seed, Share
from spt_jax.config.train import LogConfig, LossConfig, OptimizerConfig
from spt_jax.errors import require


def _mixture_weights() -> dict[str, float]:
    long = {"span_corruption": 1.0, "lm": 1.0}
    # Not in the mixture of spt-nano, version 2; a weight above 0 adds them.
    long |= {"repeat": 0.0, "look_up": 0.0, "mend": 0.0}
    of_docstrings = {"name": 1.5, "kind": 0.5, "summary": 1.0}
    of_order = {"next": 0.5, "order": 0.25, "together": 0.25, "scrambled": 0.5}
    of_words = {"copy": 0.5, "first": 0.25, "last": 0.25, "after": 0.5, "before": 0.25}
    of_words |= {"contains": 0.5, "count": 0.25, "topic": 1.0, "pick": 1.0, "odd": 0.25}
    # The most frequent, because it is the nearest to what a soft prompt has to do.
    of_words |= {"assign": 4.0}
    of_gaps = {"gap": 1.5, "choice": 1.5, "mood": 1.0}
    of_books = {"book": 1.0, "author": 0.5, "same": 0.25}
    return long | of_docstrings | of_order | of_words | of_gaps | of_books


def _at_least(least: int) -> Rule:
    return Rule(lambda n: n >= least, f"{least} or more")


@dataclass(frozen=True, kw_only=True)
class MixtureConfig(Config, section="mixture"):
    """The pretraining mixture: its tasks, and the shapes of its batches.

    Args:
        inputs_length: Tokens of every input, with the end marker.
        long_targets_length: Tokens of the targets of span corruption and LM, with the end marker.
        short_targets_length: Tokens of the targets of all other tasks, with the end marker.
        batch_size: Rows of one step.
        pack: Number of rows of short tasks that are joined into one row, which is `pack` times as
            long and holds as many examples as fit; with 1 every example has a row of its own. Rows
            with long targets are not joined, because they are full. Must divide batch_size.
        short_share: Share of the steps whose rows have short targets.
        docstring_share: Share of the rows that take their text from docstrings, for the tasks that
            can also use other text.
        wording_share: Share of the rows whose instruction has an unusual wording.
        relabel_share: Share of the rows with labels whose instruction gives the labels other names.
        weights: Relative frequency of each task by its name, among the tasks whose targets are as
            long.
    """

    inputs_length: Annotated[int, _at_least(64)] = 96
    long_targets_length: Annotated[int, _at_least(8)] = 48
    short_targets_length: Annotated[int, _at_least(4)] = 12
    batch_size: Count = 64
    pack: Count = 1
    short_share: Share = 0.6
    docstring_share: Share = 0.5
    wording_share: Share = 0.5
    relabel_share: Share = 0.25
    weights: dict[str, float] = field(default_factory=_mixture_weights)

    def check(self) -> None:
        require(
            self.batch_size % self.pack == 0,
            f"mixture.pack is {self.pack}, expected a divisor of mixture.batch_size, "
            f"{self.batch_size}",
        )
        for name, weight in self.weights.items():
            require(
                0 <= weight < math.inf, f"mixture.weights.{name} is {weight}, expected 0 or more"
            )


@dataclass(frozen=True, kw_only=True)
class ArchitectureConfig(Config, section="architecture"):
    """The shape of a T5 1.1 to pretrain; see `spt_jax.t5.T5Config`.

    Args:
        d_model: Width of the embeddings and of every layer's output.
        d_kv: Width of an attention head.
        d_ff: Width of the gated MLP.
        num_heads: Number of attention heads.
        num_layers: Number of encoder layers.
        num_decoder_layers: Number of decoder layers.
        vocab_size: Entries of the tokenizer, which is trained first, and rows of the embedding.
    """

    d_model: Count = 256
    d_kv: Count = 64
    d_ff: Count = 512
    num_heads: Count = 4
    num_layers: Count = 3
    num_decoder_layers: Count = 2
    vocab_size: Count = 3072


def _pretrain_optimizer() -> OptimizerConfig:
    return OptimizerConfig(
        preset="fresh",
        learning_rate=0.02,
        schedule="rsqrt",
        warmup_steps=150,
        weight_decay=0.0,
        multiply_by_parameter_scale=True,
    )


PRETRAINING_PACKAGES = (
    "python",
    "numpy",
    "scipy",
    "jax",
    "flax",
    "optax",
    "orbax",
    "grain",
    "transformers",
    "tensorflow_datasets",
    "huggingface_hub",
    "tokenizers",
    "safetensors",
    "rich",
    "jsonargparse",
    "etils",
    "absl",
    "fsspec",
)
"""The standard library and what is installed with this package: text that every user has."""


@dataclass(frozen=True, kw_only=True)
class PretrainConfig(Config):
    """Pretraining of a backbone from scratch, tokenizer included.

    Args:
        name: Name of the backbone.
        init: Backbone to continue from, bundled or a folder, with its shape and tokenizer. LM
            adaptation is such a run with `mixture.short_share` 0 and no weight but that of `lm`.
        architecture: Shape of the model, if it is trained from scratch.
        mixture: Tasks that it learns, and the shapes of their batches.
        packages: Installed packages whose docstrings are read; `python` is the standard library.
        text_files: Files to read beside the docstrings, .txt or .txt.xz, with a paragraph a line.
        held_out_share: Share of the documents that is kept for measuring.
        max_text_characters: Most characters taken from the text files, as a random sample.
        optimizer: Optimizer and learning-rate schedule: by default T5's Adafactor with steps
            relative to the weights. With plain Adam the decoder of a small model learns to ignore
            its encoder, so that no prompt can steer it.
        loss: Training loss.
        log: Log and checkpoints.
        gap_every: Steps between measurements of the encoder gap on held-out text: how much worse
            the decoder does without the input.
        steps: Number of optimizer steps.
        seed: Seed of weights, batches and samples.
        dtype: Type of the activations.
    """

    name: str
    init: str | None = None
    architecture: ArchitectureConfig = field(default_factory=ArchitectureConfig)
    mixture: MixtureConfig = field(default_factory=MixtureConfig)
    packages: tuple[str, ...] = PRETRAINING_PACKAGES
    text_files: tuple[str, ...] = ()
    held_out_share: Rate = 0.01
    max_text_characters: CountOrZero = 20_000_000
    optimizer: OptimizerConfig = field(default_factory=_pretrain_optimizer)
    loss: LossConfig = field(default_factory=lambda: LossConfig(reduction="mean"))
    log: LogConfig = field(default_factory=LogConfig)
    gap_every: Count = 200
    steps: Count = 6000
    seed: Seed = 0
    dtype: Literal["float32", "bfloat16"] = "float32"
