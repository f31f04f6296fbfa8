"""Tasks: pairs of text, split into train, dev and test, and the words that may be answered.

A task is built in (`builtin/`), of a paper (`papers/`) or a user's file: a template makes the input
text of a row, a field its target. Where rows have to be split here, the split is a function of the
row's input text alone, or of its group: a row that occurs twice never stands in both train and
test, and adding rows to a file moves no other row.
"""

import dataclasses
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from spt_jax.config.train import DataConfig, TaskConfig
from spt_jax.data.builtin.tasks import BUILT_IN
from spt_jax.data.example import (
    SPLITS,
    Example,
    Task,
    describe,
    hashed,
    sample_rows,
    split_by_hash,
)
from spt_jax.data.files import Reading, read_table
from spt_jax.data.papers.splits import (
    load_paper_task,
    load_paper_test,
    paper_task_names,
    trainable,
)
from spt_jax.data.records import Record
from spt_jax.data.template import Template, parse_template
from spt_jax.data.text import NOT_A_NUMBER
from spt_jax.errors import shorten, suggest

MAX_INFERRED = 50  # label words that are inferred without asking, if they are many of the rows
FEW = 10  # different values that are label words even where they are most of the rows


OF_PAPERS = ("origin", "prefix", "dev_from_train")
"""Options of the tasks of the papers alone."""


class _Located(NamedTuple):
    example: Example
    place: str  # path:line


def task_names() -> list[str]:
    """Names of the built-in tasks, whose rows come with the installation."""
    return list(BUILT_IN)


def load_task(config: TaskConfig) -> Task:
    """Reads the task that a config describes.

    Raises:
        FileNotFoundError: A file of rows does not exist.
        ValueError: The task is unknown, or a file, the template or a label is not as expected; the
            message names path:line where one line is at fault.
    """
    task = _load_mixture(config, config.mixture) if config.mixture else _load_one(config)
    train, most = task.splits["train"], config.max_train_rows
    if most is None or most >= len(train):
        return task
    splits = {**task.splits, "train": [train[i] for i in sample_rows(train, most)]}
    note = f"train has {most:,} of these {len(train):,} rows, a fixed random sample"
    return dataclasses.replace(task, splits=splits, notes=(*task.notes, note))


def _load_mixture(config: TaskConfig, names: Sequence[str]) -> Task:
    """Return several tasks as one, whose answers are free text (Vu et al. 2022, "SPoT")."""
    splits: dict[str, list[Example]] = {name: [] for name in SPLITS}
    words: list[str] = []
    notes = []
    for name in names:
        options: dict = dict(name=name, mixture=None, max_train_rows=None)
        if name not in paper_task_names():  # they have no use for these
            options |= {o: getattr(TaskConfig, o) for o in OF_PAPERS}
        task = _load_one(dataclasses.replace(config, **options))
        kept = sample_rows(task.splits["train"], config.mixture_cap)
        splits["train"] += [task.splits["train"][i] for i in kept]
        for split in ("dev", "test"):
            splits[split] += task.splits[split]
        words += task.label_words or task.prompt_words
        notes.append(
            f"{name}: {len(kept):,} of {len(task.splits['train']):,} train rows, "
            f"{len(task.splits['dev']):,} dev, {len(task.splits['test']):,} test"
        )
    total = len(splits["train"])
    notes.append(f"mixture of {len(names)} tasks: {total:,} train rows, answers are free text")
    return Task(
        str(config.name), splits, None, tuple(notes), prompt_words=tuple(dict.fromkeys(words))
    )


def _load_one(config: TaskConfig) -> Task:
    _check_options(config)
    if config.source is not None:
        return _load_files(config, config.source)
    if config.name in paper_task_names():
        return load_paper_task(
            config.name,
            origin=config.origin,
            prefix=config.prefix,
            dev_from_train=config.dev_from_train,
            reading=Reading(config.encoding, config.quoting),
        )
    if config.name not in BUILT_IN:
        names = [*BUILT_IN, *paper_task_names()]
        raise ValueError(
            f"unknown task '{config.name}'; built-in tasks: {', '.join(BUILT_IN)}; tasks of the "
            f"papers: {', '.join(paper_task_names())}{suggest(str(config.name), names)}; or set "
            "task.source to a file of rows"
        )
    make, label_words = BUILT_IN[config.name]
    rows = make()
    splits = {name: [Example(row.text, row.label) for row in rows[name]] for name in SPLITS}
    label_words = None if config.free_text else label_words
    notes = describe(splits, label_words)
    return Task(config.name, splits, label_words, notes, _metrics(config))


