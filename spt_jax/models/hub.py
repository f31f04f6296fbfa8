"""Models on the Hugging Face Hub, downloaded into the Hub's own cache.

huggingface_hub decides about cache, tokens, mirrors and offline mode, by `HF_HOME`, `HF_TOKEN`,
`HF_ENDPOINT` and `HF_HUB_OFFLINE`. A model that is in the cache needs no network.
"""

import re
from pathlib import Path

from spt_jax.tokenizers.published import SMALL_FILES

_SMALL = list(SMALL_FILES)
_SAFETENSORS = ["model.safetensors", "model.safetensors.index.json", "model-*.safetensors"]
_TORCH = ["pytorch_model.bin", "pytorch_model.bin.index.json", "pytorch_model-*.bin"]


def is_hub_id(name: str) -> bool:
    """Return whether a name has the form `owner/model` or `owner/model@revision`."""
    return re.fullmatch(r"[\w.-]+/[\w.-]+(@[\w./-]+)?", name) is not None


def fetch(name: str, *, weights: bool = True) -> Path:
    """Return the folder of a model in the cache, after downloading what is missing.

    Only weights that can be read here are downloaded, and a `pytorch_model.bin` only where there
    are no safetensors.

    Args:
        name: `owner/model`, or `owner/model@revision`.
        weights: Whether to download weights too, or config and tokenizer alone.

    Raises:
        ValueError: There is no such model, no permission, or neither network nor cached files.
    """
    folder = _snapshot(name, _SMALL + (_SAFETENSORS if weights else []))
    if weights and not any((folder / file).is_file() for file in _SAFETENSORS[:2]):
        folder = _snapshot(name, _SMALL + _TORCH)
    return folder


def find_cached(name: str) -> Path | None:
    """Return the folder of a model whose weights are in the cache, or None; fetch nothing."""
    import huggingface_hub

    repository, _, revision = name.partition("@")
    try:
        folder = Path(
            huggingface_hub.snapshot_download(
                repository, revision=revision or None, local_files_only=True
            )
        )
    except Exception:  # the Hub has several for a model that is not there
        return None
    weights = (*_SAFETENSORS[:2], *_TORCH[:2])
    return folder if any((folder / file).is_file() for file in weights) else None


def _snapshot(name: str, patterns: list[str]) -> Path:
    import huggingface_hub  # imported here because a local model does not need it

    repository, _, revision = name.partition("@")
    try:
        return Path(
            huggingface_hub.snapshot_download(
                repository, revision=revision or None, allow_patterns=patterns
            )
        )
    except Exception as error:  # the Hub, HTTP and sockets each have exceptions of their own
        reason = " ".join(str(error).split())[:300]
        raise ValueError(
            f"model '{name}' is neither a folder nor to be had from the Hugging Face Hub "
            f"({type(error).__name__}: {reason}); check the name, the network and HF_TOKEN, "
            "or give a local folder"
        ) from error
