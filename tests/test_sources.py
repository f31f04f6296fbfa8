"""Rows of .jsonl, .csv, .tsv and .parquet files, and one clear line for each way to be wrong."""

import random
from typing import NamedTuple

import pyarrow
import pyarrow.parquet
import pytest

from spt_jax.data import files
from spt_jax.errors import shorten, suggest


class Row(NamedTuple):
    """What a row of a file says, as text, and its line."""

    fields: dict
    line: int


def read_records(path):
    return files.read_records(str(path))


def read_rows(path):
    """The texts of every row; a field that is missing is left out."""
    rows = []
    for record in read_records(path):
        texts = {name: record.written(name, "task.template") for name in record.values}
        line = int(record.place.rpartition(":")[2])
        rows.append(Row({name: text for name, text in texts.items() if text is not None}, line))
    return rows


@pytest.fixture
def write(tmp_path):
    def write(name, content):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def test_jsonl_values_become_text_and_null_is_missing(write):
    path = write("a.jsonl", '{"t": "a b", "n": 1, "x": null}\n\n  \n{"b": true, "l": "é"}')
    assert read_rows(path) == [
        Row({"t": "a b", "n": "1"}, 1),
        Row({"b": "true", "l": "é"}, 4),
    ]


def test_jsonl_half_characters_are_replaced(write):
    assert read_rows(write("a.jsonl", r'{"t": "a\ud800b"}')) == [Row({"t": "a?b"}, 1)]


def test_tsv_has_no_quotes(write):
    path = write("a.tsv", 'text\t label \n"open\t1\n\nhe said ""\t0\n')
    assert read_rows(path) == [
        Row({"text": '"open', "label": "1"}, 2),
        Row({"text": 'he said ""', "label": "0"}, 4),
    ]


def test_csv_has_the_usual_quotes_and_lines_are_counted(write):
    path = write("a.csv", 'text,label\n"two\nlines, ""quoted""",1\n\nplain,0\n')
    assert read_rows(path) == [
        Row({"text": 'two\nlines, "quoted"', "label": "1"}, 2),
        Row({"text": "plain", "label": "0"}, 5),
    ]


