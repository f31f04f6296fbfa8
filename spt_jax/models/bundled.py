"""Backbones as `save_backbone` writes them. The bundled spt-nano has this format.

config.json         the T5Config, the name, and the fingerprint of the weights
model.safetensors   the weights by name, such as `encoder/layers/mlp/wi_0/kernel`, layers stacked
tokenizer.json      the tokenizer
"""

from pathlib import Path

from spt_jax.models.formats.safetensors_file import open_safetensors
from spt_jax.models.names import match
from spt_jax.models.source import Source
from spt_jax.t5 import T5Config
from spt_jax.tokenizers.base import Tokenizer
from spt_jax.tokenizers.published import load_tokenizer, read_json


def open_bundled(folder: Path, tokenizer: Tokenizer | None = None) -> Source:
    """Open a backbone of our own format.

    Args:
        folder: Folder with the files above.
        tokenizer: Tokenizer to use instead of the one in the folder.

    Raises:
        FileNotFoundError: A file is missing.
        ValueError: Its files cannot be read, or do not fit each other.
    """
    described = read_json(folder / "config.json")
    try:
        config = T5Config(**described["t5"])
        name, fingerprint = described["name"], described["fingerprint"]
    except (KeyError, TypeError) as error:
        raise ValueError(f"{folder / 'config.json'} is no config of ours ({error!r})") from None
    leaves = match(open_safetensors(folder / "model.safetensors"), config, str(folder), None)
    tokenizer = tokenizer or load_tokenizer(folder)
    return Source(name, str(folder), config, leaves, tokenizer, fingerprint)
