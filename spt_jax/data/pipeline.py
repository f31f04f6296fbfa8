"""Token ids and batches: tokenized once into memory, then sampled, then padded.

The batch of step n is a pure function of (seed, n), so a run has no iterator to save and a resumed
one sees the batches it would have seen. Rows are drawn first and padded afterwards, to the smallest
of a few lengths that holds the longest of them: padding never decides which rows meet, and jit
compiles one program per length.
"""

import dataclasses
import functools
import hashlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import grain
import numpy as np

from spt_jax.config.train import DataConfig, TaskConfig, TrainConfig
from spt_jax.data.example import Example, Task
from spt_jax.data.tasks import longest_input
from spt_jax.data.template import SENTINEL
from spt_jax.errors import shorten
from spt_jax.tokenizers.base import Tokenizer

WINDOW = 50  # batches whose rows are sorted together where group_by_length is on
UNWRITABLE = 0.01  # share of free-text targets that the tokenizer may know nothing of
WIDTH_STEP = 128  # widths of evaluation rows beyond the longest bucket are multiples of it
AHEAD = 4  # batches prepared ahead

NumpyBatch = dict[str, np.ndarray]
"""{"inputs": int32[B, T], "targets": int32[B, U]}, padded with 0."""


@dataclass(frozen=True)
class TokenizedSplit:
    """A split as token ids.

    Args:
        examples: The texts, for scoring. Free-text targets and answers are as they come back from
            their tokens, so that what the model writes is compared with what it can write.
        inputs: int32[T] for each row, its end marker last.
        targets: int32[U] for each row, its end marker last.
        truncated: Share of the rows whose inputs were cut, 0 to 1.
        truncated_targets: Share of the rows whose targets were cut, 0 to 1.
        unknown_targets: Share of the free-text targets with characters unknown to the tokenizer.
    """

    examples: Sequence[Example]
    inputs: list[np.ndarray]
    targets: list[np.ndarray]
    truncated: float
    truncated_targets: float
    unknown_targets: float = 0.0


def tokenize_split(
    examples: Sequence[Example],
    tokenizer: Tokenizer,
    data: DataConfig,
    *,
    free_text: bool = False,
    inputs_length: int | None = None,
) -> TokenizedSplit:
    """Tokenize the examples; what is too long is cut so that the end marker still fits.

    Args:
        examples: The rows.
        tokenizer: Of the model.
        data: The lengths, and whether a sentinel is in front of the targets.
        free_text: Whether targets are free text, and not label words.
        inputs_length: Most tokens of an input; that of `data` by default.

    Raises:
        ValueError: The tokenizer knows no character of many free-text targets, or has no such
            sentinel.
    """

    def cut(encoded: list[list[int]], length: int) -> tuple[list[np.ndarray], float]:
        rows = [np.array([*ids[: length - 1], tokenizer.eos_id], np.int32) for ids in encoded]
        return rows, sum(len(ids) > length - 1 for ids in encoded) / max(1, len(encoded))

    texts = [example.targets for example in examples]
    encoded = encode_targets(texts, tokenizer, sentinel=data.sentinel_targets)
    targets, truncated_targets = cut(encoded, data.targets_length)
    length = inputs_length or data.inputs_length
    inputs, truncated = cut(encode_inputs(examples, tokenizer), length)
    unknown = 0.0
    if free_text:
        examples = _read_back(examples, encoded, tokenizer)
        unknown = sum(tokenizer.unk_id in ids for ids in encoded) / max(1, len(encoded))
    return TokenizedSplit(examples, inputs, targets, truncated, truncated_targets, unknown)


def tokenize_task(
    task: Task, split: str, described: TaskConfig, config: TrainConfig, tokenizer: Tokenizer
) -> TokenizedSplit:
    """Tokenize a split of a task as a run does.

    Args:
        task: With the split.
        split: Its name.
        described: What the task was loaded from; not always `config.task`.
        config: Of the run.
        tokenizer: Of the model.

    Raises:
        ValueError: The task has no such split, or see `tokenize_split`.
    """
    if split not in task.splits:
        raise ValueError(f"unknown split '{split}'; expected one of {', '.join(task.splits)}")
    return tokenize_split(
        task.splits[split],
        tokenizer,
        config.data,
        free_text=task.label_words is None,
        inputs_length=longest_input(described, config.data, split, config.eval.inputs_length),
    )


