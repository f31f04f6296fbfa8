"""Where the rows of a task of the paper come from: TensorFlow Datasets, the Hub, or a folder.

All three give the same records; a `Source` says what a dataset is called there and what differs.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from spt_jax.data.files import SUFFIXES, read_records
from spt_jax.data.papers.hub import hub_records
from spt_jax.data.papers.label_lines import LabelLines, read_label_lines
from spt_jax.data.papers.tfds import tfds_records
from spt_jax.data.records import Record

# What people call the files of a split.
_FILE_NAMES = {
    "train": ("train",),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test",),
}


class Hub(NamedTuple):
    """A dataset of the Hub.

    Args:
        path: Such as `nyu-mll/glue`.
        config: Its configuration, if it has several.
        where: Column -> the value that rows of the task have there.
    """

    path: str
    config: str | None = None
    where: Mapping[str, str] = {}


@dataclass(frozen=True)
class Source:
    """One dataset, wherever it is read from.

    Args:
        tfds: Its name in TensorFlow Datasets with its config, such as `glue/sst2`.
        hub: The same on the Hub.
        lines: Its files as the authors left them, where those are no tables.
        columns: Origin ("tfds", "hub") -> {name there: the name that the format asks for}.
        labels: Origin -> the label words in the order that labels are numbered in there, where
            that is not the order of the task.
    """

    tfds: str | None = None
    hub: Hub | None = None
    lines: LabelLines | None = None
    columns: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    labels: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def read_split(source: Source, split: str, origin: str, task: str) -> list[Record]:
    """The rows of one split.

    Args:
        source: The dataset.
        split: As the dataset calls it.
        origin: `tfds`, `hub`, or a folder with a file for each split.
        task: Its name, for messages.

    Raises:
        FileNotFoundError: The folder has no file for the split.
        ValueError: The dataset is not there, or not as expected.
    """
    kinds: dict[str, Callable[[], list[Record]]] = {}
    if source.tfds is not None:
        kinds["tfds"] = lambda: tfds_records(source.tfds or "", split, task)
    if source.hub is not None:
        kinds["hub"] = lambda: hub_records(*(source.hub or Hub("")), split, task)
    if origin not in ("tfds", "hub"):
        return _folder_records(source, split, Path(origin), task)
    if origin not in kinds:
        raise ValueError(
            f"task '{task}' is not in {'tensorflow-datasets' if origin == 'tfds' else 'the Hub'} "
            f"as it is needed; set task.origin to {' or '.join(kinds)} or to a folder of its files"
        )
    renamed, labels = source.columns.get(origin, {}), source.labels.get(origin)
    return [_adapt(record, renamed, labels) for record in kinds[origin]()]


def _adapt(record: Record, renamed: Mapping[str, str], labels: tuple[str, ...] | None) -> Record:
    values = {renamed.get(name, name): value for name, value in record.values.items()}
    record = Record(values, record.place)
    if labels is not None and (index := record.label("label", labels)) >= 0:
        values["label"] = labels[index]
    return record


def _folder_records(source: Source, split: str, folder: Path, task: str) -> list[Record]:
    if not folder.is_dir():
        raise FileNotFoundError(
            f"task.origin '{folder}' of task '{task}' is no folder; expected 'tfds', 'hub', or a "
            "folder with a file for each split, such as train.jsonl and validation.jsonl"
        )
    lines = source.lines
    as_left = lines.files.get(split) if lines is not None else None
    names = [f"{name}{suffix}" for name in _FILE_NAMES.get(split, (split,)) for suffix in SUFFIXES]
    if as_left is not None and as_left not in names:
        names.append(as_left)
    found = [name for name in names if (folder / name).is_file()]
    if not found:
        expected = [f"{split}{suffix}" for suffix in SUFFIXES]
        if as_left is not None and as_left not in expected:
            expected.append(as_left)
        raise FileNotFoundError(
            f"folder '{folder}' has no rows for the split '{split}' of task '{task}'; "
            f"expected {' or '.join(expected)}"
        )
    if len(found) > 1:
        raise ValueError(
            f"folder '{folder}' has {' and '.join(found)} for the split '{split}' of task "
            f"'{task}', expected one of them"
        )
    if lines is not None and found[0] == as_left:
        return read_label_lines(folder / found[0], lines)
    return read_records(folder / found[0])
