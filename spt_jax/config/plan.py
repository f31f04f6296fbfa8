"""The options of `spt-jax plan`, as a frozen dataclass."""

from dataclasses import dataclass
from typing import Literal

from spt_jax.config.devices import MeshConfig, Remat
from spt_jax.errors import require


@dataclass(frozen=True, kw_only=True)
class PlanConfig:
    """What is planned: a model, the devices, and the sizes of a step.

    Args:
        model: A published T5 such as t5-v1_1-xxl, or a backbone as `train` takes it; only its shape
            is read.
        topology: A TPU slice, such as v5e:4x4: generation and shape in chips.
        batch_size: Rows of a step.
        inputs_length: Tokens of the inputs.
        targets_length: Tokens of the targets; most that are decoded.
        prompt_length: Vectors of the prompt.
        mesh: How devices share the work; chosen as `train` chooses it where not given.
        remat: As in `train`.
        dtype: Of the activations.
        param_dtype: Of the frozen weights; weights that are tuned are float32.
        tune: The prompt, or the whole model.
        dropout_rate: Of the training step.
        accumulate: Micro-batches per step.
        program: The training step, decoding, or both.
    """

    model: str
    topology: str
    batch_size: int = 32
    inputs_length: int = 512
    targets_length: int = 32
    prompt_length: int = 100
    mesh: MeshConfig | None = None
    remat: Remat = "none"
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    param_dtype: Literal["float32", "bfloat16"] = "bfloat16"
    tune: Literal["prompt", "model"] = "prompt"
    dropout_rate: float = 0.1
    accumulate: int = 1
    program: Literal["both", "train", "decode"] = "both"

    def __post_init__(self):
        for name in ("batch_size", "inputs_length", "targets_length", "accumulate"):
            value = getattr(self, name)
            require(value >= 1, f"{name} is {value}, expected 1 or more")
        require(
            self.prompt_length >= (self.tune == "prompt"),
            f"prompt_length is {self.prompt_length}, expected 1 or more, or 0 with --tune=model",
        )
        require(
            self.batch_size % self.accumulate == 0,
            f"accumulate {self.accumulate} does not divide batch_size {self.batch_size}",
        )
        require(
            0 <= self.dropout_rate < 1,
            f"dropout_rate is {self.dropout_rate}, expected at least 0 and less than 1",
        )
