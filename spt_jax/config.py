"""Every option of a run, as frozen dataclasses: what a YAML file or a dotted flag can set.

The defaults are the training setup of Lester et al. 2021, section 3. Nothing here imports jax, so
that `--help` and a misspelled option answer at once. Each class checks its own values when it is
made; what needs a file or a model to be checked is checked where that is read.
"""

import dataclasses
import typing
from dataclasses import dataclass, field
from typing import Literal


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


@dataclass(frozen=True, kw_only=True)
class PromptConfig:
    """The soft prompt: how many vectors, and where they start.

    Args:
        length: Number of trainable vectors P (paper: 1, 5, 20, 100, 150).
        init: `class_labels`: row i is the mean embedding of label word i, the rest is sampled from
            the vocabulary (the paper's default); `sampled_vocab`: embeddings of P of the first
            5,000 vocabulary entries, without replacement; `uniform_paper`: uniform in [-0.5, 0.5];
            `uniform_official`: uniform in [0, 0.5), what the released code draws; `text`: the
            embeddings of `text`, the rest sampled; `file`: the vectors in `file`.
        text: Words for `init: text`.
        file: For `init: file`, a prompt.safetensors, an .npy array, or the folder of a run.
    """

    length: int = 100
    init: Literal[
        "class_labels", "sampled_vocab", "uniform_paper", "uniform_official", "text", "file"
    ] = "class_labels"
    text: str | None = None
    file: str | None = None

    def __post_init__(self):
        _require(
            self.length >= 1,
            f"prompt.length is {self.length}, expected 1 or more; "
            "set 'prompt: null' for a run without a prompt",
        )
        for name in ("text", "file"):
            given = getattr(self, name)
            _require(
                (self.init == name) == (given is not None),
                f"prompt.{name} is {given!r} with prompt.init '{self.init}'; "
                f"set prompt.{name} exactly when prompt.init is '{name}'",
            )