def describe_lengths(splits: Mapping[str, TokenizedSplit]) -> list[str]:
    """Return lines on what is cut and what cannot be written, for each split."""
    cut = (
        f"{name} {100 * part.truncated:.1f}%/{100 * part.truncated_targets:.1f}%"
        for name, part in splits.items()
    )
    unknown = [
        f"{100 * part.unknown_targets:.1f}% of {name}"
        for name, part in splits.items()
        if part.unknown_targets
    ]
    notes = [f"cut to length (inputs/targets): {', '.join(cut)}"]
    if unknown:
        notes.append(
            "targets with characters that the tokenizer does not know, which nothing writes or "
            f"scores: {', '.join(unknown)}"
        )
    return notes


def encode_inputs(examples: Sequence[Example], tokenizer: Tokenizer) -> list[list[int]]:
    """Return the ids of the inputs: text, and the sentinels that a template has put there.

    Raises:
        ValueError: The tokenizer has no such sentinel.
    """
    pieces, sentinels = [], []
    for example in examples:
        start, found = 0, []
        for at in example.sentinels:
            match = SENTINEL.match(example.inputs, at)
            if match is None:
                raise ValueError(f"no sentinel at character {at} of {shorten(example.inputs)!r}")
            pieces.append(example.inputs[start:at])
            found.append(tokenizer.sentinel(int(match[1])))
            start = match.end()
        pieces.append(example.inputs[start:])
        sentinels.append(found)
    encoded = iter(tokenizer.encode_batch(pieces))
    rows = []
    for found in sentinels:
        row = list(next(encoded))
        for sentinel in found:
            row += [sentinel, *next(encoded)]
        rows.append(row)
    return rows


def encode_targets(
    texts: Sequence[str], tokenizer: Tokenizer, *, sentinel: bool
) -> list[list[int]]:
    """Return the ids of targets or label words, without an end marker.

    Args:
        texts: The texts.
        tokenizer: Of the model.
        sentinel: Whether `<extra_id_0>` is in front of each. `Tokenizer.decode` leaves it out.

    Raises:
        ValueError: A sentinel is asked for and the tokenizer has none.
    """
    encoded = tokenizer.encode_batch(texts)
    if not sentinel:
        return encoded
    try:
        first = tokenizer.sentinel(0)
    except ValueError as error:
        raise ValueError(
            "data.sentinel_targets is true, but the tokenizer of the model has no '<extra_id_0>' "
            "to put in front of targets; set it to false, or use a T5 that was pretrained by span "
            "corruption"
        ) from error
    return [[first, *ids] for ids in encoded]


def _read_back(
    examples: Sequence[Example], targets: list[list[int]], tokenizer: Tokenizer
) -> list[Example]:
    """Return examples whose targets and answers are what their tokens say.

    A text of which the tokenizer knows no character stays as it is, so that an empty output is not
    right. Where that is the target of many rows, it is an error.
    """
    answers = list({answer for e in examples for answer in e.answers})
    encoded = tokenizer.encode_batch(answers)
    known = {answer: tokenizer.decode(ids) for answer, ids in zip(answers, encoded, strict=True)}
    known = {answer: text for answer, text in known.items() if text.strip()}
    read, lost = [], []
    for example, ids in zip(examples, targets, strict=True):
        text = tokenizer.decode(ids)
        if not text.strip() and example.targets.strip():
            text = example.targets
            lost.append(text)
        of_row = tuple(known[answer] for answer in example.answers if answer in known)
        read.append(dataclasses.replace(example, targets=text, answers=of_row or example.answers))
    if len(lost) > UNWRITABLE * len(examples):
        raise ValueError(
            f"{len(lost):,} of {len(targets):,} targets cannot be written, such as "
            f"'{shorten(lost[0])}': the tokenizer of the model knows no character of them; use a "
            "model that was trained on such text, such as mT5 or ByT5"
        )
    return read


