"""What a task is made of, whatever it is read from: examples, and the splits that hold them."""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

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
        shared: What the example has in common with others that must be in its split, such as its
            paragraph; its inputs alone where empty.
        sentinels: Where in `inputs` the model's sentinels start, in characters; `<extra_id_0>`
            anywhere else is text.
    """

    inputs: str
    targets: str
    answers: tuple[str, ...] = ()
    group: str = ""
    label: int | None = None
    shared: str = field(default="", compare=False)
    sentinels: tuple[int, ...] = ()


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
    """Return rows of one file as train and the missing splits, 10% each, those in shuffled order.

    The split of a row is a function of its input text, or of what it shares with other rows, and of
    nothing else: rows with the same input, or about the same paragraph, are in the same split.
    """
    parts: dict[str, list[tuple[float, Example]]] = {name: [] for name in ("train", *missing)}
    for example in examples:
        share = _share(example)
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


def hashed(examples: Sequence[Example]) -> str:
    """Return what `split_by_hash` hashes of these rows, for a note."""
    return "what rows have in common" if any(e.shared for e in examples) else "the input text"


def sample_rows(examples: Sequence[Example], count: int) -> list[int]:
    """Return the indices, increasing, of at most `count` rows: a fixed random sample.

    Which rows they are depends on the texts of the rows and not on their order, so that a file
    sorted by label gives rows of every label. Rows that are scored together stay together, but for
    the last group.
    """
    order = sorted(
        range(len(examples)),
        key=lambda i: (_share(examples[i]), examples[i].inputs, examples[i].targets, i),
    )
    return sorted(order[:count])


def _share(example: Example) -> float:
    """Return a number from 0 to 1 by the hash of what decides the split of an example."""
    text = " ".join((example.shared or example.inputs).split())
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64


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
