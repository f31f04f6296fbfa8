"""Every option of a run, as frozen dataclasses: what a YAML file or a dotted flag can set.

The defaults are the training setup of Lester et al. 2021, section 3. Nothing here imports jax, so
that `--help` and a misspelled option answer at once. Each class checks its own values when it is
made; what needs a file or a model to be checked is checked where that is read.
"""

import dataclasses
import typing
from dataclasses import dataclass, field
from typing import Literal

from spt_jax.config.devices import MeshConfig, Remat
from spt_jax.errors import require


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
        file: For `init: file`, a run, a prompt.safetensors, a .npy file or a PEFT adapter's folder.
    """

    length: int = 100
    init: Literal[
        "class_labels", "sampled_vocab", "uniform_paper", "uniform_official", "text", "file"
    ] = "class_labels"
    text: str | None = None
    file: str | None = None

    def __post_init__(self):
        require(
            self.length >= 1,
            f"prompt.length is {self.length}, expected 1 or more; "
            "set 'prompt: null' for a run without a prompt",
        )
        for name in ("text", "file"):
            given = getattr(self, name)
            require(
                (self.init == name) == (given is not None),
                f"prompt.{name} is {given!r} with prompt.init '{self.init}'; "
                f"set prompt.{name} exactly when prompt.init is '{name}'",
            )


@dataclass(frozen=True, kw_only=True)
class TaskConfig:
    """The task: a built-in one or one of the papers by name, or a file of your own.

    Args:
        name: A task (see `spt-jax train --task.name=?`), or a title for your own.
        origin: Where the rows of a task of the papers come from: `tfds`, `hub`, or a folder with
            train.jsonl and validation.jsonl (.csv, .tsv, .parquet) in the dataset's columns.
        prefix: Begin the inputs of a task of the papers with its name, as T5's own tasks do. The
            paper's prompts were trained without.
        dev_from_train: Choose the best step of a task of the papers on rows taken from train, where
            the paper chooses it on those that it reports, because the test labels are hidden.
        source: Training rows: a .jsonl, .csv, .tsv or .parquet file with a field per column.
        dev_source: Rows to choose the best step by; taken from `source` by a hash where not given.
        test_source: Rows for the final score; taken from `source` by a hash where not given.
        template: Input text of a row, such as '{sentence}' or 'question: {q} context: {c}'.
        label: The field that holds the label or target text.
        label_words: The words that the model may answer, or {value in the file: word}. Inferred
            from the data where not given. Ignored for `free_text`.
        free_text: The targets are free text: no label words, no rank score.
    """

    name: str | None = None
    origin: str = "tfds"
    prefix: bool = False
    dev_from_train: bool = False
    source: str | None = None
    dev_source: str | None = None
    test_source: str | None = None
    template: str | None = None
    label: str | None = None
    label_words: dict[str, str] | list[str] | None = None
    free_text: bool = False

    def __post_init__(self):
        if self.source is None:
            require(
                self.name is not None,
                "no task is given; set task.name to a built-in task, or task.source, "
                "task.template and task.label to use a file",
            )
            for option in ("dev_source", "test_source", "template", "label", "label_words"):
                require(
                    getattr(self, option) is None,
                    f"task.{option} is set but task.source is not; it describes a file of rows",
                )
        else:
            for option in ("template", "label"):
                require(
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
    buckets: tuple[int, ...] = (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 128, 192, 256, 384)
    group_by_length: bool = False

    def __post_init__(self):
        for name in ("inputs_length", "targets_length", "batch_size"):
            value = getattr(self, name)
            require(value >= 1, f"data.{name} is {value}, expected 1 or more")
        require(
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
        require(
            self.learning_rate > 0,
            f"optimizer.learning_rate is {self.learning_rate}, expected more than 0",
        )
        require(
            self.accumulate >= 1,
            f"optimizer.accumulate is {self.accumulate}, expected 1 or more",
        )
        require(
            self.cooldown_steps >= 0,
            f"optimizer.cooldown_steps is {self.cooldown_steps}, expected 0 or more",
        )
        require(
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
            require(value >= 1, f"eval.{name} is {value}, expected 1 or more")
        for name in ("max_rows", "patience"):
            value = getattr(self, name)
            require(value is None or value >= 1, f"eval.{name} is {value}, expected 1 or more")


@dataclass(frozen=True, kw_only=True)
class LogConfig:
    """Logging and checkpoints. May differ when a run is resumed.

    Args:
        every: Steps between lines of the log.
        checkpoint_every: Steps between checkpoints; one is also written at every evaluation.
        checkpoint_minutes: Most minutes between checkpoints, whatever the steps; null for any.
        keep: Checkpoints kept.
        tensorboard: Write TensorBoard's event files too, in the run's folder `events`.
    """

    every: int = 50
    checkpoint_every: int = 1000
    checkpoint_minutes: float | None = 10.0
    keep: int = 3
    tensorboard: bool = False

    def __post_init__(self):
        for name in ("every", "checkpoint_every", "keep"):
            value = getattr(self, name)
            require(value >= 1, f"log.{name} is {value}, expected 1 or more")
        minutes = self.checkpoint_minutes
        require(
            minutes is None or minutes > 0,
            f"log.checkpoint_minutes is {minutes}, expected more than 0, or null",
        )


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One training run: a prompt for a frozen T5, or (`tune: model`) the whole T5.

    Args:
        model: A bundled backbone by name; a folder of ours, of transformers or of T5X; the address
            of a T5X checkpoint; or a Hub id such as google/t5-large-lm-adapt, with @revision.
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
        mesh: How devices share the work; by the sizes of model and devices where not given. May
            differ when a run is resumed.
        dtype: Of the activations; prompt and optimizer are always float32. `auto` is bfloat16 on
            TPU and GPU and float32 on CPU.
        param_dtype: Of the frozen weights, likewise; weights that are tuned are float32.
        dropout_rate: On while training, also over the prompt, as in the official runs.
        remat: What of each layer is computed again in the backward pass, for less memory and more
            time: `none` (only what costs little), `light` (and keys and values, for TPU), `minimal`
            (all but the products with weights) or `full` (the whole layer). May differ when a run
            is resumed.
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
    mesh: MeshConfig | None = None
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    param_dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    dropout_rate: float = 0.1
    remat: Remat = "none"

    def __post_init__(self):
        require(self.steps >= 1, f"steps is {self.steps}, expected 1 or more")
        require(self.seed >= 0, f"seed is {self.seed}, expected 0 or more")
        require(
            0 <= self.dropout_rate < 1,
            f"dropout_rate is {self.dropout_rate}, expected at least 0 and less than 1",
        )
        require(
            self.prompt is not None or self.tune == "model",
            "prompt is null but tune is 'prompt', so nothing would be trained; "
            "set a prompt, or 'tune: model'",
        )
        require(
            self.data.batch_size % self.optimizer.accumulate == 0,
            f"optimizer.accumulate {self.optimizer.accumulate} does not divide "
            f"data.batch_size {self.data.batch_size}",
        )


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
