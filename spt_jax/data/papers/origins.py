"""Where the rows of a task of the paper come from: TensorFlow Datasets, the Hub, or a folder.

All three give the same records; a `Source` says what a dataset is called there and what differs. A
folder has the files of a dataset, or folders with those of several as archives unpack: BoolQ, CB.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from spt_jax.data.files import SUFFIXES, Reading, read_file
from spt_jax.data.papers.hub import hub_records
from spt_jax.data.papers.label_lines import LabelLines, read_label_lines
from spt_jax.data.papers.releases import Release
from spt_jax.data.papers.tfds import tfds_records
from spt_jax.data.places import File, Folder, open_folder
from spt_jax.data.records import Record

# What people call the files of a split.
_FILE_NAMES = {
    "train": ("train",),
    "validation": ("validation", "valid", "val", "dev"),
    "validation_matched": ("validation_matched", "dev_matched"),
    "validation_mismatched": ("validation_mismatched", "dev_mismatched"),
    "test": ("test",),
}
_SHARD = re.compile(r"-\d+-of-\d+$")


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
        lines: Its files as the authors left them, where those are no tables; the first kind that
            a folder has counts.
        release: How its tables and objects are laid out by their authors.
        folder: What archives call its folder, where that is not the name of the task.
        columns: Origin ("tfds", "hub") -> {name there: the name that the format asks for}.
        labels: Origin -> the label words in the order that labels are numbered in there, where
            that is not the order of the task.
    """

    tfds: str | None = None
    hub: Hub | None = None
    lines: tuple[LabelLines, ...] = ()
    release: Release = Release()
    folder: str | None = None
    columns: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    labels: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


class Found(NamedTuple):
    """The rows of a split.

    Args:
        records: The rows.
        note: Which files they were read from; None where they were in no folder.
    """

    records: list[Record]
    note: str | None = None


def read_split(source: Source, split: str, origin: str, task: str, reading: Reading) -> Found:
    """Read the rows of one split.

    Args:
        source: The dataset.
        split: As the dataset calls it.
        origin: `tfds`, `hub`, or a folder or an address with a file for each split.
        task: Its name, for messages and to find its folder.
        reading: How files of text are read.

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
        return _folder_records(source, split, origin, task, reading)
    if origin not in kinds:
        raise ValueError(
            f"task '{task}' is not in {'tensorflow-datasets' if origin == 'tfds' else 'the Hub'} "
            f"as it is needed; set task.origin to {' or '.join(kinds)} or to a folder of its files"
        )
    renamed, labels = source.columns.get(origin, {}), source.labels.get(origin)
    return Found([_adapt(record, renamed, labels) for record in kinds[origin]()])


def _adapt(record: Record, renamed: Mapping[str, str], labels: tuple[str, ...] | None) -> Record:
    values = {renamed.get(name, name): value for name, value in record.values.items()}
    record = Record(values, record.place)
    if labels is not None and (index := record.label("label", labels)) >= 0:
        values["label"] = labels[index]
    return record


def _folder_records(source: Source, split: str, origin: str, task: str, reading: Reading) -> Found:
    folder = open_folder(origin)
    if folder is None:
        raise FileNotFoundError(
            f"task.origin '{origin}' of task '{task}' is no folder; expected 'tfds', 'hub', or a "
            "folder with a file for each split, such as train.jsonl and validation.jsonl"
        )
    release, names = source.release, _inside(folder, source.folder or task.rpartition("/")[2])
    ids = next((names[name] for name in release.dev_ids if name in names), None)
    theirs = release.files.get(split if ids is None else "train", ())
    known = _FILE_NAMES.get(split, (split,))
    own = {name: file for name, file in names.items() if _split_of(file) in known}
    own = dict(sorted(own.items(), key=lambda item: known.index(_split_of(item[1]))))
    released = not own  # a file that has the name of its split comes before one that has not
    own = own or {name: names[name] for name in theirs if name in names}
    lines = [part for part in source.lines if {*part.files.get(split, ())} & names.keys()]
    left = [names[name] for part in lines for name in part.files[split] if name in names]
    found = [*(file for name, file in own.items() if file not in left), *left]
    if not found:
        of_lines = [name for part in source.lines for name in part.files.get(split, ())]
        expected = [f"{split}{suffix}" for suffix in SUFFIXES]
        expected += [name for name in (*theirs, *of_lines) if name not in expected]
        raise FileNotFoundError(
            f"folder '{origin}' has no rows for the split '{split}' of task '{task}'; "
            f"expected {' or '.join(expected)}, maybe compressed"
        )
    shards = all(_SHARD.search(_base(file)) for file in found)
    if len(lines) > 1 or (len(found) > 1 and found != left and not shards):
        shown = " and ".join(file.place.removeprefix(f"{folder.place}/") for file in found)
        raise ValueError(
            f"folder '{origin}' has {shown} for the split '{split}' of task "
            f"'{task}', expected one of them"
        )
    if found == left:
        if lacking := [name for name in lines[0].files[split] if name not in names]:
            raise FileNotFoundError(
                f"folder '{origin}' has {', '.join(file.place for file in left)} but not "
                f"{', '.join(lacking)}; task '{task}' needs both"
            )
        records = [record for file in left for record in read_label_lines(file, lines[0])]
        return Found(records, _say(split, found, records))
    records, told = [], []
    for file in found:
        kind = None if file.suffix in SUFFIXES else ".tsv"
        rows, note = read_file(
            file, reading, kind=kind, columns=release.columns, ragged=release.ragged
        )
        told += [note] if note else []
        if released and ids is not None:
            pairs = {tuple(line.split("\t")[:2]) for line in ids.read().decode().splitlines()}
            of_dev = [(r.values.get("#1 ID"), r.values.get("#2 ID")) in pairs for r in rows]
            rows = [r for r, dev in zip(rows, of_dev) if dev == (split == "validation")]
        records += [row for record in rows for row in release.rows(record)]
    if released and release.dev_ids and ids is None and split == "validation":
        told.append(f"not GLUE's validation set, which takes {release.dev_ids[0]} beside it")
    whole = [r for r in records if None not in r.values.values()] if release.ragged else records
    lost = len(records) - len(whole)
    told += [f"{lost:,} rows that lack columns are left out"] if lost else []
    return Found(whole, "; ".join([_say(split, found, whole), *told]))


def _inside(folder: Folder, task: str) -> dict[str, File]:
    """Return the files of a dataset by name: those in the folder of its name, or else all."""
    below = {name.partition("/")[0] for name in folder.names if "/" in name}
    own = [inner for inner in below if _plain(inner) == _plain(task)]
    start = f"{sorted(own)[0]}/" if own else ""
    names = [name.removeprefix(start) for name in folder.names if name.startswith(start)]
    return {name: folder.open(start + name) for name in names if "/" not in name}


def _plain(name: str) -> str:
    """Return a name without what archives write differently: SST-2 is sst2."""
    return re.sub("[^a-z0-9]", "", name.lower())


def _base(file: File) -> str:
    """Return the name of a file without its suffixes; empty where it is no file of rows."""
    name = file.place.rpartition("/")[2]
    return name[: name.lower().rfind(file.suffix)] if file.suffix in SUFFIXES else ""


def _split_of(file: File) -> str:
    """Return the split that a file is named after, without the number of a shard."""
    return _SHARD.sub("", _base(file))


def _say(split: str, files: Sequence[File], records: Sequence[Record]) -> str:
    places = ", ".join(file.place for file in files[:3]) + (", ..." if len(files) > 3 else "")
    return f"{split}: {len(records):,} rows in {places}"
