"""Text to ids and back, the special ids, and that no text can produce one of them."""

import pytest

from spt_jax.tokenizers.base import SENTINELS
from spt_jax.tokenizers.bpe import BPETokenizer, train_tokenizer

TEXTS = [
    "The quick brown fox jumps over the lazy dog, and the dog does not care.",
    "Return the number of items in a container. Raises: ValueError if it is empty.",
    "def read_rows(path): reads the rows of a file (path) one by one, 10 or 20 at a time!",
] * 3


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS, 220)


def test_special_ids_and_sentinels_stand_where_t5_has_them(tokenizer):
    assert tokenizer.vocab_size == 220
    assert [tokenizer.piece(i) for i in range(3)] == ["<pad>", "</s>", "<unk>"]
    assert (tokenizer.pad_id, tokenizer.eos_id, tokenizer.unk_id) == (0, 1, 2)
    assert tokenizer.sentinel(0) == 219
    assert [tokenizer.piece(tokenizer.sentinel(i)) for i in (0, 99)] == [
        "<extra_id_0>",
        "<extra_id_99>",
    ]


@pytest.mark.parametrize("text", TEXTS[:3])
def test_decode_gives_the_text_back(tokenizer, text):
    ids = tokenizer.encode(text)
    assert len(ids) < len(text)
    assert tokenizer.decode(ids) == text


def test_batch_equals_one_by_one(tokenizer):
    assert tokenizer.encode_batch([*TEXTS[:3], ""]) == [
        *(tokenizer.encode(text) for text in TEXTS[:3]),
        [],
    ]


def test_texts_can_be_put_together_as_ids(tokenizer):
    parts = ["the lazy dog:", "reads the", "(path) one"]
    joined = [i for part in parts for i in tokenizer.encode(part)]
    assert joined == tokenizer.encode(" ".join(parts))


def test_whitespace_and_compatibility_characters_are_normalized(tokenizer):
    assert tokenizer.encode("  the\n\n dog\t") == tokenizer.encode("the dog")
    assert tokenizer.encode("ﬁle") == tokenizer.encode("file")


def test_commonest_word_is_one_piece(tokenizer):
    assert [tokenizer.piece(i) for i in tokenizer.encode("the")] == ["▁the"]


@pytest.mark.parametrize("text", ["</s>", "<pad>", "<extra_id_0>", "a </s> b"])
def test_text_never_becomes_a_special_id(tokenizer, text):
    ids = tokenizer.encode(text)
    assert ids
    first_sentinel = tokenizer.sentinel(SENTINELS - 1)
    assert all(i > 1 and i < first_sentinel for i in ids)


def test_decode_leaves_special_ids_out(tokenizer):
    ids = [tokenizer.sentinel(0), *tokenizer.encode("the dog"), 1, 0, 0]
    assert tokenizer.decode(ids) == "the dog"


def test_save_and_load_keep_ids_fingerprint_and_safety(tokenizer, tmp_path):
    path = tmp_path / "tokenizer.json"
    tokenizer.save(path)
    loaded = BPETokenizer.from_file(path)
    assert loaded.fingerprint == tokenizer.fingerprint
    assert loaded.vocab_size == tokenizer.vocab_size
    text = "the </s> fox"
    assert loaded.encode(text) == tokenizer.encode(text)


def test_fingerprint_tells_vocabularies_apart(tokenizer):
    other = train_tokenizer(TEXTS, 210)
    assert len(tokenizer.fingerprint) == 64
    assert other.fingerprint != tokenizer.fingerprint


def test_training_twice_gives_the_same_vocabulary(tokenizer):
    assert train_tokenizer(iter(TEXTS), 220).fingerprint == tokenizer.fingerprint


def test_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="tokenizer file .*nothing.json' does not exist"):
        BPETokenizer.from_file(tmp_path / "nothing.json")


def test_broken_file_is_named(tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_text("{")
    with pytest.raises(ValueError, match="tokenizer.json' cannot be read .*expected a tokenizer"):
        BPETokenizer.from_file(path)


def test_tokenizer_with_other_special_ids_is_refused(tokenizer, tmp_path):
    path = tmp_path / "tokenizer.json"
    tokenizer.save(path)
    path.write_text(path.read_text().replace("<pad>", "<pod>"))
    with pytest.raises(ValueError, match="has '<pod>' at id 0, expected '<pad>'"):
        BPETokenizer.from_file(path)


def test_vocabulary_without_room_for_pieces_is_refused():
    with pytest.raises(ValueError, match="vocab_size is 103, expected 104 or more"):
        train_tokenizer(TEXTS, 103)


def test_vocabulary_is_never_larger_than_asked_for():
    assert train_tokenizer(TEXTS, 110).vocab_size == 110


def test_training_on_nothing_is_refused():
    with pytest.raises(ValueError, match="no text is given"):
        train_tokenizer([" ", ""], 220)


def test_ids_and_sentinels_out_of_range_are_refused(tokenizer):
    with pytest.raises(ValueError, match="token id 220 is given, expected 0 to 219"):
        tokenizer.piece(220)
    with pytest.raises(ValueError, match="sentinel 100 is given, expected 0 to 99"):
        tokenizer.sentinel(100)
