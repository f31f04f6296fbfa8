"""What a task is made of, whatever it is read from: examples, and the splits that hold them."""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from spt_jax.errors import shorten

SPLITS = ("train", "dev", "test")
DEV_SHARE = TEST_SHARE = 0.1
HIDDEN = -1  # the label of a row whose label its authors keep to themselves


@dataclass(frozen=True)
class Example:
    """What T5 reads and what it should write.

    Args:
        inputs: The input text.
        targets: The text that is trained on.
        answers: Every text that is right, where there are several.
        group: Examples of one group are scored together: the answers of a question, or copies of
            a question for each of its answers.
        label: The class, where a score needs it beside the text; `HIDDEN` where it is not known.
    """

    inputs: str
    targets: str
    answers: tuple[str, ...] = ()
    group: str = ""
    label: int | None = None


@dataclass(frozen=True)
class Task:
    """A task, ready to be tokenized.

    Args:
        name: Its name.
        splits: "train", "dev" and "test", or "test" alone; none of them empty.
        label_words: The answers that count, or None where targets are free text.
        notes: Lines to print: rows per split, label words, balance, rows in common.
        metrics: Names of its scores, from `evaluation.metrics.METRICS`; their mean is *the* score.
        prompt_words: Words that `prompt.init: class_labels` starts from where the targets are free
            text.
    """

    name: str
    splits: Mapping[str, list[Example]]
    label_words: tuple[str, ...] | None
    notes: tuple[str, ...]
    metrics: tuple[str, ...] = ("accuracy",)
    prompt_words: tuple[str, ...] = ()


def split_by_hash(examples: Sequence[Example], missing: Sequence[str]) -> dict[str, list[Example]]:
    """Rows of one file as train and the missing splits, 10% each; the latter in shuffled order.

    The split of a row is a function of its input text alone, so rows with the same input share it.
    """
    parts: dict[str, list[tuple[float, Example]]] = {name: [] for name in ("train", *missing)}
    for example in examples:
        digest = hashlib.sha256(" ".join(example.inputs.split()).encode()).digest()
        share = int.from_bytes(digest[:8], "big") / 2**64
        if "test" in missing and share < TEST_SHARE:
            name = "test"
        elif "dev" in missing and TEST_SHARE <= share < TEST_SHARE + DEV_SHARE:
            name = "dev"
        else:
            name = "train"
        parts[name].append((share, example))
    for name in missing:  # so that the first rows are a sample even of a file sorted by label
        parts[name].sort(key=lambda pair: pair[0])
    return {name: [example for _, example in part] for name, part in parts.items()}


def describe(
    splits: Mapping[str, Sequence[Example]], label_words: Sequence[str] | None
) -> tuple[str, ...]:
    """Lines about the splits: their rows, the labels' balance, and rows in common."""
    notes = ["rows: " + ", ".join(f"{len(splits[name]):,} {name}" for name in SPLITS)]
    if label_words is not None:
        counts = {name: Counter(e.targets for e in splits[name]) for name in SPLITS}
        rows = [
            f"{shorten(word, 20)} {'/'.join(f'{counts[name][word]:,}' for name in SPLITS)}"
            for word in label_words[:20]
        ]
        more = f" and {len(label_words) - 20} more" if len(label_words) > 20 else ""
        majority = counts["train"].most_common(1)[0][0]
        score = 100 * counts["test"][majority] / len(splits["test"])
        notes.append(f"rows per label ({'/'.join(SPLITS)}): {', '.join(rows)}{more}")
        notes.append(f"always answering '{shorten(majority, 20)}' is right on {score:.1f}% of test")
    seen = {example.inputs for example in splits["train"]}
    for name in ("dev", "test"):
        common = sum(example.inputs in seen for example in splits[name])
        if common:
            notes.append(
                f"{common:,} of {len(splits[name]):,} {name} rows have the input of a train row"
            )
    return tuple(notes)
