"""From the table of the papers' tasks to a task with its splits."""

import dataclasses
from collections.abc import Mapping

from spt_jax.data.example import HIDDEN, SPLITS, Example, Task, describe, split_by_hash
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


def load_paper_task(name: str, *, origin: str, prefix: bool, dev_from_train: bool) -> Task:
    """Reads a task of `paper_task_names`.

    Args:
        name: Of the task.
        origin: `tfds`, `hub`, or a folder (for a transfer, one with a folder for each task).
        prefix: Keep the task's name at the start of its inputs.
        dev_from_train: Take dev from train by a hash, where it would be the validation set.

    Raises:
        FileNotFoundError: A file of the folder is not there.
        ValueError: The dataset or a row of it is not as expected, or its labels are hidden.
    """
    transfer = TRANSFERS.get(name)
    source, origin_of_source = (
        (name, origin) if transfer is None else (transfer.source, _below(origin, transfer.source))
    )
    paper = PAPER_TASKS[source]
    if not trainable(source):
        raise ValueError(
            f"task '{name}' has only rows to test on; train on another task, and then: "
            f"spt-jax evaluate RUN --task={name}"
        )
    left_out = {"dev" if dev_from_train else "", "test" if transfer is not None else ""}
    wanted = {ours: theirs for ours, theirs in paper.splits.items() if ours not in left_out}
    splits = _read(source, paper, wanted, origin_of_source, prefix)
    if transfer is not None:
        splits["test"] = load_paper_test(name, origin=origin, prefix=prefix).splits["test"]
    notes = []
    missing = [split for split in SPLITS if split not in splits]
    if missing:
        splits |= split_by_hash(splits["train"], missing)
        notes.append(f"{' and '.join(missing)} taken from train by a hash of the input text")
    elif splits["dev"] is splits["test"]:
        notes.append(
            f"dev and test are both the dataset's '{paper.splits['dev']}' split, as in the paper; "
            "task.dev_from_train=true chooses the best step on rows of train instead"
        )
    splits = {split: splits[split] for split in SPLITS}
    _require_rows(name, splits)
    notes += describe(splits, paper.words)
    return Task(name, splits, paper.words, tuple(notes), paper.metrics, paper.prompt_words)


def load_paper_test(name: str, *, origin: str, prefix: bool) -> Task:
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
    if transfer is not None:
        origin = _below(origin, target)
    test = _read(target, paper, {"test": paper.splits["test"]}, origin, prefix)["test"]
    words = paper.words
    if transfer is not None and transfer.words:
        words = PAPER_TASKS[transfer.source].words
        test = [dataclasses.replace(e, targets=transfer.words[e.targets]) for e in test]
    _require_rows(name, {"test": test})
    return Task(name, {"test": test}, words, (), paper.metrics)


def _read(
    name: str, paper: PaperTask, wanted: Mapping[str, str], origin: str, prefix: bool
) -> dict[str, list[Example]]:
    """Examples by split; where two are the same split of the dataset, they are the same list."""
    by_theirs: dict[str, list[Example]] = {}
    for ours, theirs in wanted.items():
        if theirs in by_theirs:
            continue
        records = read_split(paper.source, theirs, origin, name)
        examples = [example for record in records for example in paper.format(record)]
        if ours == "train" and paper.train_label is not None:
            examples = [e for e in examples if e.label == paper.train_label]
        hidden = sum(example.label == HIDDEN for example in examples)
        if hidden:
            raise ValueError(
                f"split '{theirs}' of task '{name}' hides the labels of {hidden:,} of "
                f"{len(examples):,} rows, so it can neither be trained on nor scored; "
                "expected a split with labels"
            )
        if paper.prefixed and not prefix:
            examples = [dataclasses.replace(e, inputs=remove_prefix(e.inputs)) for e in examples]
        by_theirs[theirs] = examples
    return {ours: by_theirs[theirs] for ours, theirs in wanted.items()}


def _require_rows(name: str, splits: Mapping[str, list[Example]]) -> None:
    for split, examples in splits.items():
        if not examples:
            raise ValueError(f"task '{name}' has no rows in {split}; expected one or more")


def _below(origin: str, task: str) -> str:
    """The origin of one of the two tasks of a transfer."""
    return origin if origin in ("tfds", "hub") else f"{origin}/{task.rpartition('/')[2]}"