def _check_options(config: TaskConfig) -> None:
    """Raises ValueError for options that the kind of task has no use for."""
    of_papers = config.source is None and config.name in paper_task_names()
    for option, what in (("free_text", "answers"), ("metrics", "metrics")):
        if of_papers and getattr(config, option):
            raise ValueError(
                f"task.{option} is set, but the {what} of task '{config.name}' are those of the "
                "paper; leave it out"
            )
    for option in OF_PAPERS:
        if not of_papers and getattr(config, option) != getattr(TaskConfig, option):
            raise ValueError(
                f"task.{option} is set, but it is of the tasks of the papers: "
                f"{', '.join(paper_task_names())}; leave it out"
            )


def load_test(config: TaskConfig) -> Task:
    """The task with its test rows alone, also where it has no others; raises as `load_task`."""
    if config.mixture is None:
        _check_options(config)
    if config.source is config.mixture is None and config.name in paper_task_names():
        return load_paper_test(
            config.name,
            origin=config.origin,
            prefix=config.prefix,
            reading=Reading(config.encoding, config.quoting),
        )
    task = load_task(config)
    return dataclasses.replace(task, splits={"test": task.splits["test"]}, notes=())


def load_any(config: TaskConfig) -> Task:
    """The task with all splits that it has: a task that is only tested on has test alone."""
    own = config.source is not None or config.mixture is not None
    only_test = not own and not trainable(config.name or "")
    return load_test(config) if only_test else load_task(config)


def longest_input(task: TaskConfig, data: DataConfig, split: str, limit: int | None) -> int:
    """Return the most tokens that an input of a split is given, with its end marker.

    Args:
        task: The task. Those of the papers have no limit but in training.
        data: The lengths of training.
        split: `train`, `dev` or `test`.
        limit: `eval.inputs_length`.
    """
    if split == "train":
        return data.inputs_length
    if limit is not None:
        return limit
    of_papers = task.source is None and task.name in paper_task_names()
    return sys.maxsize if of_papers else data.inputs_length


def _load_files(config: TaskConfig, source: str) -> Task:
    template = parse_template(config.template or "")
    notes, rows = [], {}
    for name, path in zip(SPLITS, (source, config.dev_source, config.test_source), strict=True):
        if path is not None:
            table = read_table(path, Reading(config.encoding, config.quoting))
            rows[name], found = _locate_rows(config, path, table.records, template)
            notes += [*table.notes, *found]
    notes += _sentinel_notes(template, rows)
    label_words = None
    if not config.free_text:
        if config.label_words is None:
            mapping, origin = _infer(source, rows["train"]), f"inferred from {source}"
            notes.append(f"label words, {origin}: {_shown(mapping)}")
        else:
            mapping, origin = _given(config.label_words), "given as task.label_words"
        rows = {name: [_to_word(row, mapping, origin) for row in rows[name]] for name in rows}
        label_words = tuple(dict.fromkeys(mapping.values()))
    splits = {name: [row.example for row in rows[name]] for name in rows}
    missing = [name for name in SPLITS if name not in splits]
    if missing:
        splits |= split_by_hash(splits["train"], missing)
        options = " and ".join(f"task.{name}_source" for name in missing)
        notes.append(
            f"{' and '.join(missing)} taken from {source} by a hash of "
            f"{hashed(splits['train'])}; set {options} to use files"
        )
        for name in SPLITS:
            if not splits[name]:
                raise ValueError(
                    f"file '{source}' has {len(rows['train'])} rows and none falls into {name}; "
                    f"give more rows, or set {options}"
                )
    splits = {name: splits[name] for name in SPLITS}
    name = config.name or Path(source).stem
    notes += describe(splits, label_words)
    return Task(name, splits, label_words, tuple(notes), _metrics(config))


