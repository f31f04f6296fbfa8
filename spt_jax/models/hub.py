"""A model on the Hugging Face Hub, by its id: downloaded into the Hub's own cache.

Cache, tokens, mirrors and offline mode are huggingface_hub's: `HF_HOME`, `HF_TOKEN`, `HF_ENDPOINT`,
`HF_HUB_OFFLINE`. What is in the cache is found there without a network.
"""

import re
from pathlib import Path

from spt_jax.tokenizers.published import SMALL_FILES

_SMALL = list(SMALL_FILES)
_SAFETENSORS = ["model.safetensors", "model.safetensors.index.json", "model-*.safetensors"]
_TORCH = ["pytorch_model.bin", "pytorch_model.bin.index.json", "pytorch_model-*.bin"]


def is_hub_id(name: str) -> bool:
    """Whether a name can be `owner/model`, or `owner/model@revision`."""
    return re.fullmatch(r"[\w.-]+/[\w.-]+(@[\w./-]+)?", name) is not None


def fetch(name: str, *, weights: bool = True) -> Path:
    """The folder of a model in the cache, downloaded where it is not there yet.

    Weights that only other frameworks read stay on the Hub, and so does a `pytorch_model.bin`
    where there are safetensors.

    Args:
        name: `owner/model`, or `owner/model@revision`.
        weights: Without, config and tokenizer alone.

    Raises:
        ValueError: There is no such model, no permission, or neither network nor cached files.
    """
    folder = _snapshot(name, _SMALL + (_SAFETENSORS if weights else []))
    if weights and not any((folder / file).is_file() for file in _SAFETENSORS[:2]):
        folder = _snapshot(name, _SMALL + _TORCH)
    return folder


def _snapshot(name: str, patterns: list[str]) -> Path:
    import huggingface_hub  # here, because a local model needs none of it

    repository, _, revision = name.partition("@")
    try:
        return Path(
            huggingface_hub.snapshot_download(
                repository, revision=revision or None, allow_patterns=patterns
            )
        )
    except Exception as error:  # of the Hub, of HTTP, of sockets: each library has its own
        reason = " ".join(str(error).split())[:300]
        raise ValueError(
            f"model '{name}' is neither a folder nor to be had from the Hugging Face Hub "
            f"({type(error).__name__}: {reason}); check the name, the network and HF_TOKEN, "
            "or give a local folder"
        ) from error
