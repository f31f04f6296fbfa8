"""T5 1.0 and 1.1 in Flax Linen, from embeddings to logits. It knows no prompts, tasks or files."""

from spt_jax.config.devices import AttentionVersion, Remat
from spt_jax.t5.cache import Cache
from spt_jax.t5.config import PRESETS, T5Config
from spt_jax.t5.masks import Segments
from spt_jax.t5.model import T5

__all__ = ["PRESETS", "T5", "AttentionVersion", "Cache", "Remat", "Segments", "T5Config"]
