"""Which runs may train together in one program.

Runs share a program if each trains a prompt, and all do so with the same model, in the same way:
the settings in `SHARED` are equal. Everything else may differ: task, prompt, optimizer, steps,
seed, lengths in tokens, evaluation and log.
"""

from collections.abc import Sequence
from operator import attrgetter
from typing import Any

from spt_jax.config.fields import show
from spt_jax.config.train import TrainConfig
from spt_jax.errors import require

SHARED = (
    "model",
    "tune",
    "dtype",
    "param_dtype",
    "dropout_rate",
    "remat",
    "attention",
    "mesh",
    "loss",
    "data.batch_size",
    "optimizer.accumulate",
)
"""Settings that are equal in all runs of a program."""


def require_shared(configs: Sequence[TrainConfig]) -> None:
    """Require that runs may share a program.

    Raises:
        ValueError: They may not; the message names the setting and its two values.
    """
    first = configs[0]
    for config in configs[1:]:
        require(
            config.tune == first.tune == "prompt",
            "runs that tune the whole model cannot train together, because each changes the model; "
            "train them one after the other",
        )
        for name in SHARED:
            ours, theirs = map(attrgetter(name), (first, config))
            require(
                ours == theirs,
                f"runs that train together have one {name}, but here it is {show(ours)} and "
                f"{show(theirs)}; train them apart",
            )


def share_program(configs: Sequence[TrainConfig], together: int) -> list[list[int]]:
    """Put runs into groups that may share a program.

    Within a group, runs of one task with prompts of similar length are neighbours, because a batch
    is as long as the longest prompt and the longest input in it.

    Args:
        configs: The runs.
        together: Most runs of a group.

    Returns:
        Indices of the runs of each group.

    Raises:
        ValueError: `together` is below 1.
    """
    require(together >= 1, f"together is {together} runs, expected 1 or more")
    alike: dict[Any, list[int]] = {}
    for index, config in enumerate(configs):
        alone = index if config.tune != "prompt" else None
        key = alone, *map(repr, attrgetter(*SHARED)(config))
        alike.setdefault(key, []).append(index)
    groups = []
    for indices in alike.values():
        ordered = sorted(indices, key=lambda index: _size(configs[index]))
        groups += [ordered[at : at + together] for at in range(0, len(ordered), together)]
    return groups


def _size(config: TrainConfig) -> tuple:
    length = config.prompt.length if config.prompt else 0
    return config.steps, config.data.inputs_length, repr(config.task), length
