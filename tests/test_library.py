"""The task `library`: its texts name no library, its splits stay apart, pretraining avoids them."""

import re
from collections import Counter

import pytest

from spt_jax.data.builtin import library
from spt_jax.data.builtin.duplicates import ShingleIndex
from spt_jax.data.builtin.library import (
    LIBRARIES,
    clean_text,
    drop_held_out,
    held_out,
    library_rows,
    split_of,
)

LONG = "computes the weighted mean of every column and ignores the rows that hold no number at all"


SHARES = [
    pytest.param(0.2, id="a fifth"),
    pytest.param(1.0, id="all", marks=pytest.mark.slow),  # half a minute
]


@pytest.fixture(scope="module", params=SHARES)
def share(request):
    """The share of the docstrings of each class that are read."""
    return request.param


@pytest.fixture(scope="module")
def rows(share, tmp_path_factory):
    """Rows of real docstrings, the second time from the cache."""
    with pytest.MonkeyPatch.context() as patch:
        if share < 1:  # the name of the file in the cache does not say how many were read
            patch.setenv("SPT_JAX_CACHE", str(tmp_path_factory.mktemp("cache")))
            patch.setattr(library, "POOL_PER_CLASS", int(share * library.POOL_PER_CLASS))
        library_rows()
        patch.setattr(library, "_select_rows", lambda: pytest.fail("the cache was not used"))
        return library_rows()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Like np.array or\n  jax.numpy.array.", "Like array or array."),
        ("NumPy's way, in numpy. Then more.", "'s way, in . Then more."),
        ("see from_numpy, hf_hub_download and tfds.load", "see from_, download and load"),
        ("HfApi, JaxArray, ModelHubMixin and GitHub", "Api, Array, ModelMixin and GitHub"),
        ("the Hugging Face Hub, huggingface.co", "the , co"),
        ("a sparse dataset transformer snippet", "a sparse dataset transformer snippet"),
    ],
)
def test_names_of_libraries_are_removed(text, expected):
    assert clean_text(text) == expected


def test_cleaned_text_is_cut_at_a_word_and_stays_clean():
    text = clean_text("word " * 300)
    assert len(text) <= 600
    assert text.endswith(" word")
    assert clean_text(text) == text
    assert len(clean_text("x" * 1000)) == 600


def test_split_depends_on_words_alone():
    assert split_of(LONG) == split_of(LONG.upper().replace(" ", " \n  ") + ".")
    splits = Counter(split_of(f"text number {i}") for i in range(4000))
    assert 500 < splits["test"] < 700
    assert 320 < splits["dev"] < 480
    assert all(held_out(t) == (split_of(t) != "train") for t in map(str, range(100)))


def test_library_rows_are_many_and_balanced(rows, share):
    assert list(rows) == ["train", "dev", "test"]
    assert len(rows["test"]) >= 1000 * share
    for split in rows.values():
        counts = Counter(row.label for row in split)
        assert set(counts) == set(LIBRARIES)
        assert max(counts.values()) < 0.2 * len(split)
    totals = Counter(row.label for split in rows.values() for row in split)
    assert max(totals.values()) <= library.ROWS_PER_CLASS


def test_library_rows_name_no_library(rows):
    names = re.compile(
        r"(?<![a-z0-9])(numpy|np|scipy|jax|jnp|python|transformers|tfds|datasets|orbax|ocp|hf"
        r"|huggingface_hub|huggingface|hugging face|hub)(?![a-z0-9])",
        re.IGNORECASE,
    )
    found = [row for split in rows.values() for row in split if names.search(row.text)]
    assert found == []


def test_library_rows_are_clean_and_in_their_split(rows):
    for name, split in rows.items():
        for row in split:
            assert 40 <= len(row.text) <= 600
            assert clean_text(row.text) == row.text
            assert split_of(row.text) == name


def test_library_rows_have_no_near_duplicates_across_splits(rows):
    index = ShingleIndex()
    for number, row in enumerate(rows["train"]):
        index.add(number, row.text)
    for name in ("dev", "test"):
        assert [row for row in rows[name] if index.alike(row.text)] == []


def test_pretraining_sees_no_held_out_row_in_any_form(rows):
    row = max(rows["test"], key=lambda row: len(row.text)).text
    half = " ".join(row.split()[: int(0.7 * len(row.split()))])
    fresh = next(t for t in (f"{LONG} {i}" for i in range(99)) if not held_out(t))
    around = f"{fresh}\n\n  {row}\n{fresh}"
    unlisted = next(t for t in (f"{LONG} {i}" for i in range(99)) if held_out(t))
    texts = [row, half, around, fresh, row.upper(), unlisted]
    assert drop_held_out(texts, rows) == [fresh]
    train = [row.text for row in rows["train"][:200]]
    assert drop_held_out(train, rows) == train


def test_library_task_without_one_of_its_packages(monkeypatch):
    monkeypatch.setitem(LIBRARIES, "gone", ("gone", "gone-dist", ("gone",)))
    with pytest.raises(ValueError, match="rows of 'library'.*gone-dist.*install gone-dist"):
        library_rows()
