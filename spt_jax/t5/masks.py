"""The keys that each query sees, and rows that hold several examples.

A packed row holds examples one after the other, without padding between them (Raffel et al. 2020,
section 3.1.1). An example attends only to itself. Positions need no numbering per example, because
T5 uses only distances, and distances within an example do not depend on the others.
"""

from typing import NamedTuple

from spt_jax.typing import Array, Bool, Int


class Segments(NamedTuple):
    """The example that each position of a row belongs to: numbered from 1, 0 for padding.

    Args:
        inputs: Examples of the encoder's positions.
        targets: Examples of the decoder's positions.
    """

    inputs: Int[Array, "B T"]
    targets: Int[Array, "B U"]


def seen(
    mask: Bool[Array, "B S"],
    queries: Int[Array, "B T"] | None = None,
    keys: Int[Array, "B S"] | None = None,
) -> Bool[Array, "B 1 t S"]:
    """Return the mask of the keys that each query sees: those of its own example.

    Args:
        mask: True where a key is no padding.
        queries: Example of each query. Without it every query sees every key, and t is 1.
        keys: Example of each key.
    """
    of_keys = mask[:, None, None, :]
    if queries is None or keys is None:
        return of_keys
    return of_keys & (queries[:, None, :, None] == keys[:, None, None, :])
