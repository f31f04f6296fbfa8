"""Every option of pretraining a backbone, as frozen dataclasses.

The defaults are spt-nano's, the smallest of the family.
"""

from dataclasses import dataclass, field
from typing import Literal

from spt_jax.config.train import LogConfig, LossConfig, OptimizerConfig
from spt_jax.errors import require


def _mixture_weights() -> dict[str, float]:
    long = {"span_corruption": 1.0, "lm": 1.0}
    # Not in the recipe of spt-nano, version 2; to be had by giving them a weight.
    long |= {"repeat": 0.0, "look_up": 0.0, "mend": 0.0}
    of_docstrings = {"name": 1.5, "kind": 0.5, "summary": 1.0}
    of_order = {"next": 0.5, "order": 0.25, "together": 0.25, "scrambled": 0.5}
    of_words = {"copy": 0.5, "first": 0.25, "last": 0.25, "after": 0.5, "before": 0.25}
    of_words |= {"contains": 0.5, "count": 0.25, "topic": 1.0, "pick": 1.0, "odd": 0.25}
    # Nearest to what a soft prompt has to do, so the most frequent.
    of_words |= {"assign": 4.0}
    of_gaps = {"gap": 1.5, "choice": 1.5, "mood": 1.0}
    of_books = {"book": 1.0, "author": 0.5, "same": 0.25}
    return long | of_docstrings | of_order | of_words | of_gaps | of_books


@dataclass(frozen=True, kw_only=True)
class MixtureConfig:
    """The pretraining mixture: what every row asks, and the shapes of its batches.

    Args:
        inputs_length: Tokens of every input, with the end marker.
        long_targets_length: Tokens of the targets of span corruption and LM, with the end marker.
        short_targets_length: Tokens of the targets of all other tasks, with the end marker.
        batch_size: Rows of one step.
        pack: Rows of short tasks that make one, `pack` times as long in inputs and targets, which
            then holds as many examples as it has room for; with 1 every example has its own. Rows
            of long targets are full without.
        short_share: Share of the steps whose rows have short targets.
        docstring_share: Share of the rows from docstrings, where a task can use both.
        wording_share: Share of the rows that give the instruction in other words than the usual.
        relabel_share: Share of the rows with labels whose instruction names other words for them.
        weights: How often a row is of each task, among the tasks of its length.
    """

    inputs_length: int = 96
    long_targets_length: int = 48
    short_targets_length: int = 12
    batch_size: int = 64
    pack: int = 1
    short_share: float = 0.6
    docstring_share: float = 0.5
    wording_share: float = 0.5
    relabel_share: float = 0.25
    weights: dict[str, float] = field(default_factory=_mixture_weights)

    def __post_init__(self):
        least = {"inputs_length": 64, "long_targets_length": 8, "short_targets_length": 4}
        for name, value in (least | {"batch_size": 1, "pack": 1}).items():
            given = getattr(self, name)
            require(given >= value, f"mixture.{name} is {given}, expected {value} or more")
        require(
            self.batch_size % self.pack == 0,
            f"mixture.pack is {self.pack}, expected a divisor of mixture.batch_size, "
            f"{self.batch_size}",
        )
        for name in ("short_share", "docstring_share", "wording_share", "relabel_share"):
            given = getattr(self, name)
            require(0 <= given <= 1, f"mixture.{name} is {given}, expected 0 to 1")
        for name, weight in self.weights.items():
            require(weight >= 0, f"mixture.weights.{name} is {weight}, expected 0 or more")


@dataclass(frozen=True, kw_only=True)
class ArchitectureConfig:
    """The shape of a T5 1.1 to pretrain; see `spt_jax.t5.T5Config`.

    Args:
        d_model: Width.
        d_kv: Width of a head.
        d_ff: Width of the gated MLP.
        num_heads: Attention heads.
        num_layers: Encoder layers.
        num_decoder_layers: Decoder layers.
        vocab_size: Entries of the tokenizer, which is trained first, and rows of the embedding.
    """

    d_model: int = 256
    d_kv: int = 64
    d_ff: int = 512
    num_heads: int = 4
    num_layers: int = 3
    num_decoder_layers: int = 2
    vocab_size: int = 3072


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
"""The standard library and the dependencies of this package: text that every installation has."""


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """Pretraining of a backbone from scratch, tokenizer included.

    Args:
        name: Of the backbone.
        init: A backbone to go on from, bundled or a folder; its shape and tokenizer then stay. LM
            adaptation is going on with `mixture.short_share` 0 and the weight of `lm` alone.
        architecture: The shape, from scratch.
        mixture: What it learns.
        packages: Installed packages whose docstrings are read; `python` is the standard library.
        text_files: .txt or .txt.xz files, a paragraph a line, beside the docstrings.
        held_out_share: Share of the documents that is kept for measuring.
        max_text_characters: Characters taken from the text files, as a random sample.
        optimizer: T5's Adafactor with relative step sizes by default. Plain Adam lets the decoder
            of a small model learn to ignore its encoder, which no prompt can then steer.
        loss: Of what.
        log: Logging and checkpoints.
        gap_every: Steps between measurements of the encoder gap on held-out text.
        steps: Optimizer steps.
        seed: Of weights, batches and samples.
        dtype: Of the activations.
    """

    name: str
    init: str | None = None
    architecture: ArchitectureConfig = field(default_factory=ArchitectureConfig)
    mixture: MixtureConfig = field(default_factory=MixtureConfig)
    packages: tuple[str, ...] = PRETRAINING_PACKAGES
    text_files: tuple[str, ...] = ()
    held_out_share: float = 0.01
    max_text_characters: int = 20_000_000
    optimizer: OptimizerConfig = field(default_factory=_pretrain_optimizer)
    loss: LossConfig = field(default_factory=lambda: LossConfig(reduction="mean"))
    log: LogConfig = field(default_factory=LogConfig)
    gap_every: int = 200
    steps: int = 6000
    seed: int = 0
    dtype: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self):
        for name in ("steps", "gap_every"):
            value = getattr(self, name)
            require(value >= 1, f"{name} is {value}, expected 1 or more")
