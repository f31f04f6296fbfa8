"""Soft prompt tuning for a frozen T5, in JAX.

The public names are imported when they are first used, so `import spt_jax` itself is free.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from spt_jax.backbone import (
        Backbone,
        convert_backbone,
        describe,
        load_backbone,
        save_backbone,
    )
    from spt_jax.bank import PromptBank, load_bank
    from spt_jax.config import (
        DataConfig,
        EvalConfig,
        LogConfig,
        LossConfig,
        OptimizerConfig,
        PromptConfig,
        TaskConfig,
        TrainConfig,
    )
    from spt_jax.data.tasks import load_task, task_names
    from spt_jax.decoding.config import DecodeConfig
    from spt_jax.decoding.generation import generate
    from spt_jax.ensemble import evaluate_ensemble
    from spt_jax.errors import RunError
    from spt_jax.evaluate import evaluate_run, evaluate_runs, predict_run
    from spt_jax.example import Example, Task
    from spt_jax.interpret import nearest_words
    from spt_jax.metrics import superglue_score
    from spt_jax.prediction.jsonl import predict_file
    from spt_jax.prediction.predict import Answers, Predictor
    from spt_jax.pretrain_config import ArchitectureConfig, MixtureConfig, PretrainConfig
    from spt_jax.prompt_file import load_prompt, save_prompt
    from spt_jax.tokenizer import Tokenizer, train_tokenizer
    from spt_jax.train import fit

__version__ = "0.1.0"

_NAMES = {  # the imports above, by module
    "backbone": ("Backbone", "convert_backbone", "describe", "load_backbone", "save_backbone"),
    "bank": ("PromptBank", "load_bank"),
    "config": (
        "DataConfig",
        "EvalConfig",
        "LogConfig",
        "LossConfig",
        "OptimizerConfig",
        "PromptConfig",
        "TaskConfig",
        "TrainConfig",
    ),
    "example": ("Example", "Task"),
    "data.tasks": ("load_task", "task_names"),
    "decoding.config": ("DecodeConfig",),
    "ensemble": ("evaluate_ensemble",),
    "errors": ("RunError",),
    "evaluate": ("evaluate_run", "evaluate_runs", "predict_run"),
    "decoding.generation": ("generate",),
    "interpret": ("nearest_words",),
    "metrics": ("superglue_score",),
    "prediction.predict": ("Answers", "Predictor"),
    "prediction.jsonl": ("predict_file",),
    "pretrain_config": ("ArchitectureConfig", "MixtureConfig", "PretrainConfig"),
    "prompt_file": ("load_prompt", "save_prompt"),
    "tokenizer": ("Tokenizer", "train_tokenizer"),
    "train": ("fit",),
}
_MODULES = {name: f"spt_jax.{module}" for module, names in _NAMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'spt_jax' has no attribute '{name}'")
    return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_MODULES])
