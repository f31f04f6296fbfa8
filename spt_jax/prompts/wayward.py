"""A pull of the prompt towards a text, and how near to the text a prompt has come.

    Khashabi et al. 2022, "Prompt Waywardness: The Curious Case of Discretized Interpretation of
    Continuous Prompts", NAACL.

The paper finds that for an arbitrary text there is a prompt that solves a task almost as well as
any, and whose nearest words are that text. It adds gamma * ||prompt - embeddings||^2 to the loss.
Its gamma means another pull where the loss is summed or embeddings are larger, so here the distance
is relative to the vocabulary, and it is added once for every target token of a summed loss.

The released code trains with gamma 0, whatever it is told. So nothing here follows that code.
"""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import struct

from spt_jax.config.train import WaywardConfig
from spt_jax.errors import choose, require
from spt_jax.models.backbone import Backbone
from spt_jax.prompts.init import Prompt, tokens_of
from spt_jax.prompts.words import embeddings, nearest
from spt_jax.typing import Array, Float


@struct.dataclass
class Pull:
    """The term that a text adds to the loss.

    Args:
        text: Embeddings of its tokens.
        size: Mean squared norm of the vocabulary's embeddings.
        gamma: Weight of the distance.
        kind: `l2` or `cosine`, as in `WaywardConfig`.
    """

    text: Float[Array, "N D"]
    size: Float[Array, ""]
    gamma: Float[Array, ""]
    kind: str = struct.field(pytree_node=False)

    def distance(self, prompt: Prompt) -> Float[Array, ""]:
        """Return the distance of the first N vectors of a prompt to the text, without `gamma`."""
        vectors = prompt[: len(self.text)]

        def l2():
            return jnp.mean(jnp.sum(jnp.square(vectors - self.text), -1)) / self.size

        def cosine():
            norms = jnp.linalg.norm(vectors, axis=-1) * jnp.linalg.norm(self.text, axis=-1)
            return jnp.mean(1 - jnp.sum(vectors * self.text, -1) / jnp.maximum(norms, 1e-12))

        return choose("prompt.wayward.distance", self.kind, {"l2": l2, "cosine": cosine})()


def make_pull(config: WaywardConfig, length: int, backbone: Backbone) -> Pull:
    """Return the term of a text for prompts of a length.

    Raises:
        ValueError: The text has more tokens than the prompt has vectors; or as `tokens_of`.
    """
    ids = tokens_of(config.text, "prompt.wayward.text", backbone.tokenizer)
    table = embeddings(backbone)
    require(
        len(ids) <= length,
        f"prompt.wayward.text has {len(ids)} tokens but the prompt has {length} vectors; set "
        f"prompt.length to {len(ids)} or more, or give a shorter text",
    )
    size = np.mean(np.sum(np.square(table), -1))
    return Pull(
        jnp.asarray(table[ids]), jnp.asarray(size), jnp.float32(config.gamma), config.distance
    )


def compare_words(
    prompt: Prompt | np.ndarray, ids: Sequence[int], backbone: Backbone
) -> dict[str, Any]:
    """Compare the nearest words of a prompt with the tokens of a text.

    Args:
        prompt: Prompt, float32 [P, D], whose first N vectors are compared.
        ids: The N tokens of the text.
        backbone: Model of the prompt.

    Returns:
        `projection`, the nearest token of each vector by L2 distance, as text; `token_accuracy`,
        the share of vectors whose nearest token is that of the text, from 0 to 100; `margin`, by
        how much the nearest other token is farther away than the text's, as a mean over the
        vectors, in units of the mean norm of embeddings.
    """
    table = embeddings(backbone)
    found, distances = nearest(np.asarray(prompt)[: len(ids)], table, 2)["l2"]
    vectors = np.asarray(prompt, np.float32)[: len(ids)]
    own = np.linalg.norm(vectors - table[np.asarray(ids)], axis=1)
    right = found[:, 0] == np.asarray(ids)
    other = np.where(right, distances[:, 1], distances[:, 0])
    return {
        "projection": backbone.tokenizer.decode(found[:, 0].tolist()),
        "token_accuracy": 100 * float(right.mean()),
        "margin": float(np.mean(other - own) / np.linalg.norm(table, axis=1).mean()),
    }
