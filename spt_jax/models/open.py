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
from spt_jax.models.hub import fetch, find_cached, is_hub_id
from spt_jax.models.source import Source
from spt_jax.models.t5x import CHECKPOINT, is_remote, open_t5x, open_t5x_tokenizer
from spt_jax.models.transformers_folder import open_hf, read_config
from spt_jax.t5 import T5Config
from spt_jax.tokenizers.base import Tokenizer
from spt_jax.tokenizers.published import load_tokenizer, read_json

BUNDLED = Path(__file__).parents[1] / "backbones"


def find_tokenizer(place: str) -> Tokenizer:
    """Return the tokenizer of a model, file or folder, without downloading weights.

    Raises:
        FileNotFoundError: There is no tokenizer.
        ValueError: It cannot be read, or there is no such model.
    """
    if is_remote(place):
        return open_t5x_tokenizer(place)
    path = Path(place)
    return load_tokenizer(path if path.exists() else find_backbone(place, weights=False))


def backbone_names() -> list[str]:
    """Return the names of the bundled backbones."""
    return sorted(path.parent.name for path in BUNDLED.glob("*/config.json"))


def is_local(name: str) -> bool:
    """Return whether a model is on this machine: bundled, a folder, or in the Hub's cache."""
    if is_remote(name):
        return False
    known = name in backbone_names() or Path(name).is_dir()
    return known or (_is_on_hub(name) and find_cached(name) is not None)


def is_fetched(name: str) -> bool:
    """Return whether opening a model needs the network; a name that means nothing does not."""
    return (is_remote(name) or _is_on_hub(name)) and not is_local(name)


def open_model(
    name: str, tokenizer: Tokenizer | None = None, *, offline: bool = False
) -> Source | Base:
    """Open a model without reading its weights.

    Args:
        name: A name of one of the four kinds above.
        tokenizer: Tokenizer to use instead of the one beside the weights.
        offline: Whether the network must not be used. A Hub id then means the model in the Hub's
            cache.

    Raises:
        FileNotFoundError: A file of the model is missing.
        ValueError: There is no such model, or its files do not fit each other.
    """
    opened = _open(name, tokenizer, offline)
    ids, rows = opened.tokenizer.vocab_size, opened.config.vocab_size
    if ids > rows:
        raise ValueError(
            f"tokenizer of {name} has {ids} ids but the model has {rows} embeddings, so some ids "
            "have none; use the tokenizer that the model was trained with"
        )
    return opened


def _open(name: str, tokenizer: Tokenizer | None, offline: bool) -> Source | Base:
    if offline and is_fetched(name):
        raise ValueError(
            f"model '{name}' is not on this machine, and nothing may be fetched; give a folder, or "
            "load it without offline"
        )
    if is_remote(name):
        return open_t5x(name, name, tokenizer)
    cached = find_cached(name) if offline and _is_on_hub(name) else None
    folder = cached or find_backbone(name)
    if (folder / CHECKPOINT).is_file():
        return open_t5x(str(folder), name, tokenizer)
    described = read_json(folder / "config.json")
    if "format" in described:
        return open_base(folder)
    if "t5" in described:
        return open_bundled(folder, tokenizer)
    return open_hf(folder, name, tokenizer)


def read_shape(name: str) -> tuple[T5Config, str | None]:
    """Return the shape of a model and, where the model stores it, its fingerprint.

    No weights of a model on the Hub are downloaded, so whether it has a head of its own is taken
    from its config.

    Raises:
        FileNotFoundError: As `open_model`.
        ValueError: As `open_model`.
    """
    if _is_on_hub(name):
        folder = fetch(name, weights=False)
        fields, tied = read_config(read_json(folder / "config.json"), name)
        return T5Config(**fields, tied_head=tied), None
    opened = open_model(name)
    return opened.config, opened.fingerprint


def find_backbone(name: str, *, weights: bool = True) -> Path:
    """Return the folder of a bundled backbone, one given by path, or one from the Hub.

    Args:
        name: Name of a model.
        weights: Whether to download weights too.

    Raises:
        ValueError: The name is none of them.
    """
    for folder in (BUNDLED / name, Path(name)):
        if any((folder / file).is_file() for file in ("config.json", CHECKPOINT)):
            return folder
    if _is_on_hub(name):
        return fetch(name, weights=weights)
    bundled = backbone_names()
    raise ValueError(
        f"unknown model '{name}'; expected a bundled one ({', '.join(bundled)}), a folder with "
        f"config.json or a T5X {CHECKPOINT}, or a Hub id such as google/t5-small-lm-adapt"
        f"{suggest(name, bundled)}"
    )


def _is_on_hub(name: str) -> bool:
    """Return whether a name means a model of the Hub: it has that form and is no path here."""
    return not Path(name).exists() and is_hub_id(name)
