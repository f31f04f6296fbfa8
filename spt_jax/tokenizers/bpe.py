"""A small BPE vocabulary with T5's special ids, trained here.

The last 100 ids are the sentinels, counted down from the end. Text is NFKC-normalized, runs of
whitespace become one space, and '▁' marks the start of a word. Letters, digits and punctuation
never share a piece, so `encode('a b') == encode('a') + encode('b')`: pieces of text can be put
together as ids.
"""

import hashlib
import json
import unicodedata
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, trainers

from spt_jax.tokenizers.base import SENTINELS, SPECIAL, LibraryTokenizer, require_id

_ALPHABET = 160  # single characters kept; rarer ones are unknown
_WORDS = r"▁?\p{L}+|▁?\p{N}+|▁?[^\p{L}\p{N}▁]+|▁"


class BPETokenizer(LibraryTokenizer):
    """A BPE vocabulary of ours, made by `BPETokenizer.from_file` or `train_tokenizer`."""

    def __init__(self, backend: tokenizers.Tokenizer):
        self._backend = backend
        self._backend.encode_special_tokens = True
        self.vocab_size = backend.get_vocab_size(with_added_tokens=True)

    @classmethod
    def from_file(cls, path: str | Path) -> "BPETokenizer":
        """Load what `save` wrote.

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
        expected = dict(enumerate(SPECIAL)) | {
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
        """Write one JSON file, in the format of the library `tokenizers`."""
        Path(path).write_text(self._backend.to_str(), encoding="utf-8")

    def decode(self, ids: Iterable[int]) -> str:
        return self._backend.decode([int(i) for i in ids], skip_special_tokens=True)

    def piece(self, index: int) -> str:
        require_id(index, self.vocab_size)
        return self._backend.id_to_token(int(index)) or ""

    @property
    def fingerprint(self) -> str:
        """The sha256, in hex, of the normalization, the pieces with their scores, and their ids."""
        parts = json.loads(self._backend.to_str())
        kept = [parts["normalizer"], parts["pre_tokenizer"], parts["model"]["vocab"]]
        kept.append(parts["model"]["merges"])
        kept.append([[token["id"], token["content"]] for token in parts["added_tokens"]])
        text = json.dumps(kept, sort_keys=True, ensure_ascii=True)
        return hashlib.sha256(text.encode()).hexdigest()


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> BPETokenizer:
    """Learn a BPE vocabulary from texts. The same texts give the same vocabulary.

    It is BPE because the Unigram trainer of `tokenizers` builds its first pieces from substrings
    that occur in two different words, and so misses the commonest whole words.

    Args:
        texts: Texts to learn from; 10 million characters are enough.
        vocab_size: Number of ids, including the 3 special ones and the 100 sentinels. Texts with
            too few different words give fewer ids.

    Raises:
        ValueError: The vocabulary has no room for pieces, or there is no text.
    """
    least = len(SPECIAL) + SENTINELS + 1
    if vocab_size < least:
        raise ValueError(
            f"vocab_size is {vocab_size}, expected {least} or more: "
            f"{len(SPECIAL)} special ids, {SENTINELS} sentinels and the pieces"
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
    # The alphabet is chosen here because the trainer breaks ties between rare characters at random.
    characters = Counter(c for text in texts for c in unicodedata.normalize("NFKC", text))
    characters = {c: n for c, n in characters.items() if not c.isspace()}
    ranked = sorted(characters, key=lambda c: (-characters[c], c))
    size = min(_ALPHABET, vocab_size - SENTINELS - len(SPECIAL))
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - SENTINELS,
        special_tokens=list(SPECIAL),
        initial_alphabet=["▁", *ranked][:size],
        limit_alphabet=size,
        min_frequency=2,
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer=trainer, length=len(texts))
    backend.add_special_tokens([f"<extra_id_{i}>" for i in reversed(range(SENTINELS))])
    return BPETokenizer(backend)
