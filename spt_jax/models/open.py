"""`--model`: what a name means, and what the folder behind it holds.

a bundled name          spt-nano
a folder                a backbone or base checkpoint of ours, of transformers, or of T5X
an address              gs://bucket/checkpoint_1100000, a T5X checkpoint
a Hub id                google/t5-large-lm-adapt, or owner/model@revision
"""

from pathlib import Path

from spt_jax.errors import suggest
from spt_jax.models.base_checkpoint import Base, open_base
from spt_jax.models.bundled import open_bundled
from spt_jax.models.hub import fetch, is_hub_id
from spt_jax.models.source import Source
from spt_jax.models.t5x import CHECKPOINT, is_remote, open_t5x, open_t5x_tokenizer
from spt_jax.models.transformers_folder import open_hf, read_config
from spt_jax.t5 import T5Config
from spt_jax.tokenizers.bpe import Tokenizer
from spt_jax.tokenizers.published import load_tokenizer, read_json

BUNDLED = Path(__file__).parents[1] / "backbones"


def find_tokenizer(place: str) -> Tokenizer:
    """The tokenizer of a model, or the one in a file or folder; no weights are downloaded.

    Raises:
        FileNotFoundError: There is none.
        ValueError: It cannot be read, or there is no such model.
    """
    if is_remote(place):
        return open_t5x_tokenizer(place)
    path = Path(place)
    return load_tokenizer(path if path.exists() else find_backbone(place, weights=False))


def backbone_names() -> list[str]:
    """The bundled backbones."""
    return sorted(path.parent.name for path in BUNDLED.glob("*/config.json"))


def is_local(name: str) -> bool:
    """Return whether a name is a bundled one or an existing folder, so that nothing is fetched."""
    return name in backbone_names() or (not is_remote(name) and Path(name).is_dir())


def open_model(name: str, tokenizer: Tokenizer | None = None) -> Source | Base:
    """Opens a model without reading its weights.

    Args:
        name: One of the four above.
        tokenizer: Instead of the one beside the weights.

    Raises:
        FileNotFoundError: A file of the model is missing.
        ValueError: There is no such model, or its files do not fit each other.
    """
    if is_remote(name):
        return open_t5x(name, name, tokenizer)
    folder = find_backbone(name)
    if (folder / CHECKPOINT).is_file():
        return open_t5x(str(folder), name, tokenizer)
    described = read_json(folder / "config.json")
    if "format" in described:
        return open_base(folder)
    if "t5" in described:
        return open_bundled(folder, tokenizer)
    return open_hf(folder, name, tokenizer)


def read_shape(name: str) -> tuple[T5Config, str | None]:
    """The shape of a model and, where the model keeps it, its fingerprint.

    Of a model on the Hub no weights are downloaded, and its config is believed about the head.

    Raises:
        FileNotFoundError: As `open_model`.
        ValueError: As `open_model`.
    """
    if not Path(name).exists() and is_hub_id(name):
        folder = fetch(name, weights=False)
        fields, tied = read_config(read_json(folder / "config.json"), name)
        return T5Config(**fields, tied_head=tied), None
    opened = open_model(name)
    return opened.config, opened.fingerprint


def find_backbone(name: str, *, weights: bool = True) -> Path:
    """The folder of a bundled backbone, one given by path, or one from the Hub.

    Args:
        name: Of a model.
        weights: Whether they are to be downloaded too.

    Raises:
        ValueError: It is none of them.
    """
    for folder in (BUNDLED / name, Path(name)):
        if any((folder / file).is_file() for file in ("config.json", CHECKPOINT)):
            return folder
    if not Path(name).exists() and is_hub_id(name):
        return fetch(name, weights=weights)
    bundled = backbone_names()
    raise ValueError(
        f"unknown model '{name}'; expected a bundled one ({', '.join(bundled)}), a folder with "
        f"config.json or a T5X {CHECKPOINT}, or a Hub id such as google/t5-small-lm-adapt"
        f"{suggest(name, bundled)}"
    )
