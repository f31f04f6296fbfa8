"""Token ids and batches: tokenized once into memory, then sampled, then padded.

The batch of step n is a pure function of (seed, n), so a run has no iterator to save and a resumed
one sees the batches it would have seen. Rows are drawn first and padded afterwards, to the smallest
of a few lengths that holds the longest of them: padding never decides which rows meet, and jit
compiles one program per length.
"""

import functools
import hashlib
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import grain
import numpy as np

from spt_jax.config.train import DataConfig
from spt_jax.data.tasks import Example
from spt_jax.tokenizers.base import Tokenizer

WINDOW = 50  # batches whose rows are sorted together where group_by_length is on
AHEAD = 4  # batches prepared ahead

NumpyBatch = dict[str, np.ndarray]
"""{"inputs": int32[B, T], "targets": int32[B, U]}, padded with 0."""


@dataclass(frozen=True)
class TokenizedSplit:
    """A split as token ids.

    Args:
        examples: The texts, for scoring.
        inputs: int32[T] for each row, its end marker last.
        targets: int32[U] for each row, its end marker last.
        truncated: Share of the rows whose inputs were cut, 0 to 1.
        truncated_targets: Share of the rows whose targets were cut, 0 to 1.
    """

    examples: Sequence[Example]
    inputs: list[np.ndarray]
    targets: list[np.ndarray]
    truncated: float
    truncated_targets: float


def tokenize_split(
    examples: Sequence[Example], tokenizer: Tokenizer, data: DataConfig
) -> TokenizedSplit:
    """Tokenizes the examples; what is too long is cut so that the end marker still fits."""

    def tokenize(texts: list[str], length: int) -> tuple[list[np.ndarray], float]:
        rows, cut = [], 0
        for ids in tokenizer.encode_batch(texts):
            cut += len(ids) > length - 1
            rows.append(np.array([*ids[: length - 1], tokenizer.eos_id], np.int32))
        return rows, cut / max(1, len(rows))

    inputs, truncated = tokenize([e.inputs for e in examples], data.inputs_length)
    targets, truncated_targets = tokenize([e.targets for e in examples], data.targets_length)
    return TokenizedSplit(examples, inputs, targets, truncated, truncated_targets)


def data_fingerprint(splits: dict[str, TokenizedSplit]) -> str:
    """sha256, in hex, over all token ids of all splits, with the bounds of rows and splits."""
    digest = hashlib.sha256()
    for name in sorted(splits):
        for kind, rows in (("inputs", splits[name].inputs), ("targets", splits[name].targets)):
            lengths = np.array([len(row) for row in rows], "<i4")
            digest.update(f"{name} {kind} {len(rows)}\n".encode() + lengths.tobytes())
            digest.update(b"".join(row.astype("<i4").tobytes() for row in rows))
    return digest.hexdigest()


def train_batches(
    split: TokenizedSplit, data: DataConfig, *, seed: int, targets_width: int
) -> "grain.MapDataset[NumpyBatch]":
    """An endless dataset in which `ds[n]` is the batch of step n, a function of (seed, n) alone.

    Every epoch is a new permutation and has every row once; batches run across epochs, so a batch
    may be larger than the split.

    Args:
        split: The rows.
        data: batch_size, buckets, inputs_length and group_by_length.
        seed: Of the permutations.
        targets_width: Length U that targets are padded to.

    Raises:
        ValueError: The split is empty, or a target is longer than `targets_width`.
    """
    if not split.inputs:
        raise ValueError("the train split has no rows; expected one or more")
    longest = max(map(len, split.targets))
    if longest > targets_width:
        raise ValueError(
            f"a target has {longest} tokens, expected at most targets_width {targets_width}"
        )
    pad = functools.partial(_pad, buckets=_buckets(data), targets_width=targets_width)
    # Grain permutes epoch e by seed + e. Hashed, or runs of seeds 0 and 1 would share epochs.
    digest = hashlib.sha256(f"train batches {seed}".encode()).digest()
    rows = grain.MapDataset.source(list(zip(split.inputs, split.targets, strict=True)))
    rows = rows.shuffle(seed=int.from_bytes(digest[:4], "big")).repeat()
    if not data.group_by_length:
        return rows.batch(data.batch_size, batch_fn=pad)

    windows = rows.batch(WINDOW * data.batch_size, batch_fn=list)

    @functools.lru_cache(maxsize=2)
    def batches_of(window: int) -> list:
        drawn = sorted(windows[window] or (), key=lambda row: len(row[0]))
        order = np.random.default_rng((int.from_bytes(digest[4:8], "big"), window))
        starts = order.permutation(WINDOW) * data.batch_size
        return [drawn[start : start + data.batch_size] for start in starts]

    return grain.MapDataset.range(sys.maxsize).map(
        lambda step: pad(batches_of(step // WINDOW)[step % WINDOW])
    )


def prefetch(ds: "grain.MapDataset[NumpyBatch]", start: int, stop: int) -> Iterator[NumpyBatch]:
    """The batches of steps start to stop - 1, prepared ahead by a thread."""
    options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=AHEAD)
    return iter(ds[start:stop].to_iter_dataset(options))


def eval_batches(
    split: TokenizedSplit, data: DataConfig, batch_size: int
) -> Iterator[tuple[np.ndarray, NumpyBatch]]:
    """Every row once, in batches of rows of similar length, the longest first.

    Yields:
        Indices int32[n] of the rows in the split, and their batch. The last batch may have fewer
        rows than `batch_size`: rows n and on are all padding.
    """
    order = sorted(range(len(split.inputs)), key=lambda i: -len(split.inputs[i]))
    targets_width = max(map(len, split.targets), default=1)
    for start in range(0, len(order), batch_size):
        indices = order[start : start + batch_size]
        rows = [(split.inputs[i], split.targets[i]) for i in indices]
        batch = _pad(rows, _buckets(data), targets_width, batch_size)
        yield np.array(indices, np.int32), batch


def _buckets(data: DataConfig) -> tuple[int, ...]:
    return (*(b for b in data.buckets if b < data.inputs_length), data.inputs_length)


def _pad(
    rows: Sequence[tuple[np.ndarray, np.ndarray]],
    buckets: tuple[int, ...],
    targets_width: int,
    batch_size: int | None = None,
) -> NumpyBatch:
    longest = max(len(inputs) for inputs, _ in rows)
    inputs_width = next(bucket for bucket in buckets if bucket >= longest)
    batch_size = batch_size or len(rows)
    batch = {
        "inputs": np.zeros((batch_size, inputs_width), np.int32),
        "targets": np.zeros((batch_size, targets_width), np.int32),
    }
    for number, (inputs, targets) in enumerate(rows):
        batch["inputs"][number, : len(inputs)] = inputs
        batch["targets"][number, : len(targets)] = targets
    return batch
