"""Which runs share a program, how many fit into memory together, and their training.

The memory of a training step grows with the rows that pass through the model at once, which are the
batches of all runs of a pack. What is counted is what the backward pass keeps of each layer:

    encoder layer, a position    4 D + 4 N H + 3 F, and the attention weights of one query
    decoder layer, a position    6 D + 8 N H + 3 F, and the weights over targets and inputs
    logits, a target position    3 V

The packs are made of all runs of a study, finished or not. So a sweep that goes on after a kill
has the packs that it had before.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from spt_jax.config.sharing import share_program
from spt_jax.config.train import TrainConfig
from spt_jax.errors import Preempted, RunError, one_line
from spt_jax.models.automesh import device_memory, resolve_dtype
from spt_jax.models.names import count_weights
from spt_jax.models.open import read_shape
from spt_jax.runs.progress import say
from spt_jax.t5 import T5Config
from spt_jax.train import fit_together

MOST = 16
"""Most runs of a pack that is made by memory: every run adds to the time of compilation."""

SHARE_OF_CPU, SHARE_OF_DEVICE = 0.4, 0.8
"""Share of the memory that a pack may take. Other programs use the memory of a CPU too."""

PADDED = 1.25
"""Most positions of a row in a pack, in those that it would have alone."""

MARGIN = 1.25
"""Factor on the estimate, which is 0.9 to 1.15 of what XLA reserves for spt-nano on a CPU."""


def make_packs(configs: Sequence[TrainConfig], together: int | None) -> list[list[int]]:
    """Return the packs of a study, as the numbers of the runs in each.

    Args:
        configs: The config of every run.
        together: Most runs of a pack; None chooses it by memory.

    Raises:
        ValueError: `together` is below 1, or a model is unknown.
        FileNotFoundError: A file of a model is missing.
    """
    if together is not None:
        return share_program(configs, together)
    packs = []
    for group in share_program(configs, max(len(configs), 1)):
        for alike in _split_by_length(group, configs):
            fit = most_together([configs[number] for number in alike])
            count = -(-len(alike) // fit)
            size = -(-len(alike) // count)  # packs of similar size compile fewer programs
            packs += [alike[at : at + size] for at in range(0, len(alike), size)]
    return packs


def _split_by_length(group: list[int], configs: Sequence[TrainConfig]) -> list[list[int]]:
    """Cut a group where a row would be padded too much, because a pack pads all to its longest."""
    parts: list[list[int]] = []
    shortest = 1
    for number in group:
        if not parts or not 1 / PADDED <= _positions(configs[number]) / shortest <= PADDED:
            parts.append([])
            shortest = _positions(configs[number])
        parts[-1].append(number)
    return parts


def _positions(config: TrainConfig) -> int:
    """Return the most positions of an encoded row: its prompt and its input."""
    return config.data.inputs_length + (config.prompt.length if config.prompt else 0)


def describe_packs(packs: Sequence[Sequence[Any]]) -> str:
    """Return how the runs of a study are packed, in words."""
    most = max(map(len, packs), default=0)
    runs = sum(map(len, packs))
    programs = "1 program" if len(packs) == 1 else f"{len(packs)} programs"
    return f"{runs} runs in {programs}, at most {most} in one"


def train_pack(
    configs: Sequence[TrainConfig],
    folders: Sequence[Path],
    *,
    stops: Sequence[int] | None = None,
    **options: Any,
) -> list[dict | RunError | None]:
    """Train runs in one program, or in several where they fail as a whole.

    A pack fails as a whole if it does not fit into memory, for example. It is then trained in two
    halves, and so on down to a run that fails by itself.

    Args:
        configs: The runs of the pack.
        folders: Folder of each run.
        stops: As in `fit_together`.
        options: Other options of `fit_together`.

    Returns:
        The result of each run, the error of its own, or None if it was left at its stop.

    Raises:
        ValueError, FileNotFoundError, NotADirectoryError, PermissionError, ConnectionError,
            Preempted: See `fit_together`.
    """
    try:
        return fit_together(configs, folders, stops=stops, **options)
    except Preempted:
        raise
    except RunError as error:
        reason = one_line(error)
    if len(configs) == 1:
        return [RunError(reason)]
    # Not in the handler, whose exception keeps the arrays of the failed pack in memory.
    half = len(configs) // 2
    say(
        f"{len(configs)} runs failed in one program: {reason}; they are trained as {half} and "
        f"{len(configs) - half} instead"
    )
    return [
        outcome
        for part in (slice(half), slice(half, None))
        for outcome in train_pack(
            configs[part], folders[part], stops=None if stops is None else stops[part], **options
        )
    ]


def most_together(configs: Sequence[TrainConfig]) -> int:
    """Return how many runs of one model fit into the memory of a device, from 1 to `MOST`.

    Args:
        configs: Runs that share a program. The largest of them counts.
    """
    devices, config = jax.devices(), configs[0]
    shape = read_shape(config.model)[0]
    spread = max(1, len(devices) // (config.mesh.model if config.mesh else 1))
    share = SHARE_OF_CPU if devices[0].platform == "cpu" else SHARE_OF_DEVICE
    free = share * device_bytes() - weight_bytes(shape, config)
    needed = MARGIN * max(activation_bytes(shape, config) for config in configs) / spread
    return max(1, min(MOST, int(free // needed)))


def device_bytes() -> int:
    """Return the memory of a device, or that of this machine where the devices are its CPU."""
    found = device_memory(jax.devices())
    return found or os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def weight_bytes(shape: T5Config, config: TrainConfig) -> int:
    """Return the bytes of the frozen weights on one device, where each has them all."""
    return count_weights(shape) * _item_bytes(config.param_dtype)


def activation_bytes(shape: T5Config, config: TrainConfig) -> int:
    """Return about how many bytes a training step of one run keeps for its backward pass.

    Rows have the longest inputs and targets that the config allows.
    """
    c, inner = shape, shape.num_heads * shape.d_kv
    inputs, targets = _positions(config), config.data.targets_length
    encoder = inputs * (4 * c.d_model + 4 * inner + 3 * c.d_ff + c.num_heads * inputs)
    decoder = (
        targets * (6 * c.d_model + 8 * inner + 3 * c.d_ff + c.num_heads * (inputs + targets))
        + 2 * inner * inputs
    )
    layers = c.num_layers * encoder + c.num_decoder_layers * decoder
    rows = config.data.batch_size // config.optimizer.accumulate
    return rows * (layers + 3 * targets * c.vocab_size) * _item_bytes(config.dtype)


def _item_bytes(dtype: str) -> int:
    return resolve_dtype(dtype, jax.devices()[0].platform).itemsize