def _metrics(config: TaskConfig) -> tuple[str, ...]:
    return tuple(config.metrics or ("accuracy",))


def _locate_rows(
    config: TaskConfig, path: str, records: Sequence[Record], template: Template
) -> tuple[list[_Located], list[str]]:
    """Return the examples of the rows of one file, and what is to be said of missing texts."""
    located, lacking, fields = [], [], {}
    for record in records:
        filled = template.fill(record)
        target = _required(record, config.label or "", "task.label")
        if filled.missing:
            lacking.append(record.place)
            fields |= dict.fromkeys(filled.missing)
            if config.missing == "skip":
                continue
        group = "" if config.group is None else _required(record, config.group, "task.group")
        example = Example(
            filled.text, target, group=group, shared=group, sentinels=filled.sentinels
        )
        located.append(_Located(example, record.place))
    if not lacking:
        return located, []
    what = (
        f"{len(lacking):,} of {len(records):,} rows of {path} have nothing (empty, null or NaN) in "
        f"{_shown(fields)} of task.template, the first at {lacking[0]}"
    )
    if config.missing == "error":
        raise ValueError(
            f"{what}; set task.missing=skip to leave these rows out, or task.missing=empty to "
            "read nothing as an empty text"
        )
    if not located:
        raise ValueError(f"{what}; leaving them out leaves no row")
    return located, [f"{what}; they are {'left out' if config.missing == 'skip' else 'kept'}"]


def _required(record: Record, field: str, option: str) -> str:
    value = record.written(field, option)
    if value is None:
        raise ValueError(
            f"{record.place}: field '{field}' of {option} is empty, null or NaN; expected a text"
        )
    return " ".join(value.split())


def _sentinel_notes(template: Template, rows: dict[str, list[_Located]]) -> list[str]:
    notes = []
    if template.sentinels:
        notes.append(f"{_shown(template.sentinels)} of task.template: sentinels of the model")
    examples = [row.example for part in rows.values() for row in part]
    own = sum(
        e.inputs.count("<extra_id_") > len(e.sentinels) or "<extra_id_" in e.targets
        for e in examples
    )
    if own:
        notes.append(f"{own:,} rows have '<extra_id_' in their own text: text, and no sentinel")
    return notes


def _shown(names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - 20} more" if len(names) > 20 else ""
    return ", ".join(shorten(name, 30) for name in names[:20]) + more


def _infer(source: str, train: Sequence[_Located]) -> dict[str, str]:
    """Return {value in the file: word}, the same here."""
    for located in train:
        if located.example.targets in NOT_A_NUMBER:
            raise ValueError(
                f"{located.place}: label '{located.example.targets}' is how a missing number is "
                "written; give the row a label, or list it in task.label_words if it is one"
            )
    values = sorted({row.example.targets for row in train})
    many = len(values) > FEW and len(values) > len(train) / 2
    if many or (len(values) > MAX_INFERRED and len(values) > len(train) / 10):
        raise ValueError(
            f"the labels of {source} have {len(values):,} different values in {len(train):,} "
            f"rows ({_shown(values[:3])}, ...), too many for label words; set "
            "task.free_text=true, or list them in task.label_words"
        )
    return {value: value for value in values}


def _given(label_words: dict[str, str] | list[str]) -> dict[str, str]:
    """{value in the file: word} from either form of the option."""
    if isinstance(label_words, dict):
        pairs = list(label_words.items())
    else:
        pairs = [(word, word) for word in label_words]
    pairs = [(" ".join(str(value).split()), " ".join(str(word).split())) for value, word in pairs]
    mapping = dict(pairs)
    if not mapping or len(mapping) < len(pairs) or not all(mapping.values()):
        raise ValueError(
            f"task.label_words is {label_words!r}, expected one or more different words, none empty"
        )
    return mapping


def _to_word(located: _Located, mapping: dict[str, str], origin: str) -> _Located:
    example, place = located
    if example.targets not in mapping:
        raise ValueError(
            f"{place}: label '{shorten(example.targets)}' is not among those {origin}: "
            f"{_shown(mapping)}"
            f"{suggest(example.targets, list(mapping))}"
        )
    return _Located(dataclasses.replace(example, targets=mapping[example.targets]), place)