def data_fingerprint(splits: dict[str, TokenizedSplit], inputs_length: int = sys.maxsize) -> str:
    """Return sha256, in hex, over all token ids of all splits, with the bounds of rows and splits.

    Args:
        splits: By name.
        inputs_length: What inputs are cut to first, so that the longest input of an evaluation,
            which may change when a run is resumed, makes no other data of it.
    """
    digest = hashlib.sha256()
    for name in sorted(splits):
        inputs = [
            row if len(row) <= inputs_length else np.append(row[: inputs_length - 1], row[-1])
            for row in splits[name].inputs
        ]
        for kind, rows in (("inputs", inputs), ("targets", splits[name].targets)):
            lengths = np.array([len(row) for row in rows], "<i4")
            digest.update(f"{name} {kind} {len(rows)}\n".encode() + lengths.tobytes())
            digest.update(b"".join(row.astype("<i4").tobytes() for row in rows))
    return digest.hexdigest()


def split_fingerprint(split: TokenizedSplit) -> str:
    """Return the `data_fingerprint` of one split alone."""
    return data_fingerprint({"": split})


def train_batches(
    split: TokenizedSplit, data: DataConfig, *, seed: int, targets_width: int
) -> "grain.MapDataset[NumpyBatch]":
    """An endless dataset in which `ds[n]` is the batch of step n, a function of (seed, n) alone.

    Every epoch is a new permutation and has every row once; batches run across epochs, so a batch
    may be larger than the split. With `group_by_length` the batches of a window have rows of
    similar length, and a window lies in one epoch, so that no row is in it twice.

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

    size, epoch = data.batch_size, len(split.inputs)

    def draw(start: int, stop: int) -> list[tuple[np.ndarray, np.ndarray]]:
        """The rows of the batches start to stop - 1, as they are drawn."""
        return [row for n in range(start * size, stop * size) if (row := rows[n]) is not None]

    @functools.lru_cache(maxsize=2)
    def window(start: int, stop: int) -> list:
        """The batches start to stop - 1, which lie in one epoch, of rows of similar length."""
        drawn = sorted(draw(start, stop), key=lambda row: len(row[0]))
        order = np.random.default_rng((int.from_bytes(digest[4:8], "big"), start // WINDOW))
        starts = order.permutation(stop - start) * size
        return [drawn[start : start + size] for start in starts]

    def batch(step: int) -> NumpyBatch:
        first = -(-(step * size // epoch * epoch) // size)  # that lies in the epoch of this step
        end = (step * size // epoch + 1) * epoch // size  # the first that does not
        if step >= end:  # it has rows of two epochs or more
            return pad(draw(step, step + 1))
        start = first + (step - first) // WINDOW * WINDOW
        return pad(window(start, min(start + WINDOW, end))[step - start])

    return grain.MapDataset.range(sys.maxsize).map(batch)


def prefetch(ds: "grain.MapDataset[NumpyBatch]", start: int, stop: int) -> Iterator[NumpyBatch]:
    """The batches of steps start to stop - 1, prepared ahead by a thread."""
    options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=AHEAD)
    return iter(ds[start:stop].to_iter_dataset(options))


def stack_batches(batches: Sequence[NumpyBatch]) -> NumpyBatch:
    """Return batches of as many rows each as one of arrays [K, B, width], padded to the widest."""
    stacked = {}
    for name in batches[0]:
        arrays = [batch[name] for batch in batches]
        width = max(array.shape[1] for array in arrays)
        stacked[name] = np.stack(
            [np.pad(array, ((0, 0), (0, width - array.shape[1]))) for array in arrays]
        )
    return stacked


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
    beyond = -(-longest // WIDTH_STEP) * WIDTH_STEP
    inputs_width = next((bucket for bucket in buckets if bucket >= longest), beyond)
    batch_size = batch_size or len(rows)
    batch = {
        "inputs": np.zeros((batch_size, inputs_width), np.int32),
        "targets": np.zeros((batch_size, targets_width), np.int32),
    }
    for number, (inputs, targets) in enumerate(rows):
        batch["inputs"][number, : len(inputs)] = inputs
        batch["targets"][number, : len(targets)] = targets
    return batch
