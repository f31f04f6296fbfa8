"""Text to token ids and back: a small BPE vocabulary with T5's special ids.

Ids 0, 1 and 2 are padding, end of sequence and unknown; the last 100 ids are the sentinels of span
corruption, counted down from the end. Text is NFKC-normalized, runs of whitespace become one space,
and '▁' marks the start of a word. Letters, digits and punctuation never share a piece, so
`encode('a b') == encode('a') + encode('b')`: pieces of text can be put together as ids.

Invariant: encoding never yields id 0, 1 or a sentinel, whatever the text says: '</s>' in a text is
four or so ordinary pieces.
"""

import hashlib
import json
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, trainers

SENTINELS = 100
_ALPHABET = 160  # single characters kept; rarer ones are unknown
_SPECIAL = ("<pad>", "</s>", "<unk>")
_WORDS = r"▁?\p{L}+|▁?\p{N}+|▁?[^\p{L}\p{N}▁]+|▁"


class Tokenizer(Protocol):
    """Maps text to ids: what every tokenizer does, whatever its vocabulary is.

    `BPETokenizer` is one that was trained here; those of published models are in `convert/`.
    """

    pad_id = 0
    eos_id = 1
    unk_id = 2
    vocab_size: int

    def save(self, path: str | Path) -> None:
        """Writes one JSON file."""
        ...

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without an end marker; never id 0, 1 or a sentinel. '' has none."""
        ...

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of many texts, on all cores."""
        ...

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids; padding, end, unknown and sentinels are left out."""
        ...

    def piece(self, index: int) -> str:
        """The piece at an id, with '▁' where it starts a word.

        Raises:
            ValueError: The id is outside the vocabulary.
        """
        ...

    def sentinel(self, i: int) -> int:
        """The id of `<extra_id_i>`.

        Raises:
            ValueError: There are 100 sentinels, 0 to 99.
        """
        ...

    @property
    def fingerprint(self) -> str:
        """sha256, in hex, of all that decides the ids of a text."""
        ...


def require_id(index: int, vocab_size: int) -> None:
    """Raises ValueError where an id is outside the vocabulary."""
    if not 0 <= index < vocab_size:
        raise ValueError(f"token id {index} is given, expected 0 to {vocab_size - 1}")


def require_sentinel(i: int) -> None:
    """Raises ValueError where there is no sentinel of this number."""
    if not 0 <= i < SENTINELS:
        raise ValueError(f"sentinel {i} is given, expected 0 to {SENTINELS - 1}")


class BPETokenizer(Tokenizer):
    """A BPE vocabulary of ours. Made by `BPETokenizer.from_file` or `train_tokenizer`."""

    def __init__(self, backend: tokenizers.Tokenizer):
        self._backend = backend
        self._backend.encode_special_tokens = True
        self.vocab_size = backend.get_vocab_size(with_added_tokens=True)

    @classmethod
    def from_file(cls, path: str | Path) -> "BPETokenizer":
        """Loads what `save` wrote.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: The file is no tokenizer, or not one with T5's special ids.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(
                f"tokenizer file '{path}' does not exist; expected a tokenizer.json"
            )
        try:
            backend = tokenizers.Tokenizer.from_str(path.read_text(encoding="utf-8"))
        except Exception as error:  # the library raises plain Exception
            raise ValueError(
                f"tokenizer file '{path}' cannot be read ({error}); expected a tokenizer.json"
            ) from None
        tokenizer = cls(backend)
        size = tokenizer.vocab_size
        expected = dict(enumerate(_SPECIAL)) | {
            size - 1 - i: f"<extra_id_{i}>" for i in (0, SENTINELS - 1)
        }
        for index, piece in expected.items():
            if backend.id_to_token(index) != piece:
                raise ValueError(
                    f"tokenizer file '{path}' has {backend.id_to_token(index)!r} at id {index}, "
                    f"expected '{piece}'; train one with train_tokenizer"
                )
        return tokenizer

    def save(self, path: str | Path) -> None:
        """Writes one JSON file, the format of the library `tokenizers`."""
        Path(path).write_text(self._backend.to_str(), encoding="utf-8")

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without an end marker. The empty text has none."""
        return self._backend.encode(text, add_special_tokens=False).ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of many texts, on all cores."""
        encodings = self._backend.encode_batch_fast(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids; padding, end, unknown and sentinels are left out."""
        return self._backend.decode([int(i) for i in ids], skip_special_tokens=True)

    def piece(self, index: int) -> str:
        """The piece at an id, with '▁' where it starts a word.

        Raises:
            ValueError: The id is outside the vocabulary.
        """
        require_id(index, self.vocab_size)
        return self._backend.id_to_token(int(index)) or ""

    def sentinel(self, i: int) -> int:
        """The id of `<extra_id_i>`: the last id is number 0, as in T5.

        Raises:
            ValueError: There are 100 sentinels, 0 to 99.
        """
        require_sentinel(i)
        return self.vocab_size - 1 - i

    @property
    def fingerprint(self) -> str:
        """sha256, in hex, of the normalization, the pieces with their scores, and their ids."""
        parts = json.loads(self._backend.to_str())
        kept = [parts["normalizer"], parts["pre_tokenizer"], parts["model"]["vocab"]]
        kept.append(parts["model"]["merges"])
        kept.append([[token["id"], token["content"]] for token in parts["added_tokens"]])
        text = json.dumps(kept, sort_keys=True, ensure_ascii=True)
        return hashlib.sha256(text.encode()).hexdigest()


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> BPETokenizer:
    """Learns a BPE vocabulary from texts. The same texts give the same vocabulary.

    (The Unigram trainer of `tokenizers` seeds from substrings of distinct words that occur twice,
    and so misses the commonest whole words.)

    Args:
        texts: Anything to learn from; some 10 million characters are plenty.
        vocab_size: Ids in all, with the 3 special ones and the 100 sentinels. Texts with too few
            different words give fewer.

    Raises:
        ValueError: The vocabulary has no room for pieces, or there is no text.
    """
    least = len(_SPECIAL) + SENTINELS + 1
    if vocab_size < least:
        raise ValueError(
            f"vocab_size is {vocab_size}, expected {least} or more: "
            f"{len(_SPECIAL)} special ids, {SENTINELS} sentinels and the pieces"
        )
    texts = [text for text in texts if text.strip()]
    if not texts:
        raise ValueError("no text is given to train a tokenizer on; expected at least one line")
    backend = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    backend.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip()]
    )
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Metaspace(prepend_scheme="always"),
            pre_tokenizers.Split(Regex(_WORDS), behavior="isolated"),
        ]
    )
    backend.decoder = decoders.Metaspace(prepend_scheme="always")
    # Chosen here, because the trainer breaks ties between rare characters at random.
    characters = Counter(c for text in texts for c in unicodedata.normalize("NFKC", text))
    characters = {c: n for c, n in characters.items() if not c.isspace()}
    ranked = sorted(characters, key=lambda c: (-characters[c], c))
    size = min(_ALPHABET, vocab_size - SENTINELS - len(_SPECIAL))
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - SENTINELS,
        special_tokens=list(_SPECIAL),
        initial_alphabet=["▁", *ranked][:size],
        limit_alphabet=size,
        min_frequency=2,
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer=trainer, length=len(texts))
    backend.add_special_tokens([f"<extra_id_{i}>" for i in reversed(range(SENTINELS))])
    return BPETokenizer(backend)
