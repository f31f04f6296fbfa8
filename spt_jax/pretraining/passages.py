"""A tokenized corpus in flat arrays, and the passages and words that can be drawn from it.

One int32 array holds all documents, docstrings first. Sentences and words are positions in it. A
*plain* word is one run of letters that only punctuation follows, so its token ids do not depend on
its place. Tasks about words ask about plain words only.
"""

import itertools
import re
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from spt_jax.pretraining.corpus import Corpus
from spt_jax.tokenizers.base import Tokenizer

LONGEST_WORD = 6  # tokens that a plain word may have
SHORTEST = 12  # tokens that must follow in the document where a passage starts
BLOCK = 96
"""Tokens of a block. The document frequency of a word counts the blocks that contain it."""

KEYWORD_COUNT, KEYWORD_TOKENS = 50, 9_500_000
"""Occurrences that a keyword must have, in a corpus of so many tokens or more."""

_CLOSERS = set("\"'”’)]*_")


@dataclass(frozen=True)
class Passages:
    """Arrays over N tokens, D documents, S sentences and W plain words, V of them different.

    Args:
        tokenizer: Tokenizer of the corpus.
        tokens: Token ids without end markers, int32[N].
        document_starts: First position of each document, and N, int64[D + 1].
        docstrings: Number of documents that are docstrings. They come first.
        kinds: `kind` of each docstring.
        names: Token ids of the name of each docstring in words; empty if it has no name.
        books: Number of each document's book, or -1 for docstrings, int64[D].
        titles: Token ids of the title by the number of the book.
        authors: Token ids of the author by the number of the book.
        sentences: Positions where a passage may start, int64[S].
        docstring_sentences: Number of sentences that are in docstrings. They come first.
        is_word_start: Whether a token starts a word, bool[vocabulary].
        word_starts: Positions of the plain words, int64[W].
        word_lengths: Tokens of each plain word, int64[W].
        word_ids: Number of each plain word, which equal words share, int64[W].
        idf: Inverse document frequency by number, or 0 if the word is not a keyword, float64[V].
        word_lookup: Number of a word by its token ids.
        labels: Token ids that are whole words of 3 lower-case letters or more, int64.
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
        """Return start and end of the document that contains a position."""
        index = self._document_index(position)
        return int(self.document_starts[index]), int(self.document_starts[index + 1])

    def book(self, position: int) -> int:
        """Return the number of the book that contains a position, or -1 for a docstring."""
        return int(self.books[self._document_index(position)])

    def _document_index(self, position: int) -> int:
        return int(self.document_starts.searchsorted(position, side="right")) - 1

    def start(self, rng: np.random.Generator, docstring_share: float) -> int:
        """Return the start of a random sentence, of a docstring with this probability."""
        split = self.docstring_sentences
        of_docstring = rng.random() < docstring_share
        if split == 0 or split == len(self.sentences):
            return int(self.sentences[rng.integers(len(self.sentences))])
        low, high = (0, split) if of_docstring else (split, len(self.sentences))
        return int(self.sentences[rng.integers(low, high)])

    def cut(self, start: int, length: int) -> int:
        """Return the end of a passage: at most `length` tokens, whole words, one document."""
        end = min(start + length, self.document(start)[1])
        if end < len(self.tokens):
            while end > start + 1 and not self.is_word_start[self.tokens[end]]:
                end -= 1
        return end

    def ids(self, start: int, end: int) -> list[int]:
        """Return the token ids from start up to end."""
        return self.tokens[start:end].tolist()

    def next_word(self, position: int, end: int) -> int:
        """Return the first position from `position` on where a word starts, or `end`."""
        while position < end and not self.is_word_start[self.tokens[position]]:
            position += 1
        return position

    def words(self, start: int, end: int) -> np.ndarray:
        """Return the indices of the plain words from start up to end, int64[n]."""
        low, high = self.word_starts.searchsorted((start, end))
        if high > low and self.word_end(high - 1) > end:
            high -= 1
        return np.arange(low, high)

    def word(self, index: int) -> list[int]:
        """Return the token ids of a plain word by its index."""
        return self.ids(self.word_starts[index], self.word_end(index))

    def word_end(self, index: int) -> int:
        """Return the position after a plain word."""
        return int(self.word_starts[index] + self.word_lengths[index])

    def occurrences(self, text: str) -> np.ndarray:
        """Return the indices of the plain words that are this word, int64[n]."""
        number = self.word_lookup.get(tuple(self.tokenizer.encode(text)), -1)
        if number not in self._occurrences:
            self._occurrences[number] = np.flatnonzero(self.word_ids == number)
        return self._occurrences[number]


def split_name(name: str) -> str:
    """Return the last part of a dotted name in lower-case words.

    'a.HTTPServer_run' becomes 'http server run', and `__init__` and its like become ''.
    """
    last = name.rpartition(".")[2]
    if last.startswith("__"):
        return ""
    parts = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+", last)
    return " ".join(parts).lower()


def tokenize_corpus(corpus: Corpus, tokenizer: Tokenizer) -> Passages:
    """Tokenize a corpus and find its sentences and words.

    Raises:
        ValueError: The corpus has no text that is long enough for a passage.
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
    """Return the tokens of all texts, int32[N], and the number of tokens of each, int64[D].

    The ids of a text are those of its words, so each different word is encoded only once.
    """
    split = [text.split() for text in texts]
    words = list(dict.fromkeys(itertools.chain.from_iterable(split)))
    ids = dict(zip(words, tokenizer.encode_batch(words)))
    documents = [[i for word in row for i in ids[word]] for row in split]
    tokens = np.fromiter(itertools.chain.from_iterable(documents), np.int32)
    return tokens, np.array([len(document) for document in documents], np.int64)


def _find_sentences(tokens, starts, bare, is_word_start) -> np.ndarray:
    """Return the positions where sentences start and enough tokens follow."""
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
    """Return positions, lengths and hashes of the plain words."""
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
    """Return the idf of each different word, or 0 if it is rare or not in lower case."""
    blocks = len(tokens) // BLOCK + 1
    pairs = np.sort(word_ids * blocks + word_starts // BLOCK)
    different = pairs[np.append(True, pairs[1:] != pairs[:-1])] if len(pairs) else pairs
    frequency = np.bincount(different // blocks, minlength=len(counts))
    idf = np.log((len(tokens) / BLOCK + 1) / np.maximum(frequency, 1))
    is_lower = np.array([text.islower() for text in bare])
    least = min(max(2, len(tokens) * KEYWORD_COUNT // KEYWORD_TOKENS), KEYWORD_COUNT)
    allowed = (counts >= least) & is_lower[tokens[word_starts[first]]]
    return np.where(allowed, idf, 0.0)
