"""A tokenized corpus in flat arrays, and the passages and words that can be drawn from it.

All documents stand in one int32 array, docstrings first; sentences and words are positions in it.
A *plain* word is one run of letters with nothing but punctuation behind it, so that its ids are the
same wherever it stands: tasks about words ask about plain words only.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from spt_jax.pretraining.corpus import Corpus
from spt_jax.tokenizers.base import Tokenizer

LONGEST_WORD = 6  # tokens of a plain word
SHORTEST = 12  # tokens that must follow in the document where a passage starts
BLOCK = 96  # tokens of a block, whose number with a word is the word's document frequency
KEYWORD_COUNT = 50  # occurrences that a keyword must have in a corpus of so many tokens or more
KEYWORD_TOKENS = 9_500_000
_CLOSERS = set("\"'”’)]*_")


@dataclass(frozen=True)
class Passages:
    """Arrays over N tokens, D documents, S sentences, W plain words of which V are different.

    Args:
        tokenizer: What made the tokens.
        tokens: int32[N], without end markers.
        document_starts: int64[D + 1], the last is N.
        docstrings: How many of the documents are docstrings; they come first.
        kinds: `kind` of each docstring.
        names: Ids of the name of each docstring, split in words; empty where it has none.
        books: int64[D], number of the book, -1 for docstrings.
        titles: {number of the book: ids of its title}; authors likewise.
        sentences: int64[S], positions where a passage may start.
        docstring_sentences: How many of the sentences are in docstrings; they come first.
        is_word_start: bool[vocabulary].
        word_starts: int64[W] positions of plain words; word_lengths: int64[W] tokens of each.
        word_ids: int64[W] number of the word; idf: f64[V], 0 for words that are no keywords.
        word_lookup: {ids of a word as a tuple: its number}.
        labels: int64[...] token ids that are whole words of 3 letters or more.
    """

    tokenizer: Tokenizer
    tokens: np.ndarray
    document_starts: np.ndarray
    docstrings: int
    kinds: list[str]
    names: list[list[int]]
    books: np.ndarray
    titles: dict[int, list[int]]
    authors: dict[int, list[int]]
    sentences: np.ndarray
    docstring_sentences: int
    is_word_start: np.ndarray
    word_starts: np.ndarray
    word_lengths: np.ndarray
    word_ids: np.ndarray
    idf: np.ndarray
    word_lookup: dict[tuple[int, ...], int]
    labels: np.ndarray
    _occurrences: dict[int, np.ndarray] = field(default_factory=dict)

    def document(self, position: int) -> tuple[int, int]:
        """Start and end of the document around a position."""
        index = self.document_starts.searchsorted(position, side="right")
        return int(self.document_starts[index - 1]), int(self.document_starts[index])

    def start(self, rng: np.random.Generator, docstring_share: float) -> int:
        """Where a random sentence starts: of a docstring with this probability, else of a book."""
        split = self.docstring_sentences
        of_docstring = rng.random() < docstring_share
        if split == 0 or split == len(self.sentences):
            return int(self.sentences[rng.integers(len(self.sentences))])
        low, high = (0, split) if of_docstring else (split, len(self.sentences))
        return int(self.sentences[rng.integers(low, high)])

    def cut(self, start: int, length: int) -> int:
        """End of the passage from `start`: at most `length` tokens, whole words, one document."""
        end = min(start + length, self.document(start)[1])
        if end < len(self.tokens):
            while end > start + 1 and not self.is_word_start[self.tokens[end]]:
                end -= 1
        return end

    def ids(self, start: int, end: int) -> list[int]:
        """Token ids from start up to end."""
        return self.tokens[start:end].tolist()

    def words(self, start: int, end: int) -> np.ndarray:
        """int64[n]: the indices (into `word_starts`) of the plain words from start up to end."""
        low, high = self.word_starts.searchsorted((start, end))
        if high > low and self.word_starts[high - 1] + self.word_lengths[high - 1] > end:
            high -= 1
        return np.arange(low, high)

    def word(self, index: int) -> list[int]:
        """Token ids of a plain word."""
        start = self.word_starts[index]
        return self.ids(start, start + self.word_lengths[index])

    def occurrences(self, text: str) -> np.ndarray:
        """int64[n]: the indices of the plain words that are this word."""
        number = self.word_lookup.get(tuple(self.tokenizer.encode(text)), -1)
        if number not in self._occurrences:
            self._occurrences[number] = np.flatnonzero(self.word_ids == number)
        return self._occurrences[number]


def split_name(name: str) -> str:
    """The last part of a dotted name in lower-case words: 'a.HTTPServer_run' is 'http server run'.

    Names that Python gives a meaning, such as `__init__`, have no words.
    """
    last = name.rpartition(".")[2]
    if last.startswith("__"):
        return ""
    parts = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+", last)
    return " ".join(parts).lower()


def tokenize_corpus(corpus: Corpus, tokenizer: Tokenizer) -> Passages:
    """Tokenizes a corpus once and finds its sentences and words.

    Raises:
        ValueError: The corpus holds no text long enough for a passage.
    """
    tokens, lengths = _tokenize(corpus.texts(), tokenizer)
    if not lengths.size or lengths.max() < SHORTEST:
        raise ValueError(
            f"the corpus has no text of {SHORTEST} tokens or more; give longer texts to pretrain on"
        )
    starts = np.concatenate([[0], np.cumsum(lengths)])
    pieces = [tokenizer.piece(i) for i in range(tokenizer.vocab_size)]
    bare = [piece.removeprefix("▁") for piece in pieces]
    is_word_start = np.array([piece.startswith("▁") for piece in pieces])
    is_letters = np.array([text.isalpha() for text in bare])
    sentences = _find_sentences(tokens, starts, bare, is_word_start)
    is_alnum = np.array([any(map(str.isalnum, text)) for text in bare])
    word_starts, word_lengths, keys = _find_words(
        tokens, starts, is_alnum, is_word_start, is_letters
    )
    _, first, word_ids, counts = np.unique(
        keys, return_index=True, return_inverse=True, return_counts=True
    )
    count = len(corpus.docstrings)
    known = {e.book: e for e in corpus.excerpts}
    titles = {b: e.title for b, e in known.items() if e.title}
    authors = {b: e.author for b, e in known.items() if e.author}
    return Passages(
        tokenizer=tokenizer,
        tokens=tokens,
        document_starts=starts,
        docstrings=count,
        kinds=[d.kind for d in corpus.docstrings],
        names=tokenizer.encode_batch([split_name(d.name) for d in corpus.docstrings]),
        books=np.array([-1] * count + [e.book for e in corpus.excerpts], np.int64),
        titles=dict(zip(titles, tokenizer.encode_batch(list(titles.values())))),
        authors=dict(zip(authors, tokenizer.encode_batch(list(authors.values())))),
        sentences=sentences,
        docstring_sentences=int(sentences.searchsorted(starts[count])),
        is_word_start=is_word_start,
        word_starts=word_starts,
        word_lengths=word_lengths,
        word_ids=word_ids,
        idf=_keyword_idf(tokens, word_starts, word_ids, first, counts, bare),
        word_lookup={
            tuple(tokens[word_starts[i] : word_starts[i] + word_lengths[i]].tolist()): number
            for number, i in enumerate(first)
        },
        labels=np.flatnonzero(
            is_word_start & np.array([len(b) > 2 and b.isalpha() and b.islower() for b in bare])
        ),
    )


def _tokenize(texts: Iterable[str], tokenizer: Tokenizer) -> tuple[np.ndarray, np.ndarray]:
    """int32[N] tokens of all texts, and int64[D] how many each has.

    A text's ids are those of its words, so each different word is encoded once.
    """
    known: dict[str, int] = {}
    numbers: list[int] = []
    words = []
    for text in texts:
        before = len(numbers)
        numbers += [known.setdefault(word, len(known)) for word in text.split()]
        words.append(len(numbers) - before)
    encoded = tokenizer.encode_batch(list(known))
    lengths = np.array([len(ids) for ids in encoded], np.int64)
    flat = np.array([i for ids in encoded for i in ids], np.int32)
    offsets = np.cumsum(lengths) - lengths
    sequence = np.array(numbers, np.int64)
    sizes = lengths[sequence]
    ends = np.append(0, np.cumsum(sizes))
    tokens = flat[np.arange(ends[-1]) + np.repeat(offsets[sequence] - ends[:-1], sizes)]
    return tokens, np.diff(ends[np.append(0, np.cumsum(np.array(words, np.int64)))])


def _find_sentences(tokens, starts, bare, is_word_start) -> np.ndarray:
    ends = np.array([text[-1:] in (".", "!", "?") for text in bare])[tokens]
    closes = np.array([bool(text) and set(text) <= _CLOSERS for text in bare])[tokens]
    ends[1:] |= closes[1:] & ends[:-1]
    begins = np.zeros(len(tokens), bool)
    begins[1:] = ends[:-1] & is_word_start[tokens[1:]]
    lengths = np.diff(starts)
    begins[starts[:-1][lengths > 0]] = True
    left = np.repeat(starts[1:], lengths) - np.arange(len(tokens))
    return np.flatnonzero(begins & (left >= SHORTEST))


def _find_words(tokens, starts, is_alnum, is_word_start, is_letters):
    begins = is_word_start[tokens]
    begins[starts[:-1][np.diff(starts) > 0]] = True
    positions = np.flatnonzero(begins)
    ends = np.append(positions[1:], len(tokens))
    letters = is_letters[tokens] & ~begins
    alive = is_letters[tokens[positions]]
    core = alive.astype(np.int64)
    keys = tokens[positions].astype(np.uint64)
    for offset in range(1, LONGEST_WORD + 1):
        at = np.minimum(positions + offset, len(tokens) - 1)
        alive = alive & (positions + offset < ends) & letters[at]
        core += alive
        mixed = keys * np.uint64(0x9E3779B97F4A7C15) ^ (tokens[at].astype(np.uint64) + np.uint64(1))
        keys = np.where(alive, mixed, keys)
    behind = np.append(0, np.cumsum(is_alnum[tokens]))
    plain = (core > 0) & (core <= LONGEST_WORD) & (behind[ends] == behind[positions + core])
    return positions[plain], core[plain], keys[plain]


def _keyword_idf(tokens, word_starts, word_ids, first, counts, bare) -> np.ndarray:
    blocks = len(tokens) // BLOCK + 1
    pairs = np.sort(word_ids * blocks + word_starts // BLOCK)
    different = pairs[np.append(True, pairs[1:] != pairs[:-1])] if len(pairs) else pairs
    frequency = np.bincount(different // blocks, minlength=len(counts))
    idf = np.log((len(tokens) / BLOCK + 1) / np.maximum(frequency, 1))
    is_lower = np.array([text.islower() for text in bare])
    least = min(max(2, len(tokens) * KEYWORD_COUNT // KEYWORD_TOKENS), KEYWORD_COUNT)
    allowed = (counts >= least) & is_lower[tokens[word_starts[first]]]
    return np.where(allowed, idf, 0.0)
