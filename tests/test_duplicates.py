"""Near-duplicates are found by the word sequences that texts share."""

from spt_jax.data.builtin.duplicates import ShingleIndex, near_duplicates, word_digest, words

LONG = "computes the weighted mean of every column and ignores the rows that hold no number at all"


def test_words_ignore_case_punctuation_and_underscores():
    assert words("Return_the `Mean`,\n2x.") == ["return", "the", "mean", "2x"]


def test_near_duplicates_keep_the_first_of_one_label_and_none_of_two():
    other = "opens a file for reading and returns its handle to the caller unless it is locked"
    texts = [LONG, LONG + " indeed and more words", other, other.replace("file", "pipe"), "short"]
    assert near_duplicates(texts, ["a", "a", "a", "a", "a"]) == {1, 3}
    assert near_duplicates(texts, ["a", "a", "a", "b", "b"]) == {1, 2, 3}


def test_index_can_look_one_way_only():
    start = " ".join(LONG.split()[:8])
    both, one = ShingleIndex(), ShingleIndex(either_way=False)
    for index in (both, one):
        index.add(7, LONG)
        assert index.alike(f"before {LONG} after") == [7]
        assert index.alike("nothing of the kind is written here") == []
    assert both.alike(start) == [7]
    assert one.alike(start) == []


def test_digest_is_of_the_words_alone():
    assert word_digest(LONG) == word_digest(LONG.upper().replace(" ", " \n  ") + ".")
    assert word_digest(LONG) != word_digest(LONG + " too")