@dataclass(frozen=True, kw_only=True)
class TaskConfig:
    """The task: a built-in one by name, or a file of your own.

    Args:
        name: A built-in task (see `spt-jax train --task.name=?`), or a title for your own.
        source: Training rows: a .jsonl, .csv or .tsv file with a field per column.
        dev_source: Rows to choose the best step by; taken from `source` by a hash where not given.
        test_source: Rows for the final score; taken from `source` by a hash where not given.
        template: Input text of a row, such as '{sentence}' or 'question: {q} context: {c}'.
        label: The field that holds the label or target text.
        label_words: The words that the model may answer, or {value in the file: word}. Inferred
            from the data where not given. Ignored for `free_text`.
        free_text: The targets are free text: no label words, no rank score.
    """

    name: str | None = None
    source: str | None = None
    dev_source: str | None = None
    test_source: str | None = None
    template: str | None = None
    label: str | None = None
    label_words: dict[str, str] | list[str] | None = None
    free_text: bool = False

    def __post_init__(self):
        if self.source is None:
            _require(
                self.name is not None,
                "no task is given; set task.name to a built-in task, or task.source, "
                "task.template and task.label to use a file",
            )
            for option in ("dev_source", "test_source", "template", "label", "label_words"):
                _require(
                    getattr(self, option) is None,
                    f"task.{option} is set but task.source is not; it describes a file of rows",
                )
        else:
            for option in ("template", "label"):
                _require(
                    getattr(self, option) is not None,
                    f"task.source is '{self.source}' but task.{option} is not set; "
                    "a file needs task.template and task.label",
                )


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Lengths and batches, in tokens and rows.

    Args:
        inputs_length: Longest input kept, in tokens with the end marker; the prompt comes on top.
        targets_length: Longest target kept, in tokens with the end marker.
        batch_size: Rows of one optimizer step.
        buckets: Lengths that a batch is padded to: the smallest that holds its longest row. Each
            is one compilation. `inputs_length` is always added as the last.
        group_by_length: Draw batches of rows of similar length. Faster, but no longer the paper's
            sampling.
    """

    inputs_length: int = 512
    targets_length: int = 32
    batch_size: int = 32
    buckets: tuple[int, ...] = (32, 64, 128, 256)
    group_by_length: bool = False

    def __post_init__(self):
        for name in ("inputs_length", "targets_length", "batch_size"):
            value = getattr(self, name)
            _require(value >= 1, f"data.{name} is {value}, expected 1 or more")
        _require(
            all(b >= 1 for b in self.buckets) and list(self.buckets) == sorted(set(self.buckets)),
            f"data.buckets is {list(self.buckets)}, expected increasing lengths of 1 or more",
        )


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """The optimizer of the trained leaves.

    Args:
        name: `adafactor`, `adamw`, `adam`, `sgd` or `lion`.
        preset: For adafactor. `t5x_1100k`: as the official runs behave, which restore the step
            count 1,100,000 of the pretrained model beside an empty second moment; `fresh`: plain
            Optax, counting from 0.
        learning_rate: Peak learning rate.
        schedule: `constant` (the paper), `linear` (to 0 at the last step), `cosine`, or `rsqrt`
            (T5's pretraining: learning_rate / sqrt(max(step, warmup_steps) / warmup_steps)).
        warmup_steps: Steps of linear warm-up from 0.
        cooldown_steps: Last steps, over which the rate falls linearly to 0 whatever the schedule.
        weight_decay: Share of every weight removed per step; for adafactor not multiplied by the
            learning rate (as in T5X).
        multiply_by_parameter_scale: Adafactor's relative step sizes: off for prompts, on for
            pretraining and model tuning as in T5.
        momentum: First moment decay; none by default. Adam's b1 where the optimizer is Adam.
        clip_norm: Gradients are scaled down to this global norm; none by default.
        accumulate: Micro-batches per step; must divide data.batch_size. Same result, less memory.
    """

    name: Literal["adafactor", "adamw", "adam", "sgd", "lion"] = "adafactor"
    preset: Literal["t5x_1100k", "fresh"] = "t5x_1100k"
    learning_rate: float = 0.3
    schedule: Literal["constant", "linear", "cosine", "rsqrt"] = "constant"
    warmup_steps: int = 0
    cooldown_steps: int = 0
    weight_decay: float = 1e-5
    multiply_by_parameter_scale: bool = False
    momentum: float | None = None
    clip_norm: float | None = None
    accumulate: int = 1

    def __post_init__(self):
        _require(
            self.learning_rate > 0,
            f"optimizer.learning_rate is {self.learning_rate}, expected more than 0",
        )
        _require(
            self.accumulate >= 1,
            f"optimizer.accumulate is {self.accumulate}, expected 1 or more",
        )
        _require(
            self.cooldown_steps >= 0,
            f"optimizer.cooldown_steps is {self.cooldown_steps}, expected 0 or more",
        )
        _require(
            self.warmup_steps >= (1 if self.schedule == "rsqrt" else 0),
            f"optimizer.warmup_steps is {self.warmup_steps}, expected 0 or more, "
            "and 1 or more with optimizer.schedule 'rsqrt'",
        )


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Cross-entropy over the target tokens.

    Args:
        z_loss: Weight of log(Z)^2, which keeps logits near 0 (T5: 1e-4).
        label_smoothing: Share of the probability spread over the vocabulary.
        reduction: `sum` over the target tokens of the batch (as T5X), or their `mean`.
    """

    z_loss: float = 1e-4
    label_smoothing: float = 0.0
    reduction: Literal["sum", "mean"] = "sum"


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """Evaluation on the dev split while training. May differ when a run is resumed.

    Args:
        every: Steps between evaluations; the last step is always evaluated.
        batch_size: Rows of one evaluation batch.
        max_rows: Use only the first rows of the dev split; all by default.
        patience: Stop after this many evaluations without a better score; never by default.
        baselines: Evaluate the frozen model without a prompt too, on the test split.
    """

    every: int = 1000
    batch_size: int = 64
    max_rows: int | None = None
    patience: int | None = None
    baselines: bool = True

    def __post_init__(self):
        for name in ("every", "batch_size"):
            value = getattr(self, name)
            _require(value >= 1, f"eval.{name} is {value}, expected 1 or more")
        for name in ("max_rows", "patience"):
            value = getattr(self, name)
            _require(value is None or value >= 1, f"eval.{name} is {value}, expected 1 or more")


@dataclass(frozen=True, kw_only=True)
class LogConfig:
    """Logging and checkpoints. May differ when a run is resumed.

    Args:
        every: Steps between lines of the log.
        checkpoint_every: Steps between checkpoints; one is also written at every evaluation.
        keep: Checkpoints kept.
    """

    every: int = 50
    checkpoint_every: int = 1000
    keep: int = 3

    def __post_init__(self):
        for name in ("every", "checkpoint_every", "keep"):
            value = getattr(self, name)
            _require(value >= 1, f"log.{name} is {value}, expected 1 or more")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One training run: a prompt for a frozen T5, or (`tune: model`) the whole T5.

    Args:
        model: A bundled backbone by name, or the folder of one.
        task: What to learn.
        prompt: The soft prompt; null for none (with `tune: model`).
        tune: `prompt` trains the prompt alone; `model` trains every weight, the paper's baseline.
        optimizer: How.
        loss: Of what.
        data: Lengths and batches.
        eval: Evaluation while training.
        log: Logging and checkpoints.
        steps: Optimizer steps.
        seed: Of initialisation, batches and dropout.
        dtype: Of the activations; prompt and optimizer are always float32.
        dropout_rate: On while training, also over the prompt, as in the official runs.
        remat: Recompute each layer in the backward pass: less memory, more time.
    """

    task: TaskConfig
    model: str = "spt-nano"
    prompt: PromptConfig | None = field(default_factory=PromptConfig)
    tune: Literal["prompt", "model"] = "prompt"
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    data: DataConfig = field(default_factory=DataConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    log: LogConfig = field(default_factory=LogConfig)
    steps: int = 30_000
    seed: int = 0
    dtype: Literal["float32", "bfloat16"] = "float32"
    dropout_rate: float = 0.1
    remat: bool = False

    def __post_init__(self):
        _require(self.steps >= 1, f"steps is {self.steps}, expected 1 or more")
        _require(self.seed >= 0, f"seed is {self.seed}, expected 0 or more")
        _require(
            0 <= self.dropout_rate < 1,
            f"dropout_rate is {self.dropout_rate}, expected at least 0 and less than 1",
        )
        _require(
            self.prompt is not None or self.tune == "model",
            "prompt is null but tune is 'prompt', so nothing would be trained; "
            "set a prompt, or 'tune: model'",
        )
        _require(
            self.data.batch_size % self.optimizer.accumulate == 0,
            f"optimizer.accumulate {self.optimizer.accumulate} does not divide "
            f"data.batch_size {self.data.batch_size}",
        )


def _mixture_weights() -> dict[str, float]:
    long = {"span_corruption": 1.0, "lm": 1.0}
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
    short_share: float = 0.6
    docstring_share: float = 0.5
    wording_share: float = 0.5
    relabel_share: float = 0.25
    weights: dict[str, float] = field(default_factory=_mixture_weights)

    def __post_init__(self):
        least = {"inputs_length": 64, "long_targets_length": 8, "short_targets_length": 4}
        for name, value in (least | {"batch_size": 1}).items():
            given = getattr(self, name)
            _require(given >= value, f"mixture.{name} is {given}, expected {value} or more")
        for name in ("short_share", "docstring_share", "wording_share", "relabel_share"):
            given = getattr(self, name)
            _require(0 <= given <= 1, f"mixture.{name} is {given}, expected 0 to 1")
        for name, weight in self.weights.items():
            _require(weight >= 0, f"mixture.weights.{name} is {weight}, expected 0 or more")


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
        architecture: Its shape.
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
            _require(value >= 1, f"{name} is {value}, expected 1 or more")


def to_dict(config) -> dict:
    """A config as nested dicts, lists and scalars, ready for YAML or JSON."""

    def plain(value: typing.Any) -> typing.Any:
        if isinstance(value, dict):
            return {k: plain(v) for k, v in value.items()}
        if isinstance(value, (tuple, list)):
            return [plain(v) for v in value]
        return value

    return plain(dataclasses.asdict(config))


def from_dict(cls, values: dict):
    """The config of class `cls` that `to_dict` wrote.

    Raises:
        ValueError: A field is unknown or its value not allowed.
    """
    fields = {f.name: typing.get_type_hints(cls)[f.name] for f in dataclasses.fields(cls)}
    if unknown := sorted(set(values) - set(fields)):
        raise ValueError(f"{cls.__name__} has no field '{unknown[0]}'; it has {', '.join(fields)}")

    def build(kind, value):
        kinds = [k for k in (kind, *typing.get_args(kind)) if dataclasses.is_dataclass(k)]
        if kinds and isinstance(value, dict):
            return from_dict(kinds[0], value)
        return tuple(value) if typing.get_origin(kind) is tuple else value

    return cls(**{name: build(fields[name], value) for name, value in values.items()})
