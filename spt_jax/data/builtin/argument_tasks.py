"""Three built-in tasks about documented arguments: `type`, `describes` and `argument`.

A row has the split of its docstring, and pretraining leaves out the docstrings of dev and test
(`library.held_out`). That is not enough, because projects copy descriptions between docstrings.

Invariant: no docstring that pretraining may read contains half of the word sequences of a dev or
test description.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from spt_jax.config.pretrain import PRETRAINING_PACKAGES
from spt_jax.data.builtin.arguments import parse_arguments
from spt_jax.data.builtin.cache import LabeledText, cached
from spt_jax.data.builtin.docstrings import Docstring, read_docstrings
from spt_jax.data.builtin.duplicates import ShingleIndex, near_duplicates, word_digest, words
from spt_jax.data.builtin.library import cut_text, held_out, split_of

ANSWERS = ("yes", "no")
TEXT_LENGTH = 300  # characters kept of a description
MIN_WORDS = 5
"""Words that a description must have. A shorter one says little."""

NAME_WORDS = 4  # words that a name may have in `describes` and `argument`
NAME_LETTERS = 3  # letters that such a name must have, because no description tells x from a
CATCH_ALL = ("args", "kwargs")  # names that are not asked about either
PAIRS = 5_000  # rows of one answer in a split of `describes`, at most
_RANKS = ("test", "dev", "train")
"""Order of the splits. If two splits have similar rows, the first of the two keeps its row."""

_INSTALLED_AS = {"absl": "absl-py", "orbax": "orbax-checkpoint"}
"""Names of distributions that differ from the name of the package."""


class _Entry(NamedTuple):
    split: str
    docstring: int
    name: str  # in words
    kind: str  # empty where it is not clear
    text: str


def argument_rows(task: str) -> dict[str, list[LabeledText]]:
    """Return the rows of one of the tasks as {"train", "dev", "test"}, in a fixed shuffled order.

    `type` asks for the kind of value that a description is about, a key of `arguments.KINDS`.
    `describes` asks of "name: description" whether the two belong together, "yes" or "no". Each
    name and each description occurs equally often with both answers, so neither alone gives the
    answer away. `argument` asks for the name that a description is about, in lower-case words.

    Args:
        task: "type", "describes" or "argument".

    Raises:
        ValueError: One of `PRETRAINING_PACKAGES` is not installed.
    """

    def make():
        return select_rows(read_docstrings(PRETRAINING_PACKAGES))

    rules = ("argument_tasks", "arguments", "docstrings", "duplicates", "library")
    installed = [_INSTALLED_AS.get(p, p) for p in PRETRAINING_PACKAGES if p != "python"]
    splits = cached("arguments", rules, ["docstring-parser", *installed], make)[task]
    return {split: [LabeledText(*row) for row in rows] for split, rows in splits.items()}


def select_rows(found: Sequence[Docstring]) -> dict[str, dict[str, list[LabeledText]]]:
    """Return {task: {split: rows}}.

    Near-duplicates of a description are removed, across and within splits. If their kinds or the
    names of their arguments differ, the description is removed too, because it implies neither.

    Args:
        found: All docstrings that pretraining reads.
    """
    entries = sorted(_entries(found), key=lambda e: (_RANKS.index(e.split), word_digest(e.text)))
    held = {e.text for e in entries if e.split != "train"}
    known = _known(sorted(held), found)
    entries = [e for e in entries if e.split == "train" or e.text not in known]
    typed = [e for e in entries if e.kind]
    typed = _unlike(typed, [e.kind for e in typed])
    named = [e for e in entries if _is_telling(e.name)]
    named = _unlike(named, [e.name for e in named])
    return {
        "type": _by_split((e.split, LabeledText(e.text, e.kind)) for e in typed),
        "describes": _by_split(_pairs(named)),
        "argument": _by_split((e.split, LabeledText(e.text, e.name)) for e in named),
    }


def _entries(found: Iterable[Docstring]) -> Iterator[_Entry]:
    texts = set()
    for number, docstring in enumerate(found):
        documented = parse_arguments(docstring.text, docstring.annotations)
        if not documented or docstring.text in texts:
            continue
        texts.add(docstring.text)
        split = split_of(docstring.text)
        for argument in documented:
            text = cut_text(argument.description, TEXT_LENGTH)
            if len(words(text)) >= MIN_WORDS:
                name = " ".join(words(argument.name))
                yield _Entry(split, number, name, argument.kind or "", text)


def _known(held: Sequence[str], found: Iterable[Docstring]) -> set[str]:
    """Return the held-out descriptions of which pretraining may read at least half."""
    index = ShingleIndex(either_way=False)
    for number, text in enumerate(held):
        index.add(number, text)
    known: set[int] = set()
    for docstring in found:
        alike = index.alike(docstring.text)
        if not known.issuperset(alike) and not held_out(docstring.text):
            known.update(alike)
    return {held[number] for number in known}


def _unlike(entries: Sequence[_Entry], labels: Sequence[str]) -> list[_Entry]:
    dropped = near_duplicates([e.text for e in entries], labels)
    return [e for number, e in enumerate(entries) if number not in dropped]


def _is_telling(name: str) -> bool:
    letters = sum(map(str.isalpha, name))
    few = len(name.split()) <= NAME_WORDS
    return few and letters >= NAME_LETTERS and name not in CATCH_ALL


def _pairs(entries: Iterable[_Entry]) -> Iterator[tuple[str, LabeledText]]:
    """Yield each description with its own name, and with that of the next argument."""
    of_docstring: dict[int, dict[str, _Entry]] = {}
    for entry in entries:
        of_docstring.setdefault(entry.docstring, {})[entry.name] = entry
    taken: Counter[str] = Counter()
    for group in of_docstring.values():
        names, split = list(group), next(iter(group.values())).split
        if len(group) < 2 or taken[split] + len(group) > PAIRS:
            continue
        taken[split] += len(group)
        for name, other in zip(names, names[1:] + names[:1]):
            yield split, LabeledText(f"{name}: {group[name].text}", "yes")
            yield split, LabeledText(f"{other}: {group[name].text}", "no")


def _by_split(rows: Iterable[tuple[str, LabeledText]]) -> dict[str, list[LabeledText]]:
    splits: dict[str, list[LabeledText]] = {"train": [], "dev": [], "test": []}
    for split, row in rows:
        splits[split].append(row)
    for split in splits.values():
        split.sort(key=lambda row: word_digest(row.text))
    return splits
