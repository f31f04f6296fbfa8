"""Every option of a training run, as frozen dataclasses: what a YAML file or a flag can set.

The defaults are the training setup of Lester et al. 2021, section 3. Nothing here imports jax, so
that `--help` and a misspelled option answer at once. Each class checks its own values when it is
made; what needs a file or a model to be checked is checked where that is read.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from spt_jax.config.devices import AttentionVersion, MeshConfig, Remat
from spt_jax.config.fields import (
    Config,
    Count,
    CountOrZero,
    Lengths,
    Positive,
    PositiveOrZero,
    Rate,
    Rule,
    Seed,
    Text,
    show,
)
from spt_jax.errors import choose, require


@dataclass(frozen=True, kw_only=True)
class WaywardConfig(Config, section="prompt.wayward"):
    """A pull of the prompt towards a text, whatever the task (Khashabi et al. 2022).

    The loss gets `gamma` times the distance of the prompt's first vectors to the embeddings of the
    text, for every target token. The distance is relative to the embeddings of the vocabulary, so
    that one gamma means the same for any model and for either reduction of the loss.

    Args:
        text: Text, of at most as many tokens as the prompt has vectors.
        gamma: Weight of the distance in the loss. 0 measures it and pulls nothing.
        distance: `l2`: mean squared distance of a vector to its token's embedding, in units of the
            mean squared norm of all embeddings; `cosine`: 1 minus their cosine.
    """

    text: str = ""
    gamma: PositiveOrZero = 0.01
    distance: Literal["l2", "cosine"] = "l2"

    def check(self) -> None:
        require(
            bool(self.text.strip()),
            "prompt.wayward.text is empty, expected the text that the prompt is pulled towards",
        )


@dataclass(frozen=True, kw_only=True)
class PromptConfig(Config, section="prompt"):
    """The soft prompt: its length, its initial vectors, and what of it is trained.

    Args:
        length: Number of trainable vectors P (paper: 1, 5, 20, 100, 150).
        init: Initial vectors. `class_labels`: row i is the mean embedding of label word i, the rest
            is sampled from the vocabulary (the paper's default); `sampled_vocab`: embeddings of P
            of the first 5,000 vocabulary entries, without replacement; `uniform_paper`: uniform in
            [-0.5, 0.5]; `uniform_official`: uniform in [0, 0.5), as in the released code; `text`:
            the embeddings of `text`, the rest sampled from the vocabulary; `file`: the vectors in
            `file`.
        text: Words for `init: text`.
        file: For `init: file`, a run, a prompt.safetensors, a .npy file or a PEFT adapter's folder.
        parameterization: Weights that are trained and make the vectors. `direct`: the vectors
            themselves (the paper); `residual`: the vectors and a small network whose output is
            added to them; `superposition`: `rank` embeddings of the vocabulary, and the weights
            with which each vector mixes them; `low_rank`: two matrices, multiplied; `projection`:
            `rank` numbers for each vector, projected by a fixed random matrix, then scaled and
            shifted. The result of a run is an ordinary prompt in any case.
        rank: Inner size of the parameterization; null for 400 (`residual`), 128 or the length if
            that is more (`superposition`), 10 or the length if that is less (`low_rank`), and 64
            (`projection`).
        wayward: Pull of the prompt towards a text; null for none.
    """

    length: Annotated[
        int, Rule(lambda n: n >= 1, "1 or more; set 'prompt: null' for a run without a prompt")
    ] = 100
    init: Literal[
        "class_labels", "sampled_vocab", "uniform_paper", "uniform_official", "text", "file"
    ] = "class_labels"
    text: str | None = None
    file: Text | None = None
    parameterization: Literal["direct", "residual", "superposition", "low_rank", "projection"] = (
        "direct"
    )
    rank: Count | None = None
    wayward: WaywardConfig | None = None

    @property
    def resolved_rank(self) -> int:
        """Inner size of the parameterization, with the default of each; 0 for `direct`."""
        defaults = {
            "direct": 0,
            "residual": 400,
            "superposition": max(128, self.length),
            "low_rank": min(10, self.length),
            "projection": 64,
        }
        return self.rank or choose("prompt.parameterization", self.parameterization, defaults)

    def check(self) -> None:
        require(
            self.rank is None or self.parameterization != "direct",
            f"prompt.rank is {self.rank} with prompt.parameterization 'direct', which has none; "
            "leave it out, or choose another parameterization",
        )
        if self.parameterization == "superposition":
            require(
                self.resolved_rank >= self.length,
                f"prompt.rank is {self.rank} with {self.length} vectors, which a superposition "
                f"starts from; expected {self.length} or more",
            )
        if self.parameterization == "low_rank":
            require(
                self.resolved_rank <= self.length,
                f"prompt.rank is {self.rank} with {self.length} vectors, expected at most "
                f"{self.length}: a higher rank is that of 'direct'",
            )
        for name in ("text", "file"):
            given = getattr(self, name)
            require(
                (self.init == name) == (given is not None),
                f"prompt.{name} is {given!r} with prompt.init '{self.init}'; "
                f"set prompt.{name} exactly when prompt.init is '{name}'",
            )


@dataclass(frozen=True, kw_only=True)
class TaskConfig(Config, section="task"):
    """The task: a built-in one or one of the papers by its name, or a file of your own.

    Args:
        name: Name of a task (`spt-jax train --task.name=?` lists them), or a title for your own.
        mixture: Names of tasks whose rows are learned together by one prompt, to start others from
            (SPoT); `name` is then a title. A task is drawn in proportion to its training rows, at
            most `mixture_cap` of them. All answers are free text, scored by exact match.
        mixture_cap: Most training rows of a task of a mixture, a fixed random sample; T5's limit.
        max_train_rows: Train on a fixed random sample of so many rows; null for all.
        origin: Where the rows of a task of the papers come from: `tfds`, `hub`, or a folder (or
            gs://BUCKET/FOLDER) with the files that its authors distribute, such as BoolQ/val.jsonl,
            MNLI/dev_matched.tsv or train-v1.1.json, or with train.jsonl and validation.jsonl (or
            .csv, .tsv, .parquet) in the dataset's columns.
        prefix: Begin the inputs of a task of the papers with its name, as T5's own tasks do. The
            paper's prompts were trained without it.
        dev_from_train: Choose the best step of a task of the papers on rows taken from its train
            split. The paper chooses it on the rows whose scores it reports, because the labels of
            the test split are hidden.
        source: File of training rows: .jsonl, .json, .csv, .tsv or .parquet, with named columns. It
            may be compressed (.gz), a folder or a pattern of such files, or one of them in a
            bucket, as gs://BUCKET/FILE.
        dev_source: File of rows for choosing the best step. Without it, a hash takes rows from
            `source`.
        test_source: File of rows for the final score. Without it, a hash takes rows from `source`.
        template: Input text made of a row's columns, such as '{sentence}' or
            'question: {q} context: {c}'. `{answers[text][0]}` is a value inside a list or an
            object; `<extra_id_0>` is the model's sentinel.
        label: Column that holds the label or the target text.
        label_words: Words that the model may answer, or a mapping from the label in the file to
            its word. Without it, the labels in the data are the words. Ignored with `free_text`.
        free_text: Targets are free text, so there are no label words and no rank score.
        group: Column that holds what several rows have in common, such as the id of a document.
            Rows with the same value are in one split, and metrics of groups score them together.
        metrics: Scores of your own data; their mean is the score. They are accuracy, macro_f1, f1
            (of two label words), matthews, squad (words in common with the target), rouge
            (summaries), pearson and spearman (numbers), group_exact_match and squad_by_group.
            Accuracy by default.
        missing: What to do with a row that has nothing (empty, null or NaN) in a column of the
            template: `error`, `skip` the row, or read it as `empty` text.
        encoding: Encoding of text files that are not UTF-8 and do not begin with a mark, such as
            cp1252 (Windows), latin-1 or gb18030.
        quoting: Whether "quotes" in .csv and .tsv files are CSV's (`csv`) or text (`none`). `auto`
            takes them for CSV's in .csv files, and in .tsv files that were written so.
    """

    name: Text | None = None
    mixture: list[str] | None = None
    mixture_cap: Count = 2**19
    max_train_rows: Count | None = None
    origin: Text = "tfds"
    prefix: bool = False
    dev_from_train: bool = False
    source: Text | None = None
    dev_source: Text | None = None
    test_source: Text | None = None
    template: str | None = None
    label: Text | None = None
    label_words: Annotated[
        dict[str, str] | list[str] | None,
        "a mapping such as '{0: negative, 1: positive}', a list such as '[negative, positive]', "
        "or null",
    ] = None
    free_text: bool = False
    group: Text | None = None
    metrics: list[str] | None = None
    missing: Literal["error", "skip", "empty"] = "error"
    encoding: str = "utf-8"
    quoting: Literal["auto", "csv", "none"] = "auto"

    def check(self) -> None:
        if self.mixture is not None:
            self._check_mixture(self.mixture)
        if self.source is None:
            require(
                self.name is not None,
                "no task is given; set task.name to a built-in task, or task.source, "
                "task.template and task.label to use a file",
            )
            options = ("dev_source", "test_source", "template", "label", "label_words", "group")
            for option in options:
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
        require(
            self.metrics is None or len(self.metrics) > 0,
            "task.metrics is empty, expected names such as [accuracy, macro_f1]",
        )
        require(
            _is_text_encoding(self.encoding),
            f"task.encoding is '{self.encoding}', expected a name such as utf-8, cp1252, latin-1, "
            "utf-16-le, gb18030 or shift_jis",
        )

    def _check_mixture(self, names: list[str]) -> None:
        require(
            len(names) > 1 and len(set(names)) == len(names),
            f"task.mixture is {show(names)}, expected two or more different tasks",
        )
        require(
            self.name is not None and self.name not in names,
            f"task.name is {show(self.name)} with task.mixture, expected a title for the mixture",
        )
        for option in ("source", "metrics"):
            require(
                getattr(self, option) is None,
                f"task.{option} is set beside task.mixture, whose tasks have their own rows and "
                "are scored by exact match; leave it out",
            )


def _is_text_encoding(name: str) -> bool:
    try:
        return bool("x".encode(name))
    except (LookupError, ValueError):
        return False


@dataclass(frozen=True, kw_only=True)
class DataConfig(Config, section="data"):
    """Tokens of inputs and targets, and rows of a batch.

    Args:
        inputs_length: Most tokens of an input, with the end marker and without the prompt. Longer
            inputs are cut.
        targets_length: Most tokens of a target, with the end marker. Longer targets are cut.
        sentinel_targets: Put `<extra_id_0>`, the model's first sentinel, in front of every target
            and label word, as in the targets of span corruption (the paper, section 3.2, for models
            that were pretrained by span corruption alone). It counts as a token of the target, and
            is left out of what the model writes.
        batch_size: Rows of one optimizer step.
        buckets: Lengths in tokens that batches are padded to: the smallest that holds the batch's
            longest row. Each length is compiled once. `inputs_length` is always the last.
        group_by_length: Put rows of similar length into one batch. Faster, but not the sampling of
            the paper.
    """

    inputs_length: Count = 512
    targets_length: Count = 32
    sentinel_targets: bool = False
    batch_size: Count = 32
    buckets: Lengths = (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 128, 192, 256, 384)
    group_by_length: bool = False


USED_BY = {
    "preset": ("adafactor",),
    "multiply_by_parameter_scale": ("adafactor",),
    "weight_decay": ("adafactor", "adamw", "lion"),
}
"""The optimizers that an option has an effect on, for the options without effect on some."""


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig(Config, section="optimizer"):
    """Optimizer of the trained weights, and its learning-rate schedule.

    Args:
        name: Optimizer.
        preset: Adafactor only. `t5x_1100k` behaves as the official runs, which restore the step
            count 1,100,000 of the pretrained model beside an empty second moment; `fresh` counts
            from 0, as Optax does.
        learning_rate: Peak learning rate.
        schedule: Learning rate after the warm-up: `constant` (the paper), `linear` and `cosine`
            (to 0 at the last step), or `rsqrt` (T5's pretraining: learning_rate /
            sqrt(max(step, warmup_steps) / warmup_steps)).
        warmup_steps: Steps over which the learning rate rises linearly from 0.
        cooldown_steps: Number of last steps over which the learning rate falls linearly to 0,
            whatever the schedule.
        weight_decay: Share of every weight removed per step. Adafactor does not multiply it by the
            learning rate (as in T5X). Adam and SGD have none.
        multiply_by_parameter_scale: Adafactor only: steps relative to the size of the weights. Off
            for prompts; T5 has it on for pretraining and model tuning.
        momentum: Decay of the first moment; null for none. Adam, AdamW and Lion take it as b1, and
            0.9 for null.
        clip_norm: Greatest global norm of the gradients, which are scaled down to it; null for any.
        factor_rate: Learning rate of the factors of a prompt that is not trained directly, such as
            the weights of a superposition, in units of learning_rate. Factors have no weight decay.
        accumulate: Micro-batches of a step, whose gradients are added up: the same result in less
            memory. Must divide data.batch_size.
    """

    name: Literal["adafactor", "adamw", "adam", "sgd", "lion"] = "adafactor"
    preset: Literal["t5x_1100k", "fresh"] = "t5x_1100k"
    learning_rate: Positive = 0.3
    schedule: Literal["constant", "linear", "cosine", "rsqrt"] = "constant"
    warmup_steps: int = 0
    cooldown_steps: CountOrZero = 0
    weight_decay: PositiveOrZero = 1e-5
    multiply_by_parameter_scale: bool = False
    momentum: Rate | None = None
    clip_norm: Positive | None = None
    factor_rate: Positive = 0.01
    accumulate: Count = 1

    def check(self) -> None:
        require(
            self.warmup_steps >= (1 if self.schedule == "rsqrt" else 0),
            f"optimizer.warmup_steps is {self.warmup_steps}, expected 0 or more, "
            "and 1 or more with optimizer.schedule 'rsqrt'",
        )
        for name in sorted(self.unused(vars(self))):
            value = getattr(self, name)
            require(
                value == getattr(type(self), name),
                f"optimizer.{name} is {show(value)} with optimizer.name '{self.name}', which "
                f"ignores it; leave it out, or use {' or '.join(USED_BY[name])}",
            )

    @classmethod
    def unused(cls, values: Mapping[str, Any]) -> frozenset[str]:
        name = values.get("name", "adafactor")
        return frozenset(option for option, names in USED_BY.items() if name not in names)


@dataclass(frozen=True, kw_only=True)
class LossConfig(Config, section="loss"):
    """Training loss: cross-entropy over the target tokens.

    Args:
        z_loss: Weight of the penalty log(Z)^2, which keeps the logits near 0 (T5: 1e-4).
        label_smoothing: Share of the target probability that is spread over the vocabulary.
        reduction: `sum` over the target tokens of a batch (as T5X), or their `mean`.
    """

    z_loss: PositiveOrZero = 1e-4
    label_smoothing: Rate = 0.0
    reduction: Literal["sum", "mean"] = "sum"


@dataclass(frozen=True, kw_only=True)
class EvalConfig(Config, section="eval"):
    """Evaluation on the dev split while training. May differ when a run is resumed.

    Args:
        every: Steps between evaluations. The last step is always evaluated.
        batch_size: Rows of an evaluation batch.
        max_rows: Evaluate a fixed random sample of so many rows of the dev split; null for all.
        inputs_length: Longest input of dev and test, in tokens with the end marker. Without it,
            `data.inputs_length`, and no limit for the tasks of the papers, as in the official runs.
        patience: Stop after so many evaluations without a better score; null for never.
        baselines: Also evaluate the frozen model without a prompt, on the test split.
        hard_prompt: Also evaluate the frozen model with this text in front of every input, such as
            a written instruction, on the test split.
    """

    every: Count = 1000
    batch_size: Count = 64
    max_rows: Count | None = None
    inputs_length: Count | None = None
    patience: Count | None = None
    baselines: bool = True
    hard_prompt: str | None = None


@dataclass(frozen=True, kw_only=True)
class LogConfig(Config, section="log"):
    """Log and checkpoints. May differ when a run is resumed.

    Args:
        every: Steps whose lines of the log are fetched from the devices and written together.
        checkpoint_every: Steps between checkpoints. Every evaluation writes one too.
        checkpoint_minutes: Most minutes between checkpoints, whatever the steps; null for no limit.
        keep: Number of checkpoints kept.
        tensorboard: Also write TensorBoard's event files, into the folder `events` of the run.
        wandb: Project of Weights & Biases that the numbers of the log are also sent to; null for
            none. W&B's environment variables, such as WANDB_ENTITY and WANDB_MODE, work as always.
        trackio: The same for trackio, which keeps its data on this machine unless
            TRACKIO_SPACE_ID names a Space of the Hub.
    """

    every: Count = 50
    checkpoint_every: Count = 1000
    checkpoint_minutes: Annotated[float, Rule(lambda x: x > 0, "more than 0, or null")] | None = (
        10.0
    )
    keep: Count = 3
    tensorboard: bool = False
    wandb: Text | None = None
    trackio: Text | None = None


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Config):
    """One training run: a prompt for a frozen T5, or (`tune: model`) the whole T5.

    Args:
        model: Frozen model: a bundled backbone by name; a folder of ours, of transformers or of
            T5X; the address of a T5X checkpoint; or a Hub id such as google/t5-large-lm-adapt, with
            @revision.
        task: Task to learn.
        prompt: Soft prompt; null for none (with `tune: model`).
        tune: `prompt` trains the prompt alone; `model` trains every weight, the paper's baseline.
        optimizer: Optimizer and learning-rate schedule.
        loss: Training loss.
        data: Tokens of inputs and targets, and rows of a batch.
        eval: Evaluation on the dev split while training.
        log: Log and checkpoints.
        steps: Number of optimizer steps.
        seed: Seed of initialisation, batches and dropout.
        mesh: Grid of devices that share the work; null chooses one by the sizes of the model and
            the devices. May differ when a run is resumed.
        dtype: Type of the activations; prompt and optimizer are always float32. `auto` is bfloat16
            on TPU and GPU, and float32 on CPU.
        param_dtype: Type of the frozen weights, with the same `auto`. Weights that are tuned are
            float32. `int8` is for the matrices, each output channel with a scale: half the memory
            of bfloat16. The gradient of the prompt is exact for the model so rounded.
        dropout_rate: Dropout while training, also of the prompt, as in the official runs.
        remat: Values of each layer that the backward pass computes again instead of keeping them,
            for less memory and more time: `none` (only those that cost little), `light` (also keys
            and values, for TPU), `minimal` (all but the products with weights) or `full` (the whole
            layer). May differ when a run is resumed.
        attention: What computes the encoder's attention: `plain` programs of XLA, or `fused`, a
            kernel for TPU that does not write scores to memory, where the shapes allow it; `auto`
            is `fused` on TPU. May differ when a run is resumed.
    """

    task: TaskConfig
    model: Text = "spt-nano"
    prompt: PromptConfig | None = field(default_factory=PromptConfig)
    tune: Literal["prompt", "model"] = "prompt"
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    data: DataConfig = field(default_factory=DataConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    log: LogConfig = field(default_factory=LogConfig)
    steps: Count = 30_000
    seed: Seed = 0
    mesh: MeshConfig | None = None
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    param_dtype: Literal["auto", "float32", "bfloat16", "int8"] = "auto"
    dropout_rate: Rate = 0.1
    remat: Remat = "none"
    attention: AttentionVersion = "auto"

    def check(self) -> None:
        require(
            self.prompt is not None or self.tune == "model",
            "prompt is null but tune is 'prompt', so nothing would be trained; "
            "set a prompt, or 'tune: model'",
        )
        require(
            self.param_dtype != "int8" or self.tune == "prompt",
            "param_dtype is 'int8' with tune 'model', but int8 weights cannot be trained; leave "
            "param_dtype out, or use 'tune: prompt'",
        )
        require(
            self.data.batch_size % self.optimizer.accumulate == 0,
            f"optimizer.accumulate {self.optimizer.accumulate} does not divide "
            f"data.batch_size {self.data.batch_size}",
        )
