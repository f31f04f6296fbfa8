"""The largest of long rows, such as logits: `jax.lax.top_k`, faster on CPU, and `jnp.argmax` too.

XLA's own looks at one entry after the other. The largest of each group of 128 is a plain maximum,
which runs on all lanes and cores, and only the k groups with the largest maxima need a closer look:
an entry of another group comes after the maximum of each of these.
"""

import jax
import jax.numpy as jnp

from spt_jax.typing import Array, Float, Int

GROUP = 128


def top_k(x: Float[Array, "B C"], k: int) -> tuple[Float[Array, "B k"], Int[Array, "B k"]]:
    """The k largest entries of each row and their places, largest first, of equals the first."""
    batch, width = x.shape
    groups = -(-width // GROUP)
    if groups <= k:
        values, places = jax.lax.top_k(x, k)
        return values, places
    padded = jnp.pad(x, ((0, 0), (0, groups * GROUP - width)), constant_values=-jnp.inf)
    grouped = padded.reshape(batch, groups, GROUP)
    # In the order of the row, so that of equals the first is found first.
    chosen = jnp.sort(jax.lax.top_k(jnp.max(grouped, axis=2), k)[1], axis=1)
    entries = jnp.take_along_axis(grouped, chosen[:, :, None], axis=1).reshape(batch, k * GROUP)
    values, place = jax.lax.top_k(entries, k)
    group = jnp.take_along_axis(chosen, place // GROUP, axis=1)
    return values, group * GROUP + place % GROUP
