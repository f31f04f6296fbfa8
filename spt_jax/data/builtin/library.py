"""The built-in task `library` (which library is a docstring from?), and what pretraining omits.

Invariant: the split of a docstring is a function of its text only. So pretraining can leave out all
docstrings of dev and test (`held_out`) without knowing the rows that this task and those about
arguments (`argument_tasks.py`) selected.
"""

import re
from collections import Counter
from collections.abc import Iterable

from spt_jax.data.builtin.cache import LabeledText, cached
from spt_jax.data.builtin.docstrings import iter_docstrings
from spt_jax.data.builtin.duplicates import ShingleIndex, near_duplicates, word_digest, words

LIBRARIES: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "numpy": ("numpy", "numpy", ("numpy", "np")),
    "scipy": ("scipy", "scipy", ("scipy", "sp")),
    "jax": ("jax", "jax", ("jax", "jaxlib", "jaxpr", "jaxprs", "jnp", "jsp")),
    "python": ("python", "", ("python", "python2", "python3", "cpython", "pythonic")),
    "transformers": ("transformers", "transformers", ("transformers",)),
    "datasets": (
        "tensorflow_datasets",
        "tensorflow-datasets",
        ("tensorflow_datasets", "datasets", "tfds", "tensorflow", "tf"),
    ),
    "orbax": ("orbax", "orbax-checkpoint", ("orbax", "ocp")),
    "hub": (
        "huggingface_hub",
        "huggingface-hub",
        ("huggingface_hub", "huggingface hub", "hugging face", "huggingface", "hub", "hf"),
    ),
}
"""Package, distribution, and names and import aliases of each label. All names of all labels are
removed from every text."""

TEXT_LENGTH = 600  # characters kept of a docstring
MIN_LENGTH = 40  # characters that a text must have
POOL_PER_CLASS = 1700  # different texts read per class, before near-duplicates are removed
ROWS_PER_CLASS = 1100  # rows per class at most, so that no class dominates
ROWS_PER_OPENING = 5  # rows of a class that may start with the same three words, so that they vary

TEST_SHARE, DEV_SHARE = 0.15, 0.10

_NAMES = sorted({name for *_, names in LIBRARIES.values() for name in names}, key=len, reverse=True)
_IN_CAMEL = "NumPy|Numpy|SciPy|Scipy|JAX|Jax|Orbax|TFDS|Tfds|HuggingFace|Transformers|HF|Hf|Hub"
_CAMEL = re.compile(
    rf"(?<![A-Za-z0-9])(?:{_IN_CAMEL})+(?=[A-Z])|(?<=[a-z])(?<!Git)(?:{_IN_CAMEL})+(?![a-z])"
)
_WHOLE = re.compile(
    rf"(?<![A-Za-z0-9])(?:{'|'.join(map(re.escape, _NAMES))})(?![A-Za-z0-9])(?:\.(?=\w)|_+)?",
    re.IGNORECASE,
)


def clean_text(text: str) -> str:
    """Return a docstring as the task shows it: no library names, one line, 600 characters."""
    return cut_text(_anonymous(" ".join(text.split())[: 5 * TEXT_LENGTH]), TEXT_LENGTH)


def cut_text(text: str, length: int) -> str:
    """Cut a text before the word that exceeds the length."""
    if len(text) > length:
        text = text[: length + 1].rpartition(" ")[0] or text[:length]
    return text


def split_of(text: str) -> str:
    """Return the split ("train", "dev" or "test") of a docstring, raw or cleaned."""
    return _split_of_cleaned(clean_text(text))


def held_out(text: str) -> bool:
    """Return whether a docstring is in dev or test, so that pretraining has to leave it out."""
    return split_of(text) != "train"


def library_rows() -> dict[str, list[LabeledText]]:
    """Return the rows of the task as {"train", "dev", "test"}, in a fixed shuffled order.

    The label of a text is its library, which the text does not name. Duplicates and near-duplicates
    are removed. Near-duplicates of different classes are all removed, because they imply neither
    class. Each class has at most `ROWS_PER_CLASS` rows.

    Raises:
        ValueError: One of the packages in `LIBRARIES` is not installed.
    """
    distributions = [name for _, name, _ in LIBRARIES.values() if name]
    rules = ("library", "docstrings", "duplicates")
    splits: dict[str, list[LabeledText]] = {"train": [], "dev": [], "test": []}
    for text, label in cached("library", rules, distributions, _select_rows):
        splits[_split_of_cleaned(text)].append(LabeledText(text, label))
    return splits


def drop_held_out(
    texts: Iterable[str], splits: dict[str, list[LabeledText]] | None = None
) -> list[str]:
    """Return the texts that pretraining may see: not held out, and not similar to a held-out row.

    Args:
        texts: Whole docstrings.
        splits: What `library_rows` returned. By default it is called.
    """
    splits = library_rows() if splits is None else splits
    index = ShingleIndex(either_way=False)
    for number, row in enumerate([*splits["dev"], *splits["test"]]):
        index.add(number, row.text)
    return [t for t in texts if not held_out(t) and not index.alike(_anonymous(t))]


def _anonymous(text: str) -> str:
    return " ".join(_WHOLE.sub("", _CAMEL.sub("", " ".join(text.split()))).split())


def _split_of_cleaned(cleaned: str) -> str:
    share = int.from_bytes(word_digest(cleaned)[8:16], "big") / 2**64
    if share < TEST_SHARE:
        return "test"
    return "dev" if share < TEST_SHARE + DEV_SHARE else "train"


def _select_rows() -> list[LabeledText]:
    pool: dict[bytes, LabeledText] = {}
    copied: set[LabeledText] = set()  # rows that another class has word for word
    for label, (package, _, _) in LIBRARIES.items():
        size = len(pool) + POOL_PER_CLASS
        for docstring in iter_docstrings(package):
            text = clean_text(docstring.text)
            if len(text) < MIN_LENGTH:
                continue
            key = word_digest(text)
            first = pool.setdefault(key, LabeledText(text, label))
            if first.label != label:
                copied.add(first)
            if len(pool) == size:
                break
    rows = [pool[key] for key in sorted(pool)]
    unclear = near_duplicates([row.text for row in rows], [row.label for row in rows])
    unclear |= {number for number, row in enumerate(rows) if row in copied}
    of_class: Counter[str] = Counter()
    of_opening: Counter[tuple[str, ...]] = Counter()
    selected = []
    for number, row in enumerate(rows):
        opening = (row.label, *words(row.text)[:3])
        if number in unclear or of_opening[opening] == ROWS_PER_OPENING:
            continue
        if of_class[row.label] < ROWS_PER_CLASS:
            of_class[row.label] += 1
            of_opening[opening] += 1
            selected.append(row)
    return selected
