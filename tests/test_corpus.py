"""What text a backbone is pretrained on, and what is kept out of it."""

import lzma

import pytest

from spt_jax.data.builtin.docstrings import Docstring
from spt_jax.data.builtin.library import held_out
from spt_jax.pretraining import corpus as corpus_module
from spt_jax.pretraining.corpus import Corpus, Excerpt, drop_repeated, read_corpus

NINE = "one two three four five six seven eight nine"


def write_books(folder, count=3, paragraphs=2):
    books = [
        "".join(f"Book {b} says line {p}.\n  It goes on.\n" for p in range(paragraphs))
        for b in range(count)
    ]
    path = folder / "books.txt"
    path.write_text("\f".join(books), encoding="utf-8")
    return path


def test_texts_that_repeat_earlier_ones_are_dropped():
    texts = [
        NINE,
        f"{NINE} ten",  # two of three 8-grams were seen
        "short",
        "short",
        "completely different words that nobody has written in this list before now",
        "",
        "",
    ]
    assert drop_repeated(texts) == [0, 2, 4, 5]
    assert drop_repeated([]) == []


def test_a_text_that_repeats_itself_is_kept():
    assert drop_repeated([" ".join(["same"] * 40)]) == [0]


def test_eight_grams_never_span_two_texts():
    words = NINE.split()
    halves = [" ".join(words[:5]), " ".join(words[5:])]
    assert drop_repeated([*halves, NINE]) == [0, 1, 2]


def test_books_become_excerpts_of_one_line(tmp_path):
    path = write_books(tmp_path)
    found = read_corpus(packages=(), text_files=[path])
    assert found.docstrings == ()
    assert [e.book for e in found.excerpts] == [0, 1, 2]
    assert found.excerpts[1] == Excerpt(
        "Book 1 says line 0. It goes on. Book 1 says line 1. It goes on.", None, None, 1
    )


def test_long_books_are_cut_between_paragraphs(tmp_path):
    path = write_books(tmp_path, count=1, paragraphs=3000)
    excerpts = read_corpus(packages=(), text_files=[path]).excerpts
    assert len(excerpts) > 2
    assert all(e.text.startswith(("Book 0 says line", "It goes on.")) for e in excerpts)
    assert " ".join(e.text for e in excerpts).split() == path.read_text().split()


def test_packed_files_read_the_same(tmp_path):
    path = write_books(tmp_path)
    packed = tmp_path / "packed.txt.xz"
    packed.write_bytes(lzma.compress(path.read_bytes()))
    plain = read_corpus(packages=(), text_files=[path])
    assert read_corpus(packages=(), text_files=[packed]) == plain


def test_books_of_two_files_have_different_numbers(tmp_path):
    path = write_books(tmp_path)
    found = read_corpus(packages=(), text_files=[path, path])
    assert [e.book for e in found.excerpts] == [0, 1, 2, 3, 4, 5]


def test_titles_and_authors_come_from_the_list_beside(tmp_path):
    path = write_books(tmp_path)
    (tmp_path / "books_list.txt").write_text("A. Writer/First.md\nSecond\nB/Third\n")
    found = read_corpus(packages=(), text_files=[path])
    assert [(e.title, e.author) for e in found.excerpts] == [
        ("First", "A. Writer"),
        ("Second", None),
        ("Third", "B"),
    ]


def test_list_of_another_length_is_refused(tmp_path):
    path = write_books(tmp_path)
    (tmp_path / "books_list.txt").write_text("First\n")
    with pytest.raises(ValueError, match="books_list.txt' lists 1 books, expected 3"):
        read_corpus(packages=(), text_files=[path])


def test_sample_of_the_books_is_capped_and_seeded(tmp_path):
    path = write_books(tmp_path, count=40)

    def sample(seed):
        return read_corpus(
            packages=(), text_files=[path], max_text_characters=1000, seed=seed
        ).excerpts

    assert 900 < sum(len(e.text) for e in sample(0)) <= 1000
    assert sample(0) == sample(0)
    assert sample(0) != sample(1)


def test_split_is_disjoint_and_whole_and_by_content(tmp_path):
    found = read_corpus(packages=(), text_files=[write_books(tmp_path, count=400)])
    train, held = found.split(0.1)
    assert 15 <= len(held.excerpts) <= 70
    assert sorted(e.book for e in train.excerpts + held.excerpts) == list(range(400))
    alone = Corpus((), held.excerpts[:1])
    assert alone.split(0.1) == (Corpus((), ()), alone)


def test_sample_texts_stops_at_the_number_of_characters(tmp_path):
    found = read_corpus(packages=(), text_files=[write_books(tmp_path, count=100)])
    texts = found.sample_texts(1000)
    assert 1000 <= sum(map(len, texts)) < 1100
    assert set(texts) <= set(found.texts())
    assert texts == found.sample_texts(1000)


def test_docstrings_held_out_of_the_library_task_are_left_out(monkeypatch):
    raw = [
        Docstring("p", "p.m", "function", "f", f"The  text\nnumber {n} of {n * 7} words")
        for n in range(40)
    ]
    monkeypatch.setattr(corpus_module, "read_docstrings", lambda packages: raw)
    monkeypatch.setattr(
        corpus_module, "drop_held_out", lambda texts: [t for t in texts if not held_out(t)]
    )
    found = read_corpus(packages=["p"])
    expected = [d for d in raw if not held_out(d.text)]
    assert 0 < len(expected) < len(raw)
    assert [d.text for d in found.docstrings] == [" ".join(d.text.split()) for d in expected]


def test_missing_text_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no.txt' does not exist"):
        read_corpus(packages=(), text_files=[tmp_path / "no.txt"])


def test_other_kinds_of_file_are_refused(tmp_path):
    path = tmp_path / "book.epub"
    path.write_text("text")
    with pytest.raises(ValueError, match="book.epub' is given, expected a name in .txt or .txt.xz"):
        read_corpus(packages=(), text_files=[path])


@pytest.mark.parametrize(("name", "content"), [("a.txt", b"\xff\xfe"), ("a.txt.xz", b"no xz")])
def test_broken_files_are_refused(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"{name}' cannot be read .* expected UTF-8 text"):
        read_corpus(packages=(), text_files=[path])


def test_empty_corpus_is_refused(tmp_path):
    path = tmp_path / "empty.txt"
    path.write_text("\n\f\n")
    with pytest.raises(ValueError, match="the corpus is empty"):
        read_corpus(packages=(), text_files=[path])
