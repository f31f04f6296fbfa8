"""The raw text that a backbone is pretrained on: docstrings of installed packages, and text files.

Docstrings often repeat each other, such as the description of an argument in two hundred classes.
So a docstring is dropped if most of its word 8-grams occurred before.

Invariants: no corpus contains a docstring of dev or test of the task `library`, or a near-duplicate
of one. A corpus is a function of the installed packages, the files and the seed only.
"""

import dataclasses
import hashlib
import itertools
import lzma
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from spt_jax.config.pretrain import PRETRAINING_PACKAGES
from spt_jax.data.builtin.docstrings import Docstring, read_docstrings
from spt_jax.data.builtin.library import drop_held_out

NGRAM = 8  # words of an n-gram
REPEATED = 0.5  # share of repeated n-grams from which a docstring is dropped
EXCERPT = 20_000  # characters of a book that are kept or left out together


@dataclass(frozen=True)
class Excerpt:
    """Successive paragraphs of one book.

    Args:
        text: The paragraphs, joined by spaces.
        title: Title of the book, if it is known.
        author: Author of the book, if known.
        book: Number of the book, counted over all files.
    """

    text: str
    title: str | None
    author: str | None
    book: int


@dataclass(frozen=True)
class Corpus:
    """Texts to pretrain on, each in one line."""

    docstrings: tuple[Docstring, ...]
    excerpts: tuple[Excerpt, ...]

    def texts(self) -> Iterator[str]:
        """Yield all texts, docstrings first."""
        for document in (*self.docstrings, *self.excerpts):
            yield document.text

    def fingerprint(self) -> str:
        """Return the sha256, in hex, of all texts in order."""
        digest = hashlib.sha256()
        for text in self.texts():
            digest.update(f"{len(text)} {text}".encode())
        return digest.hexdigest()

    def sample_texts(self, characters: int, seed: int = 0) -> list[str]:
        """Return random texts of together at least so many characters, to learn a vocabulary."""
        texts = list(self.texts())
        random.Random(seed).shuffle(texts)
        before = itertools.accumulate(map(len, texts), initial=0)
        return [text for text, total in zip(texts, before) if total < characters]

    def split(self, share: float = 0.01) -> tuple["Corpus", "Corpus"]:
        """Return (train, held out). A hash of its text decides where a document goes."""

        def is_held_out(document):
            digest = hashlib.sha256(b"held out " + document.text.encode()).digest()
            return int.from_bytes(digest[:8], "big") < share * 2**64

        def part(held_out):
            return Corpus(
                tuple(d for d in self.docstrings if is_held_out(d) == held_out),
                tuple(e for e in self.excerpts if is_held_out(e) == held_out),
            )

        return part(False), part(True)


def read_corpus(
    *,
    packages: Sequence[str] = PRETRAINING_PACKAGES,
    text_files: Sequence[str | Path] = (),
    max_text_characters: int | None = 20_000_000,
    seed: int = 0,
) -> Corpus:
    """Read docstrings and text files.

    Args:
        packages: Packages whose docstrings are read; "python" is the standard library.
        text_files: .txt or .txt.xz files in UTF-8, with one paragraph a line and a form feed
            between books. A file `<name>_list.txt` beside `<name>.txt` may list the books in the
            same order, as `author/title` lines.
        max_text_characters: Characters of all text files together. A random sample of excerpts is
            kept, or all if None.
        seed: Seed of the sample.

    Raises:
        FileNotFoundError: A text file does not exist.
        ValueError: A file is neither .txt nor .txt.xz or is damaged, a package is not installed, or
            there is no text at all.
    """
    docstrings = _read_packages(packages)
    excerpts: list[Excerpt] = []
    for path in text_files:
        books = 1 + max((e.book for e in excerpts), default=-1)
        excerpts.extend(_read_excerpts(Path(path), books))
    if max_text_characters is not None:
        total = sum(len(e.text) for e in excerpts)
        order = random.Random(seed).sample(range(len(excerpts)), len(excerpts))
        while order and total > max_text_characters:
            total -= len(excerpts[order.pop(0)].text)
        excerpts = [excerpts[index] for index in sorted(order)]
    if not docstrings and not excerpts:
        raise ValueError("the corpus is empty; give packages or text files to read")
    return Corpus(tuple(docstrings), tuple(excerpts))


def drop_repeated(texts: Sequence[str]) -> list[int]:
    """Return the indices of the texts that are mostly new, in order.

    A text is dropped if at least half of its word 8-grams occur in an earlier text. A text of fewer
    words counts as one 8-gram.
    """
    kept: list[int] = []
    seen: set[int] = set()
    for index, text in enumerate(texts):
        words = text.split()
        runs = [words[at : at + NGRAM] for at in range(max(1, len(words) - NGRAM + 1))]
        hashes = [hash(tuple(run)) for run in runs]
        if sum(map(seen.__contains__, hashes)) < REPEATED * len(hashes):
            kept.append(index)
        seen.update(hashes)
    return kept


def _read_packages(packages: Sequence[str]) -> list[Docstring]:
    found = [
        dataclasses.replace(docstring, text=" ".join(docstring.text.split()), annotations={})
        for docstring in (read_docstrings(packages) if packages else ())
    ]
    found = [found[index] for index in drop_repeated([d.text for d in found])]
    allowed = set(drop_held_out([d.text for d in found])) if found else set()
    return [d for d in found if d.text in allowed]


def _read_excerpts(path: Path, first_book: int) -> list[Excerpt]:
    if not path.is_file():
        raise FileNotFoundError(f"text file '{path}' does not exist; expected a .txt or .txt.xz")
    name = path.name.removesuffix(".xz")
    if not name.endswith(".txt"):
        raise ValueError(f"text file '{path}' is given, expected a name in .txt or .txt.xz")
    opened = lzma.open if path.suffix == ".xz" else open
    try:
        with opened(path, "rt", encoding="utf-8") as file:
            books = [book for book in file.read().split("\f") if book.strip()]
    except (UnicodeDecodeError, lzma.LZMAError, EOFError) as error:
        raise ValueError(
            f"text file '{path}' cannot be read ({error}); expected UTF-8 text, packed by xz "
            "where the name ends in .xz"
        ) from None
    excerpts = []
    titles = _read_titles(path.with_name(f"{name.removesuffix('.txt')}_list.txt"), len(books))
    for number, (book, (title, author)) in enumerate(zip(books, titles), first_book):
        paragraphs: list[str] = []
        length = 0
        for paragraph in [*book.split("\n"), None]:
            if paragraphs and (paragraph is None or length > EXCERPT):
                excerpts.append(Excerpt(" ".join(paragraphs), title, author, number))
                paragraphs, length = [], 0
            if paragraph and (line := " ".join(paragraph.split())):
                paragraphs.append(line)
                length += len(line)
    return excerpts


def _read_titles(path: Path, count: int) -> list[tuple[str | None, str | None]]:
    if not path.is_file():
        return [(None, None)] * count
    lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    if len(lines) != count:
        raise ValueError(
            f"'{path}' lists {len(lines)} books, expected {count} as in the text file; "
            "one line 'author/title' for each"
        )
    titles = []
    for line in lines:
        author, slash, title = line.removesuffix(".md").rpartition("/")
        titles.append((title.strip(), author.strip() if slash else None))
    return titles