@pytest.mark.parametrize("ending", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("name", ["a.tsv", "a.TSV", "a.csv"])
def test_line_endings_and_byte_order_mark(write, name, ending):
    separator = "," if name.endswith("csv") else "\t"
    lines = [separator.join(cells) for cells in (("text", "label"), ("x\u2028y", "1"), ("z", "2"))]
    path = write(name, "\ufeff" + ending.join(lines) + ending)
    assert read_rows(path) == [
        Row({"text": "x\u2028y", "label": "1"}, 2),
        Row({"text": "z", "label": "2"}, 3),
    ]


@pytest.fixture
def parquet(tmp_path):
    rows = [
        {"t": "é", "n": 1, "b": True, "x": None, "l": ["a"], "o": {"k": 2}},
        {"t": "z", "n": 2, "b": False, "x": 0.5, "l": [], "o": {"k": 3}},
    ]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    return tmp_path / "a.parquet"


def test_parquet_values_become_text_or_keep_their_type(parquet):
    first, record = read_records(parquet)
    scalars = [first.written(name, "task.template") for name in ("t", "n", "b", "x")]
    assert scalars == ["é", "1", "true", None]
    assert [first.written(name, "task.template") for name in ("l[0]", "o[k]")] == ["a", "2"]
    assert record.written("x", "task.template") == "0.5"
    assert record.place == f"{parquet}:2" and record.values["o"] == {"k": 3}


def test_damaged_parquet_is_one_line_or_rows(parquet):
    whole, rng = parquet.read_bytes(), random.Random(0)
    refused = 0
    for number in range(600):
        data = bytearray(whole)
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        parquet.write_bytes(data[: rng.randrange(len(data))] if number % 3 == 0 else data)
        try:
            read_records(parquet)
        except ValueError as error:
            refused += 1
            assert "\n" not in str(error) and len(str(error)) < 400
    assert refused > 200


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv"])
def test_records_keep_the_types_of_the_file(write, name):
    content = {"a.jsonl": '{"t": "a", "n": 1, "l": ["b"]}', "a.csv": "t,n\na,1\n"}[name]
    (record,) = read_records(write(name, content))
    expected = {"t": "a", "n": 1, "l": ["b"]} if name == "a.jsonl" else {"t": "a", "n": "1"}
    assert record.values == expected
    assert record.place.endswith(f"{name}:{1 if name == 'a.jsonl' else 2}")


def test_missing_file_suggests_its_neighbour(write, tmp_path):
    write("train.tsv", "a\n1\n")
    with pytest.raises(FileNotFoundError, match=r"trian.tsv' does not exist.*mean 'train.tsv'"):
        read_rows(tmp_path / "trian.tsv")
    with pytest.raises(FileNotFoundError, match="does not exist, nor does its folder"):
        read_rows(tmp_path / "none" / "train.tsv")


def test_other_suffixes_and_folders(write, tmp_path):
    with pytest.raises(
        ValueError,
        match=r"suffix '.txt', expected a file in .jsonl, .ndjson, .json, .csv, .tsv, .p",
    ):
        read_rows(write("a.txt", "x"))
    (tmp_path / "folder.tsv").mkdir()
    with pytest.raises(ValueError, match=r"folder.tsv' is a folder, expected a file"):
        read_rows(tmp_path / "folder.tsv")


@pytest.mark.parametrize(("name", "line"), [("a.tsv", 3), ("a.csv", 3), ("a.jsonl", 3)])
def test_latin_1_bytes(write, name, line):
    path = write(name, b"text\nfine\ncaf\xe9\n")
    with pytest.raises(ValueError, match=rf"{name}:{line}: byte 0xe9 at offset 13 is not UTF-8"):
        read_rows(path)


@pytest.mark.parametrize("bad", ['{"a": 1', "[" * 100_000, "text\tlabel"])
def test_malformed_jsonl_names_its_line(write, bad):
    with pytest.raises(ValueError, match=r"a.jsonl:2: not JSON \(.*expected one object per line"):
        read_rows(write("a.jsonl", f'{{"a": 1}}\n{bad}\n'))


@pytest.mark.parametrize("bad", ["[1]", '"text"', "3", "null"])
def test_jsonl_line_that_is_no_object(write, bad):
    with pytest.raises(ValueError, match=r"a.jsonl:1: no object: .*expected one object per line"):
        read_rows(write("a.jsonl", bad))


@pytest.mark.parametrize("bad", ['x,"unclosed', 'x,"a"b'])
def test_malformed_csv_names_its_line(write, bad):
    with pytest.raises(ValueError, match=r"a.csv:3: not CSV \("):
        read_rows(write("a.csv", f"text,label\nx,y\n{bad}"))


@pytest.mark.parametrize("row", ["only one", "one\ttwo\tthree"])
def test_row_of_another_width(write, row):
    with pytest.raises(ValueError, match=r"a.tsv:3: [13] columns, expected 2 .*: text, label"):
        read_rows(write("a.tsv", f"text\tlabel\na\tb\n{row}\n"))


@pytest.mark.parametrize("header", ["text\ttext", "text\t"])
def test_column_without_a_name_of_its_own(write, header):
    with pytest.raises(ValueError, match=r"a.tsv:1: the column name '(text)?' is empty or occurs"):
        read_rows(write("a.tsv", f"{header}\na\tb\n"))


@pytest.mark.parametrize(
    ("name", "content"),
    [("a.tsv", ""), ("a.tsv", "text\tlabel\n"), ("a.csv", "text,label"), ("a.jsonl", "\n\n")],
)
def test_empty_dataset(write, name, content):
    with pytest.raises(ValueError, match=f"{name}' has no rows; expected"):
        read_rows(write(name, content))


def test_errors_stay_on_one_line(write):
    with pytest.raises(ValueError, match="not JSON") as caught:
        read_rows(write("a.jsonl", "x " * 5000))
    assert len(str(caught.value)) < 400
    assert "\n" not in str(caught.value)
    assert shorten("a\n b", 60) == "a b"


def test_suggestions_ignore_case():
    assert suggest("Sentense", ["label", "sentence"]) == " (did you mean 'sentence'?)"
    assert suggest("xyz", ["label", "sentence"]) == ""
