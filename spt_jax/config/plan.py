"""The options of `spt-jax plan`, as a frozen dataclass."""

from dataclasses import dataclass
from typing import Literal

from spt_jax.config.devices import AttentionVersion, MeshConfig, Remat
from spt_jax.config.fields import Config, Count, CountOrZero, Rate
from spt_jax.errors import require


@dataclass(frozen=True, kw_only=True)
class PlanConfig(Config):
    """What is planned: a model, the devices, and the sizes of a step.

    Args:
        model: A published T5 such as t5-v1_1-xxl, or a backbone as `train` takes it. Only its shape
            is read.
        topology: TPU slice, such as v5e:4x4: its generation, and its shape in chips.
        batch_size: Rows of a step.
        inputs_length: Tokens of an input, without the prompt.
        targets_length: Tokens of a target, and most tokens of a decoded answer.
        prompt_length: Vectors of the prompt.
        mesh: Grid of devices that share the work; null chooses it as `train` does.
        remat: Values of each layer that the backward pass computes again, as in `train`.
        attention: What computes the encoder's attention, as in `train`.
        dtype: Type of the activations.
        param_dtype: Type of the frozen weights; `int8` is for the matrices. Weights that are tuned
            are float32.
        tune: Train the `prompt` alone, or the whole `model`.
        dropout_rate: Dropout of the training step.
        accumulate: Micro-batches of a step. Must divide batch_size.
        together: Prompts that train in one program, each with batch_size rows of its own.
        eval_batch_size: Rows of a batch of evaluation, as eval.batch_size of `train`.
        label_words: Number of label words whose likelihood evaluation scores; 0 for free text.
        program: Programs to compile: `train` is the training step, `decode` is what evaluation runs
            for a batch, `both` is both.
    """

    model: str
    topology: str
    batch_size: Count = 32
    inputs_length: Count = 512
    targets_length: Count = 32
    prompt_length: int = 100
    mesh: MeshConfig | None = None
    remat: Remat = "none"
    attention: AttentionVersion = "auto"
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    param_dtype: Literal["float32", "bfloat16", "int8"] = "bfloat16"
    tune: Literal["prompt", "model"] = "prompt"
    dropout_rate: Rate = 0.1
    accumulate: Count = 1
    together: Count = 1
    eval_batch_size: Count = 64
    label_words: CountOrZero = 2
    program: Literal["both", "train", "decode"] = "both"

    def check(self) -> None:
        require(
            self.prompt_length >= (self.tune == "prompt"),
            f"prompt_length is {self.prompt_length}, expected 1 or more, or 0 with --tune=model",
        )
        require(
            self.batch_size % self.accumulate == 0,
            f"accumulate {self.accumulate} does not divide batch_size {self.batch_size}",
        )
        require(
            self.param_dtype != "int8" or self.tune == "prompt",
            "param_dtype is 'int8' with --tune=model, but int8 weights cannot be trained",
        )
        require(
            self.together == 1 or self.tune == "prompt",
            f"together is {self.together} with --tune=model, but only prompts train together",
        )
