"""From the table of the papers' tasks to a task with its splits."""

import dataclasses
from collections.abc import Mapping

from spt_jax.data.example import (
    HIDDEN,
    SPLITS,
    Example,
    Task,
    describe,
    hashed,
    split_by_hash,
)
from spt_jax.data.files import Reading
from spt_jax.data.papers.formats import remove_prefix
from spt_jax.data.papers.origins import read_split
from spt_jax.data.papers.tasks import PAPER_TASKS, TRANSFERS, PaperTask


def paper_task_names() -> list[str]:
    """Names of the tasks of the papers, those from one task to another last."""
    return [*PAPER_TASKS, *TRANSFERS]


def trainable(name: str) -> bool:
    """False for a task of the papers that has only rows to test on."""
    return name not in PAPER_TASKS or "train" in PAPER_TASKS[name].splits


def tfds_names(name: str) -> list[str]:
    """What a task's datasets are called in TensorFlow Datasets; none where it has not got them."""
    transfer = TRANSFERS.get(name)
    tasks = [name] if transfer is None else [transfer.source, transfer.target]
    found = (PAPER_TASKS[task].source.tfds for task in tasks)
    return [tfds for tfds in found if tfds is not None]


def load_paper_task(
    name: str,
    *,
    origin: str,
    prefix: bool,
    dev_from_train: bool,
    reading: Reading = Reading(),  # noqa: B008  it is immutable
) -> Task:
    """Reads a task of `paper_task_names`.

    Args:
        name: Of the task.
        origin: `tfds`, `hub`, or a folder (for a transfer, one with a folder for each task).
        reading: How files of text in a folder are read.
        prefix: Keep the task's name at the start of its inputs.
        dev_from_train: Take dev from train by a hash, where it would be the validation set.

    Raises:
        FileNotFoundError: A file of the folder is not there.
        ValueError: The dataset or a row of it is not as expected, or its labels are hidden.
    """
    transfer = TRANSFERS.get(name)
    source = name if transfer is None else transfer.source
    paper = PAPER_TASKS[source]
    if not trainable(source):
        raise ValueError(
            f"task '{name}' has only rows to test on; train on another task, and then: "
            f"spt-jax evaluate RUN --task={name}"
        )
    left_out = {"dev" if dev_from_train else "", "test" if transfer is not None else ""}
    wanted = {ours: theirs for ours, theirs in paper.splits.items() if ours not in left_out}
    splits, notes = _read(source, paper, wanted, origin, prefix, reading)
    if transfer is not None:
        test = load_paper_test(name, origin=origin, prefix=prefix, reading=reading)
        splits["test"] = test.splits["test"]
        notes += test.notes
    missing = [split for split in SPLITS if split not in splits]
    if missing:
        splits |= split_by_hash(splits["train"], missing)
        what = hashed(splits["train"])
        notes.append(f"{' and '.join(missing)} taken from train by a hash of {what}")
    elif splits["dev"] is splits["test"]:
        notes.append(
            f"dev and test are both the dataset's '{paper.splits['dev']}' split, as in the paper; "
            "task.dev_from_train=true chooses the best step on rows of train instead"
        )
    splits = {split: splits[split] for split in SPLITS}
    _require_rows(name, splits)
    notes += describe(splits, paper.words)
    return Task(name, splits, paper.words, tuple(notes), paper.metrics, paper.prompt_words)


def load_paper_test(
    name: str,
    *,
    origin: str,
    prefix: bool,
    reading: Reading = Reading(),  # noqa: B008  it is immutable
) -> Task:
    """A task with its test rows alone; those of a transfer have the label words of its source.

    Raises:
        FileNotFoundError: As `load_paper_task`.
        ValueError: As `load_paper_task`.
    """
    transfer = TRANSFERS.get(name)
    target = name if transfer is None else transfer.target
    paper = PAPER_TASKS[target]
    if "test" not in paper.splits:
        raise ValueError(
            f"task '{name}' has no test set of its own: its test rows are taken from its train set "
            "and may have been trained on; expected another task"
        )
    wanted = {"test": paper.splits["test"]}
    splits, notes = _read(target, paper, wanted, origin, prefix, reading)
    test = splits["test"]
    words = paper.words
    if transfer is not None and transfer.words:
        words = PAPER_TASKS[transfer.source].words
        test = [dataclasses.replace(e, targets=transfer.words[e.targets]) for e in test]
    _require_rows(name, {"test": test})
    return Task(name, {"test": test}, words, tuple(notes), paper.metrics)


def _read(
    name: str,
    paper: PaperTask,
    wanted: Mapping[str, str],
    origin: str,
    prefix: bool,
    reading: Reading,
) -> tuple[dict[str, list[Example]], list[str]]:
    """Read examples by split, and what is to be said of their files.

    Where two splits are the same split of the dataset, they are the same list.
    """
    by_theirs: dict[str, list[Example]] = {}
    notes = []
    for ours, theirs in wanted.items():
        if theirs in by_theirs:
            continue
        found = read_split(paper.source, theirs, origin, name, reading)
        notes += [found.note] if found.note else []
        examples = [example for record in found.records for example in paper.format(record)]
        if ours == "train" and paper.train_label is not None:
            examples = [e for e in examples if e.label == paper.train_label]
        hidden = sum(example.label == HIDDEN for example in examples)
        of = f"{hidden:,} of {len(examples):,} rows"
        if hidden and paper.metrics == ("squad",):
            raise ValueError(
                f"split '{theirs}' of task '{name}' has no answer in {of}, as SQuAD 2.0 has; "
                "in SQuAD 1.1 and MRQA every question has one: leave those rows out"
            )
        if hidden:
            raise ValueError(
                f"split '{theirs}' of task '{name}' hides the labels of {of}, so it can neither be "
                "trained on nor scored; expected a split with labels"
            )
        if paper.prefixed and not prefix:
            examples = [dataclasses.replace(e, inputs=remove_prefix(e.inputs)) for e in examples]
        by_theirs[theirs] = examples
    return {ours: by_theirs[theirs] for ours, theirs in wanted.items()}, notes


def _require_rows(name: str, splits: Mapping[str, list[Example]]) -> None:
    for split, examples in splits.items():
        if not examples:
            raise ValueError(f"task '{name}' has no rows in {split}; expected one or more")
