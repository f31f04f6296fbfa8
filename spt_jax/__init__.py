"""Soft prompt tuning for a frozen T5, in JAX.

The public names are imported when they are first used, so `import spt_jax` itself is free.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from spt_jax.config.decode import DecodeConfig
    from spt_jax.config.pretrain import ArchitectureConfig, MixtureConfig, PretrainConfig
    from spt_jax.config.train import (
        DataConfig,
        EvalConfig,
        LogConfig,
        LossConfig,
        OptimizerConfig,
        PromptConfig,
        TaskConfig,
        TrainConfig,
    )
    from spt_jax.data.example import Example, Task
    from spt_jax.data.tasks import load_task, task_names
    from spt_jax.decoding.generate import generate
    from spt_jax.errors import RunError
    from spt_jax.evaluation.ensemble import evaluate_ensemble
    from spt_jax.evaluation.evaluate import evaluate_run, evaluate_runs
    from spt_jax.evaluation.metrics import superglue_score
    from spt_jax.models.backbone import (
        Backbone,
        convert_backbone,
        describe,
        load_backbone,
        save_backbone,
    )
    from spt_jax.prediction.jsonl import predict_file
    from spt_jax.prediction.predictor import Answers, Predictor
    from spt_jax.prediction.run import predict_run
    from spt_jax.prompts.bank import PromptBank, load_bank
    from spt_jax.prompts.file import load_prompt, save_prompt
    from spt_jax.prompts.words import nearest_words
    from spt_jax.tokenizers.base import Tokenizer
    from spt_jax.tokenizers.bpe import train_tokenizer
    from spt_jax.train import fit, fit_together

__version__ = "0.1.0"

# fmt: off
__all__ = [  # spelled out, because type checkers read it
    "Answers", "ArchitectureConfig", "Backbone", "DataConfig", "DecodeConfig", "EvalConfig",
    "Example", "LogConfig", "LossConfig", "MixtureConfig", "OptimizerConfig", "Predictor",
    "PretrainConfig", "PromptBank", "PromptConfig", "RunError", "Task", "TaskConfig", "Tokenizer",
    "TrainConfig", "convert_backbone", "describe", "evaluate_ensemble", "evaluate_run",
    "evaluate_runs", "fit", "fit_together", "generate", "load_backbone", "load_bank",
    "load_prompt", "load_task", "nearest_words", "predict_file", "predict_run", "save_backbone",
    "save_prompt", "superglue_score", "task_names", "train_tokenizer",
]
# fmt: on

_NAMES = {  # the imports above: {module: names}
    "models.backbone": "Backbone convert_backbone describe load_backbone save_backbone",
    "prompts.bank": "PromptBank load_bank",
    "config.train": "DataConfig EvalConfig LogConfig LossConfig OptimizerConfig PromptConfig "
    "TaskConfig TrainConfig",
    "data.example": "Example Task",
    "data.tasks": "load_task task_names",
    "config.decode": "DecodeConfig",
    "evaluation.ensemble": "evaluate_ensemble",
    "errors": "RunError",
    "evaluation.evaluate": "evaluate_run evaluate_runs",
    "decoding.generate": "generate",
    "prompts.words": "nearest_words",
    "evaluation.metrics": "superglue_score",
    "prediction.predictor": "Answers Predictor",
    "prediction.jsonl": "predict_file",
    "prediction.run": "predict_run",
    "config.pretrain": "ArchitectureConfig MixtureConfig PretrainConfig",
    "prompts.file": "load_prompt save_prompt",
    "tokenizers.base": "Tokenizer",
    "tokenizers.bpe": "train_tokenizer",
    "train": "fit fit_together",
}
_MODULES = {name: f"spt_jax.{module}" for module in _NAMES for name in _NAMES[module].split()}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'spt_jax' has no attribute '{name}'")
    return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_MODULES])
