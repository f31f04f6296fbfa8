"""The model card of a run's prompt: what it is, what it scores, and how it is loaded.

The card names no file of this machine. It says nothing of a license, which its owner chooses.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from spt_jax.models.hub import is_hub_id

_SETTINGS = (
    "prompt.length",
    "prompt.init",
    "prompt.parameterization",
    "optimizer.name",
    "optimizer.learning_rate",
    "optimizer.schedule",
    "data.batch_size",
    "data.inputs_length",
    "data.targets_length",
    "dropout_rate",
    "steps",
    "seed",
)
"""Options that the card shows."""

_SCORES = {
    "score": "this prompt",
    "rank_score": "this prompt, by the most likely label word",
    "majority_score": "always the most frequent answer",
    "unprompted_score": "the frozen model without a prompt",
    "hard_prompt_score": "the frozen model with a written prompt",
}
"""What the card calls the scores on test."""


def hub_base(model: str) -> str | None:
    """Return the id of a model on the Hub with its revision, or None if it is no such model."""
    return model if is_hub_id(model) and not Path(model).exists() else None


def public_name(model: str) -> str:
    """Return the name of a model without the folders of this machine that it lies in."""
    return hub_base(model) or model.rstrip("/").rpartition("/")[2]


def make_card(
    repo: str,
    metadata: Mapping[str, str],
    config: Mapping[str, Any],
    result: Mapping[str, Any],
    facts: Mapping[str, Any],
) -> str:
    """Return the README.md of a prompt's repository on the Hub.

    Args:
        repo: `owner/name`.
        metadata: Metadata of the prompt.
        config: Config of the run, by dotted name.
        result: Result of the run.
        facts: What its manifest says of the data.
    """
    task, model = str(result["task"]), metadata["model"]
    name, base = model.partition("@")[0].rpartition("/")[2], hub_base(model)
    loaded = base or "MODEL"  # what the code of the card loads
    parts = [
        _front_matter(base),
        f"# {task}: a soft prompt for {name}",
        f"{config['prompt.length']} vectors, trained by prompt tuning (Lester et al. 2021) with "
        f"spt_jax for the frozen model `{base or name}`. The model itself stays as it is. The "
        "prompt works with this model alone.",
        "## Scores",
        "From 0 to 100, on the test split. The best step was chosen on the dev split.",
        _score_table(result),
        "## Inputs and answers",
        _describe_rows(task, metadata, facts),
        "## Load it with spt_jax",
        "```\npip install spt_jax\n"
        f"hf download {repo} prompt.safetensors --local-dir prompt\n"
        f"spt-jax predict --model {loaded} --prompt {task}=prompt/prompt.safetensors "
        "--input rows.jsonl --output out.jsonl\n```",
        "In Python:",
        "```python\nfrom huggingface_hub import hf_hub_download\n"
        "from spt_jax import Predictor, load_backbone, load_bank\n\n"
        f'backbone = load_backbone("{loaded}")\n'
        f'file = hf_hub_download("{repo}", "prompt.safetensors")\n'
        f'bank = load_bank(backbone, {{"{task}": file}})\n'
        f"predictor = Predictor(backbone, bank, inputs_length={config['data.inputs_length']}, "
        f"targets_length={config['data.targets_length']}, batch_size=8)\n"
        f'for answers in predictor.predict([("{task}", "the text of a row")]):\n'
        "    print(answers.texts[0])\n```",
        "## Load it with PEFT",
        "```python\nfrom peft import PeftModel\nfrom transformers import AutoModelForSeq2SeqLM\n\n"
        f"model = AutoModelForSeq2SeqLM.from_pretrained({_transformers_arguments(loaded)})\n"
        f'model = PeftModel.from_pretrained(model, "{repo}")\n```',
        "## Recipe",
        "\n".join(
            ["| option | value |", "|---|---|"]
            + [f"| `{key}` | {config[key]} |" for key in _SETTINGS if key in config]
            + [f"| best step | {result['best_step']} |"]
        ),
    ]
    if base is None:
        parts.insert(3, f"`{name}` is no model of the Hub: give it where the code has `MODEL`.")
    return "\n\n".join(parts) + "\n"


def _front_matter(base: str | None) -> str:
    tags = ("prompt-tuning", "soft-prompt", "t5", "spt_jax")
    of_base = [] if base is None else [f"base_model: {base.partition('@')[0]}"]
    lines = ["library_name: peft", *of_base, "tags:", *(f"- {tag}" for tag in tags)]
    return "\n".join(["---", *lines, "---"])


def _score_table(result: Mapping[str, Any]) -> str:
    rows = [(text, result.get(name)) for name, text in _SCORES.items()]
    metrics = result.get("metrics") or {}
    if len(metrics) > 1:  # of which the score is the mean
        rows[1:1] = [(f"this prompt, {name}", value) for name, value in metrics.items()]
    rows.append(("this prompt, on dev", result.get("dev_score")))
    shown = [f"| {text} | {value:.1f} |" for text, value in rows if value is not None]
    return "\n".join(["| answers by | score |", "|---|---|", *shown])


def _describe_rows(task: str, metadata: Mapping[str, str], facts: Mapping[str, Any]) -> str:
    template, words = metadata.get("template"), facts.get("label_words")
    inputs = f"The inputs are those of the task `{task}`."
    if template is not None:
        inputs = f"The input text is made of a row by this template:\n\n```\n{template}\n```"
    answers = "The answers are free text."
    if words:
        answers = f"The answers are {', '.join(f'`{word}`' for word in words)}."
    return f"{inputs}\n\n{answers}"


def _transformers_arguments(model: str) -> str:
    name, _, revision = model.partition("@")
    return f'"{name}", revision="{revision}"' if revision else f'"{name}"'
