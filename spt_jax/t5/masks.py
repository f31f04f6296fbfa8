"""Which keys each query of an attention sees, and rows that hold several examples.

A packed row holds examples behind one another, with no padding between them (Raffel et al. 2020,
section 3.1.1). Each sees itself alone. Positions need no numbers of their own: T5 knows distances
only, and those within an example are what they are without the others.
"""

from typing import NamedTuple

from spt_jax.typing import Array, Bool, Int


class Segments(NamedTuple):
    """Which example of its row each position belongs to: numbered from 1, 0 where padded.

    Args:
        inputs: Of the encoder's positions.
        targets: Of the decoder's.
    """

    inputs: Int[Array, "B T"]
    targets: Int[Array, "B U"]


def seen(
    mask: Bool[Array, "B S"],
    queries: Int[Array, "B T"] | None = None,
    keys: Int[Array, "B S"] | None = None,
) -> Bool[Array, "B 1 t S"]:
    """The keys that each query sees: those of its own example; t is 1 where no examples are given.

    Args:
        mask: Which keys are no padding.
        queries: The example of each query.
        keys: The example of each key.
    """
    of_keys = mask[:, None, None, :]
    if queries is None or keys is None:
        return of_keys
    return of_keys & (queries[:, None, :, None] == keys[:, None, None, :])
