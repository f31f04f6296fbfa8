"""Tasks: pairs of text, split into train, dev and test, and the words that may be answered.

A task is built in (`library.py`, `argument_tasks.py`), of a paper (`paper_tasks.py`) or a user's
file: a template makes the input text of a row, a field its target. Where rows have to be split
here, the split is a function of the row's input text alone: a row that occurs twice never stands in
both train and test, and adding rows to a file moves no other row.
"""

import dataclasses
import string
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from spt_jax.config.train import TaskConfig
from spt_jax.data.builtin.argument_tasks import ANSWERS, argument_rows
from spt_jax.data.builtin.arguments import KINDS
from spt_jax.data.builtin.cache import LabeledText
from spt_jax.data.builtin.library import LIBRARIES, library_rows
from spt_jax.data.example import SPLITS, Example, Task, describe, split_by_hash
from spt_jax.data.files import Row, read_rows
from spt_jax.data.papers.splits import (
    load_paper_task,
    load_paper_test,
    paper_task_names,
    trainable,
)
from spt_jax.errors import shorten, suggest

# Name -> (rows by split, label words; None where targets are free text).
BUILT_IN: dict[str, tuple[Callable[[], dict[str, list[LabeledText]]], tuple[str, ...] | None]] = {
    "library": (library_rows, tuple(LIBRARIES)),
    "type": (partial(argument_rows, "type"), tuple(KINDS)),
    "describes": (partial(argument_rows, "describes"), ANSWERS),
    "argument": (partial(argument_rows, "argument"), None),
}
MAX_INFERRED = 50  # label words that are inferred without asking, if they are many of the rows


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
    _check_options(config)
    if config.source is not None:
        return _load_files(config, config.source, config.template or "", config.label or "")
    if config.name in paper_task_names():
        return load_paper_task(
            config.name,
            origin=config.origin,
            prefix=config.prefix,
            dev_from_train=config.dev_from_train,
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
    return Task(config.name, splits, label_words, describe(splits, label_words))


def _check_options(config: TaskConfig) -> None:
    """Raises ValueError for options that the kind of task has no use for."""
    of_papers = config.source is None and config.name in paper_task_names()
    if of_papers and config.free_text:
        raise ValueError(
            f"task.free_text is set, but the answers of task '{config.name}' are those of the "
            "paper; leave it out"
        )
    for option in ("origin", "prefix", "dev_from_train"):
        if not of_papers and getattr(config, option) != getattr(TaskConfig, option):
            raise ValueError(
                f"task.{option} is set, but it is of the tasks of the papers: "
                f"{', '.join(paper_task_names())}; leave it out"
            )


def load_test(config: TaskConfig) -> Task:
    """The task with its test rows alone, also where it has no others; raises as `load_task`."""
    _check_options(config)
    if config.source is None and config.name in paper_task_names():
        return load_paper_test(config.name, origin=config.origin, prefix=config.prefix)
    task = load_task(config)
    return dataclasses.replace(task, splits={"test": task.splits["test"]}, notes=())


def load_any(config: TaskConfig) -> Task:
    """The task with all splits that it has: a task that is only tested on has test alone."""
    only_test = config.source is None and not trainable(config.name or "")
    return load_test(config) if only_test else load_task(config)


def _load_files(config: TaskConfig, source: str, template: str, label: str) -> Task:
    fields = parse_template(template)
    paths = {"train": source, "dev": config.dev_source, "test": config.test_source}
    rows = {
        name: [_locate(path, row, fields, label) for row in read_rows(path)]
        for name, path in paths.items()
        if path is not None
    }
    notes = []
    label_words = None
    if not config.free_text:
        if config.label_words is None:
            mapping, origin = _infer(source, label, rows["train"]), f"inferred from {source}"
            notes.append(f"label words, {origin}: {', '.join(mapping)}")
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
            f"{' and '.join(missing)} taken from {source} by a hash of the input text; "
            f"set {options} to use files"
        )
        for name in SPLITS:
            if not splits[name]:
                raise ValueError(
                    f"file '{source}' has {len(rows['train'])} rows and none falls into {name}; "
                    f"give more rows, or set {options}"
                )
    splits = {name: splits[name] for name in SPLITS}
    name = config.name or Path(source).stem
    return Task(name, splits, label_words, (*notes, *describe(splits, label_words)))


def parse_template(template: str) -> list[tuple[str, str | None]]:
    """Return a template as (text, field to put after it or None) pairs.

    Raises:
        ValueError: It is broken, or has no field.
    """
    try:
        parsed = list(string.Formatter().parse(template))
    except ValueError as error:
        raise ValueError(
            f"task.template {template!r} is broken ({error}); expected fields in braces, such as "
            "'{sentence}', and '{{' for a brace"
        ) from None
    for _, field, form, conversion in parsed:
        if field is not None and (not field or form or conversion):
            raise ValueError(
                f"task.template {template!r} has a field without a name or with a format; "
                "expected the name of a field alone in braces, such as '{sentence}'"
            )
    if all(field is None for _, field, _, _ in parsed):
        raise ValueError(
            f"task.template {template!r} has no field, so every input would be the same; "
            "expected fields in braces, such as '{sentence}'"
        )
    return [(text, field) for text, field, _, _ in parsed]


def fill_template(template: list[tuple[str, str | None]], values: Mapping[str, str]) -> str:
    """Return the input text of a row from the values of its fields."""
    values = {field: value.strip() for field, value in values.items()}
    return "".join(text + values.get(field or "", "") for text, field in template).strip()


def _locate(path: str, row: Row, template: list[tuple[str, str | None]], label: str) -> _Located:
    place = f"{path}:{row.line}"

    def value(field: str, option: str) -> str:
        if field not in row.fields:
            known = list(row.fields)
            shown = ", ".join(shorten(name, 30) for name in known[:20]) or "none"
            raise ValueError(
                f"{place}: the row has no field '{field}' of {option}; its fields: {shown}"
                f"{suggest(field, known)}"
            )
        return row.fields[field].strip()

    values = {field: value(field, "task.template") for _, field in template if field is not None}
    target = " ".join(value(label, "task.label").split())
    if not target:
        raise ValueError(f"{place}: field '{label}' of task.label is empty; expected a target text")
    return _Located(Example(fill_template(template, values), target), place)


def _infer(source: str, label: str, train: Sequence[_Located]) -> dict[str, str]:
    """{value in the file: word}, the same here."""
    values = sorted({row.example.targets for row in train})
    if len(values) > MAX_INFERRED and len(values) > len(train) / 10:
        raise ValueError(
            f"field '{label}' of {source} has {len(values):,} different values in {len(train):,} "
            "rows, too many for label words; set task.free_text=true, or list them in "
            "task.label_words"
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
        shown = ", ".join(shorten(value, 30) for value in list(mapping)[:20])
        raise ValueError(
            f"{place}: label '{shorten(example.targets)}' is not among those {origin}: {shown}"
            f"{suggest(example.targets, list(mapping))}"
        )
    return _Located(Example(example.inputs, mapping[example.targets]), place)
