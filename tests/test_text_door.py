"""Whatever wrote a table, its texts come back as they were, or one line says what is wrong."""

import bz2
import csv
import dataclasses
import datetime
import decimal
import gzip
import io
import json
import lzma
import math
import os
import unicodedata
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import yaml
from fixtures.make_tables import ROWS
from hypothesis import given, settings
from hypothesis import strategies as st
from support.gcs import bucket_for

from spt_jax.config.fields import to_dict
from spt_jax.config.train import TaskConfig, TrainConfig
from spt_jax.data.files import Reading, read_file, read_records, read_table
from spt_jax.data.places import File, open_folder
from spt_jax.data.tasks import load_task
from spt_jax.runs.folder import RunFolder

FIXTURES = Path(__file__).parent / "fixtures"


@pytest.fixture
def write(tmp_path):
    def write(name, content):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(path)

    return write


def texts(records, field="text"):
    return [record.written(field, "task.template") for record in records]


def load(source, **options):
    given = {"dev_source": source, "test_source": source, "template": "{text}", "label": "label"}
    return load_task(TaskConfig(source=source, **(given | options)))


# Tables of every writer ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", sorted(p.name for p in FIXTURES.iterdir() if p.name.startswith(("pandas", "polars")))
)
def test_what_pandas_and_polars_write_comes_back(name):
    records = read_records(str(FIXTURES / name))
    assert texts(records) == [row["text"] for row in ROWS]
    assert texts(records, "label") == [row["label"] for row in ROWS]
    assert texts(records, "share") == [str(row["share"]) for row in ROWS]
    assert set(records[0].values) == {"text", "label", "number", "share"}  # and no index


@pytest.mark.parametrize("name", ["typed_pandas.parquet", "typed_polars.parquet"])
def test_parquet_bytes_decimals_dates_and_short_floats_are_written_as_a_person_would(name):
    records = read_records(str(FIXTURES / name))
    assert [[record.written(name, "x") for name in record.values] for record in records] == [
        ["bytes", "1.50", "2024-01-31", "2024-01-31 12:30:00", "0.1", "a"],
        ["café", "1000.00", "1999-12-01", "2024-01-31 12:30:01", "2.5", None],
    ]


odd = st.text(
    st.sampled_from("ab \"'\t\n\r,;|\\\u2028\u2029\x85\x0b\ufeff½é漢🙂{}<>[]\x00\x1b\u200b\u0301"),
    max_size=12,
)
rows = st.lists(
    st.fixed_dictionaries(
        {
            "text": st.one_of(st.none(), odd, st.text(max_size=6)),
            "label": st.sampled_from(["yes", "no", 'a "b"', "1", "naïve"]),
            "number": st.one_of(
                st.none(), st.integers(-(2**60), 2**60), st.floats(), st.booleans(), st.just(0.1)
            ),
            "day": st.one_of(st.none(), st.dates(), st.datetimes()),
        }
    ),
    min_size=1,
    max_size=4,
)


COLUMNS = ("text", "label", "number", "day")


def plain(value):
    """What the writers of text are given: they have no dates and no null of their own."""
    if isinstance(value, (datetime.date, datetime.datetime)):
        return value.isoformat(sep=" ") if isinstance(value, datetime.datetime) else str(value)
    return "" if value is None or value != value else value


def as_table(table, **options):
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, **options)
    writer.writerow(COLUMNS)
    writer.writerows([plain(row[column]) for column in COLUMNS] for row in table)
    return buffer.getvalue().encode("utf-8", "surrogatepass")


def as_json(table, **options):
    plain_rows = [
        {k: plain(v) if isinstance(v, datetime.date) else v for k, v in row.items()}
        for row in table
    ]
    return json.dumps(plain_rows, **options).encode("utf-8", "surrogatepass")


def as_jsonl(table):
    return b"\n".join(as_json([row])[1:-1] for row in table)


def as_parquet(table):
    kinds = {
        "text": pyarrow.string(),
        "label": pyarrow.dictionary(pyarrow.int32(), pyarrow.string()),
        "number": pyarrow.float64(),
        "day": pyarrow.timestamp("us"),
    }
    numbers = [None if row["number"] is None else float(row["number"]) for row in table]
    days = [row["day"] and datetime.datetime.fromisoformat(row["day"].isoformat()) for row in table]
    columns = {name: [row[name] for row in table] for name in ("text", "label")}
    columns |= {"number": numbers, "day": days}
    buffer = io.BytesIO()
    arrays = {name: pyarrow.array(columns[name], kind) for name, kind in kinds.items()}
    pyarrow.parquet.write_table(pyarrow.table(arrays), buffer)
    return buffer.getvalue()


WRITERS = {
    "a.csv": as_table,
    "a.tsv": lambda table: as_table(table, delimiter="\t", lineterminator="\n"),
    "all.tsv": lambda table: as_table(table, delimiter="\t", quoting=csv.QUOTE_ALL),
    "a.jsonl": as_jsonl,
    "a.json": as_json,
    "indented.json": lambda table: as_json(table, indent=1, ensure_ascii=False),
    "a.parquet": as_parquet,
}


def expected(name, column, value):
    """The text of a value; None where it is missing."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if name.endswith("parquet") and column == "number":
        value = float(value)
    if name.endswith("parquet") and column == "day" and not isinstance(value, datetime.datetime):
        value = datetime.datetime(value.year, value.month, value.day)
    if isinstance(value, bool):
        text = str(value).lower() if name.endswith(("json", "jsonl")) else str(value)
    else:
        text = str(plain(value))
    if name.endswith(("csv", "tsv")):
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    text = text.encode("utf-8", "replace").decode()
    return text if is_visible(text) else None


def is_visible(text):
    return any(unicodedata.category(c) not in ("Cc", "Cf", "Zs", "Zl", "Zp") for c in text)


@pytest.mark.parametrize("name", WRITERS)
@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(table=rows)
def test_any_table_comes_back_or_one_error_names_the_line(name, table):
    data = WRITERS[name](table)
    try:
        records, _ = read_file(File(name, lambda: data))
        found = [[r.written(column, "x") for column in COLUMNS] for r in records]
    except ValueError as error:
        assert str(error).startswith(f"{name}:") and "\n" not in str(error)
        allowed = (float("inf"), -float("inf"))
        broken = any(row["number"] in allowed for row in table) or b"\x00" in data
        assert broken or (b"\r" in data and name == "a.tsv"), error
        return
    assert found == [[expected(name, c, row[c]) for c in COLUMNS] for row in table]


@pytest.mark.parametrize("name", ["a.csv", "a.tsv"])
@pytest.mark.parametrize("cell", ["\r;", "x\ry", "y\r"])
def test_a_carriage_return_without_quotes_is_not_taken_for_the_end_of_a_row(name, cell):
    delimiter = "," if name == "a.csv" else "\t"
    lines = f"text{delimiter}label\n{cell}{delimiter}a\n"
    with pytest.raises(ValueError, match=f"^{name}:2: .*line break in .quotes"):
        read_file(File(name, lines.encode))
    quoted = f'text{delimiter}label\n"{cell}"{delimiter}a\n'
    [record], _ = read_file(File(name, quoted.encode))
    assert record.written("text", "x") == cell.replace("\r", "\n")


# One notion of missing -----------------------------------------------------------------------

MISSING = {
    "nan.jsonl": '{"text": NaN, "label": "a"}',
    "null.jsonl": '{"text": null, "label": "a"}',
    "empty.jsonl": '{"text": " ", "label": "a"}',
    "invisible.jsonl": '{"text": "\\u200b\\ufeff\\u0000 ", "label": "a"}',
    "empty.csv": "text,label\n,a",
    "empty.tsv": "text\tlabel\n\ta",
    "nan.parquet": [{"text": float("nan"), "label": "a"}],
    "null.parquet": [{"text": None, "label": "a"}],
}
FULL = {
    ".jsonl": '\n{"text": "x", "label": "b"}',
    ".csv": "\nx,b",
    ".tsv": "\nx\tb",
}


def write_missing(write, name, swap=False):
    content = MISSING[name]
    names = ("text", "label") if not swap else ("label", "text")
    if isinstance(content, list):
        kind = pyarrow.float64() if "nan" in name else pyarrow.string()
        buffer = io.BytesIO()
        value = [content[0]["text"], 1.5 if "nan" in name else "x"]
        arrays = [pyarrow.array(value, kind), pyarrow.array(["a", "b"])]
        pyarrow.parquet.write_table(pyarrow.table(dict(zip(names, arrays))), buffer)
        return write(name, buffer.getvalue())
    content += FULL[Path(name).suffix]
    if swap:
        content = content.replace("text", "?").replace("label", "text").replace("?", "label")
    return write(name, content)


@pytest.mark.parametrize("name", MISSING)
def test_missing_texts_are_counted_and_refused_or_skipped_or_empty(write, name):
    source = write_missing(write, name)
    with pytest.raises(ValueError, match=r"1 of 2 rows of .* have nothing .* in text .*:[12]; set"):
        load(source)
    skipped = load(source, missing="skip")
    assert len(skipped.splits["train"]) == 1
    assert any("1 of 2 rows" in note and "left out" in note for note in skipped.notes)
    kept = load(source, missing="empty")
    assert [e.inputs for e in kept.splits["train"]][0] == ""
    assert any("1 of 2 rows" in note and "kept" in note for note in kept.notes)


@pytest.mark.parametrize("name", MISSING)
def test_a_missing_label_is_an_error_by_line(write, name):
    source = write_missing(write, name, swap=True)
    for options in ({}, {"free_text": True}, {"missing": "skip"}):
        with pytest.raises(
            ValueError, match=r":[12]: field 'label' of task.label is empty, null o"
        ):
            load(source, **options)


def test_leaving_out_every_row_leaves_none(write):
    source = write("a.csv", "text,label\n,a\n,b\n")
    with pytest.raises(ValueError, match="2 of 2 rows .* leaving them out leaves no row"):
        load(source, missing="skip")


@pytest.mark.parametrize("word", ["nan", "NaN", "<NA>", "NaT"])
def test_a_label_that_is_how_a_missing_number_is_written(write, word):
    source = write("a.csv", f"text,label\nx,1.0\ny,{word}\n")
    with pytest.raises(ValueError, match=f"a.csv:3: label '{word}' is how a missing number is"):
        load(source)
    assert load(source, label_words=["1.0", word]).label_words == ("1.0", word)


# Values inside values ------------------------------------------------------------------------

NESTED = '{"text": {"q": "why", "n": [3, {"k": "v"}]}, "label": "a"}'


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{text[q]}", "why"),
        ("{text[n][0]}", "3"),
        ("{text[n][1][k]}", "v"),
        ("{text[n][-1][k]}", "v"),
    ],
)
def test_what_is_inside_a_list_or_an_object_is_addressed(write, template, text):
    assert load(write("a.jsonl", NESTED), template=template).splits["train"][0].inputs == text


def test_a_label_is_addressed_too(write):
    row = '{"text": "x", "answers": {"text": ["y", "z"]}, "a[b]": "own"}'
    source = write("a.jsonl", row)
    for label, target in (("answers[text][0]", "y"), ("answers[text][1]", "z"), ("a[b]", "own")):
        assert load(source, label=label).splits["train"][0].targets == target
    with pytest.raises(ValueError, match="field 'answers.text..2.' of task.label is empty, null"):
        load(source, label="answers[text][2]")


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{text}", r"'text' of task.template is an object with the keys q, n, .* such as text.q."),
        ("{text[n]}", r"'text.n.' of task.template is a list of 2 items, .* such as text.n..0."),
        ("{text[w]}", r"'text' of task.template has no key 'w'; its keys: q, n"),
        ("{text[qq]}", r"has no key 'qq'; its keys: q, n \(did you mean 'q'"),
        ("{text[n][x]}", r"has no .x., because it is a list, whose items have numbers"),
        ("{text[q][0]}", r"'text.q.' of task.template has no .0., because it is one value"),
        ("{texts[q]}", r"the row has no field 'texts' of task.template; its fields: text, label"),
    ],
)
def test_a_list_or_an_object_is_no_text(write, template, message):
    with pytest.raises(ValueError, match=f"a.jsonl:1: .*{message}"):
        load(write("a.jsonl", NESTED), template=template)


def test_values_that_are_no_text(write):
    with pytest.raises(ValueError, match="'text' of task.template is inf of type float, expected"):
        load(write("a.jsonl", '{"text": Infinity, "label": "a"}'))
    path = write("a.parquet", b"")
    table = pyarrow.table({"text": [b"\xff"], "label": ["a"]})
    pyarrow.parquet.write_table(table, path)
    with pytest.raises(ValueError, match="a.parquet:1: .* is bytes that are not UTF-8"):
        load(path)


def test_lists_of_short_floats_and_nanoseconds(tmp_path):
    path = str(tmp_path / "a.parquet")
    columns = {
        "list": pyarrow.array([[0.1]], pyarrow.list_(pyarrow.float32())),
        "struct": pyarrow.array([{"k": 0.1}], pyarrow.struct([("k", pyarrow.float32())])),
        "half": pyarrow.array([1.5], pyarrow.float16()),
        "whole": pyarrow.array([1_700_000_000_000_000_000], pyarrow.timestamp("ns")),
        "nano": pyarrow.array([1_700_000_000_000_000_001], pyarrow.timestamp("ns")),
        "big": pyarrow.array([decimal.Decimal("1E+3")], pyarrow.decimal128(10, 0)),
    }
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    (record,) = read_records(path)
    fields = ("list[0]", "struct[k]", "half", "whole", "nano", "big")
    assert [record.written(field, "x") for field in fields] == [
        "0.1", "0.1", "1.5", "2023-11-14 22:13:20", "2023-11-14 22:13:20.000000001", "1000",
    ]  # fmt: skip


def test_short_floats_in_every_layout_and_times_that_python_does_not_have(tmp_path):
    path, short = str(tmp_path / "a.parquet"), pyarrow.float32()
    columns = {
        "large": pyarrow.array([[0.1]], pyarrow.large_list(short)),  # as polars writes
        "fixed": pyarrow.array([[0.1]], pyarrow.list_(short, 1)),
        "deep": pyarrow.array([[[{"k": 0.1}]]]).cast(
            pyarrow.large_list(pyarrow.list_(pyarrow.struct([("k", short)])))
        ),
        "map": pyarrow.array([[("k", 0.1)]], pyarrow.map_(pyarrow.string(), short)),
        "half": pyarrow.array([0.1], pyarrow.float16()),
        "late": pyarrow.array([300_000_000_000_000_000], pyarrow.timestamp("us")),
        "time": pyarrow.array([1_000], pyarrow.time64("ns")),
        "nano": pyarrow.array([1], pyarrow.time64("ns")),
    }
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    (record,) = read_records(path)
    fields = ("large[0]", "fixed[0]", "deep[0][0][k]", "map[0][1]", *list(columns)[4:])
    assert [record.written(field, "x") for field in fields] == [
        "0.1", "0.1", "0.1", "0.1", "0.1", "11476-08-15 05:20:00.000000", "00:00:00.000001",
        "00:00:00.000000001",
    ]  # fmt: skip


def test_two_columns_of_one_name_are_refused_in_every_format(write):
    table = pyarrow.table([["a"], ["b"]], names=["text", "text"])
    pyarrow.parquet.write_table(table, write("a.parquet", b""))
    write("a.csv", "text,text\na,b\n")
    write("a.jsonl", '{"text": "a", "text": "b"}')
    for name, message in (
        ("a.parquet", "cannot be read as Parquet .two columns have the name 'text'"),
        ("a.csv", "a.csv:1: the column name 'text' is empty or occurs twice"),
        ("a.jsonl", "a.jsonl:1: not JSON .the key 'text' occurs twice"),
    ):
        with pytest.raises(ValueError, match=message):
            read_records(str(Path(write("a.txt", "")).parent / name))


# Quotes --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "read_as"),
    [
        ('text\tlabel\n"open\t1\nhe said ""\t0\n', "none"),
        ('text\tlabel\n"quoted"\t1\nsays "x" twice\t0\n', "none"),
        ('text\tlabel\n"quoted"\t1\n', "none"),  # a writer of CSV has no reason for these quotes
        ('text\tlabel\n"says ""x"""\t1\nplain\t0\n', "csv"),
        ('text\tlabel\n"a\tb"\t1\nplain\t0\n', "csv"),
        ('text\tlabel\n"a\nb"\t1\nplain\t0\n', "csv"),
        ('text\tlabel\n"a\tb\nc"\t1\n', "csv"),
        ('"text"\t"label"\n"a"\t"1"\n', "csv"),
        ('text\tlabel\n"says ""x"""\t1\n""\t0\n', "csv"),  # polars has "" for an empty text
    ],
)
def test_quotes_of_a_tsv_are_read_as_they_were_written(write, content, read_as):
    path = write("a.tsv", content)
    found = [dict(r.values) for r in read_records(path)]
    assert found == [dict(r.values) for r in read_records(path, Reading(quoting=read_as))]
    (note,) = read_table(path).notes or ("",)
    assert ("are read as CSV's" in note) == (read_as == "csv")
    if read_as == "none" and '"quoted"' in content:
        assert note.startswith("1 cells of ") and "--task.quoting=csv takes it away" in note


def test_a_space_before_a_quote_is_not_in_the_cell(write):
    spaced = 'text, label\n"a, b", "x"\n plain, "says ""y"""\n'
    records = read_records(write("a.csv", spaced))
    assert texts(records) == ["a, b", "plain"]
    assert texts(records, "label") == ["x", 'says "y"']
    inside = 'text,label\n" ""a""", x\n'  # here the cell itself begins with a space and a quote
    (record,) = read_records(write("a.csv", inside))
    assert record.values == {"text": ' "a"', "label": " x"}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "text;label\nhello, you;pos\n", "'text;label', and has ';' in it; exp.* commas"),
        ("a.csv", "sep=;\ntext;label\na;b\n", "'sep=;', and has ';' in it; expected commas"),
        ("a.csv", "text\tlabel\na\tb\n", "'text label', and has '.t' in it; expected commas"),
        ("a.tsv", "text,label\na,b\n", "'text,label', and has ',' in it; expected tabs between"),
    ],
)
def test_columns_that_something_else_separates(write, name, content, message):
    with pytest.raises(ValueError, match=f"{name}:1: the first line is one column, {message}"):
        read_records(write(name, content))


def test_quoting_is_an_option(write):
    path = write("a.tsv", 'text\tlabel\n"quoted"\t1\n')
    assert load(path).splits["train"][0].inputs == '"quoted"'
    assert load(path, quoting="csv").splits["train"][0].inputs == "quoted"
    path = write("a.csv", 'text,label\n"quoted",1\n')
    assert load(path).splits["train"][0].inputs == "quoted"
    assert load(path, quoting="none").splits["train"][0].inputs == '"quoted"'


def test_a_cell_may_be_long(write):
    text = "x" * 200_000
    limit = csv.field_size_limit()
    assert texts(read_records(write("a.csv", f"text,label\n{text},1\n"))) == [text]
    assert csv.field_size_limit() == limit


# Encodings -----------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_a_mark_names_the_encoding(write, encoding):
    content = "text\tlabel\ncafé “x” 漢\t1\n".encode(encoding)
    assert texts(read_records(write("a.tsv", content))) == ["café “x” 漢"]
    marked = "utf-8" if encoding == "utf-8" else "cp1252"
    assert texts(read_records(write("a.tsv", content), Reading(marked))) == ["café “x” 漢"]


@pytest.mark.parametrize("encoding", ["cp1252", "latin-1", "cp1251", "gb18030", "utf-16-le"])
def test_an_encoding_is_an_option(write, encoding):
    text = {"cp1251": "привет", "gb18030": "你好"}.get(encoding, "café")
    path = write("a.csv", f"text,label\n{text},1\n".encode(encoding))
    assert load(path, encoding=encoding).splits["train"][0].inputs == text
    with pytest.raises(ValueError, match="a.csv:[12]: .*set --task.encoding"):
        load(path)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            "text,label\nit’s café,1\n".encode("cp1252"),
            "a.csv:2: byte 0x92 .* WINDOWS-1252 -t UTF-8",
        ),
        ("text,label\ncafé,1\n".encode("latin-1"), "a.csv:2: byte 0xe9 .*--task.encoding=cp1252"),
        ("text,label\nпривет мир,1\n".encode("cp1251"), "does not look like Windows-1252 either"),
        (b"text,label\n\x81\x8d\x90,1\n", "does not look like Windows-1252 either; .*shift_jis"),
        ("text,label\nété ünd,1\n".encode() + b"\xff,2", "a.csv:3: .*damaged there; mend the line"),
        ("text,label\nx,1\n".encode("utf-16-le"), "a.csv:1: zero bytes stand as .*=utf-16-le, or"),
        ("text,label\nx,1\n".encode("utf-16-be"), "a.csv:1: zero bytes stand as .*=utf-16-be, or"),
        (
            "текст,метка\nпривет мир,да\n".encode("utf-16-le"),
            "a.csv:1: zero bytes .*=utf-16-le, or",
        ),
        ("文本,标签\n你好世界,好\n".encode("utf-16-be"), "a.csv:1: zero bytes .*=utf-16-be, or"),
    ],
)
def test_bytes_of_another_encoding_name_the_line_and_the_right_one(write, data, message):
    with pytest.raises(ValueError, match=message) as caught:
        read_records(write("a.csv", data))
    assert "LATIN1" not in str(caught.value)


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"PK\x03\x04\x14\x00\x06\x00", "a zip archive or an Excel workbook"),
        (gzip.compress(b"text,label\n"), "a file that gzip packed"),
        (bz2.compress(b"text,label\n"), "a file that bzip2 packed"),
        (lzma.compress(b"text,label\n"), "a file that xz packed"),
        (as_parquet([{"text": "a", "label": "b", "number": 1, "day": None}]), "a Parquet file"),
    ],
    ids=["zip", "gzip", "bzip2", "xz", "parquet"],
)
def test_what_is_no_text_whatever_its_name_says(write, data, kind):
    for name, content in (("a.csv", data), ("a.jsonl", data), ("a.csv.gz", gzip.compress(data))):
        for encoding in ("utf-8", "cp1252"):
            with pytest.raises(ValueError, match=f"{name}:1: this is {kind}, whatever its name"):
                read_records(write(name, content), Reading(encoding))


def test_encodings_that_are_none():
    for name in ("utf9", "hex", "rot13"):
        with pytest.raises(ValueError, match=f"task.encoding is '{name}', expected a name such as"):
            TaskConfig(name="library", encoding=name)
    with pytest.raises(
        ValueError, match="a.csv:1: byte 0xe9 at offset 0 is not ascii; set task.en"
    ):
        read_file(File("a.csv", lambda: b"\xe9"), Reading("ascii"))


def test_a_run_from_before_these_options_goes_on(tmp_path):
    task = TaskConfig(source="a.csv", template="{text}", label="label")
    config = to_dict(TrainConfig(task=task))
    before = {**config, "task": dict(config["task"])}
    for option in ("encoding", "quoting", "missing", "group", "metrics"):
        del before["task"][option]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(before))
    RunFolder(tmp_path).check_config(config)
    other = to_dict(TrainConfig(task=dataclasses.replace(task, group="doc")))
    with pytest.raises(ValueError, match="holds a run of another config: task.group"):
        RunFolder(tmp_path).check_config(other)


# JSON arrays, shards, compression, buckets ---------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [
        '[{"text": "a"},\n {"text": "b"}]',
        '{"text": "a"}\n{"text": "b"}',
        ' [\n{"text":"a"},{"text":"b"} ]',
    ],
)
def test_a_json_file_is_an_array_or_lines(write, content):
    assert texts(read_records(write("a.json", content))) == ["a", "b"]


def test_marks_between_files_that_were_put_one_behind_another(write):
    content = '\ufeff{"text": "a"}\n\ufeff{"text": "b"}\n'
    assert texts(read_records(write("a.jsonl", content))) == ["a", "b"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('[{"text": "a"},\n{"text": ]', r"a.json:2: not JSON \("),
        ('[{"text": "a"}\n{"text": "b"}]', "a.json:1: no comma behind the object"),
        ('[{"text": "a"},\n\n3]', "a.json:3: no object"),
        ('[{"text": "a"},\n{"text": "b"}', "a.json:2: no comma behind the object"),
        ('[{"text": "a"}]\n\n[{"text": "b"}]', "a.json:3: '.*b.*' stands behind the end of the ar"),
        ('[{"text": "a"}] x', "a.json:1: 'x' stands behind the end of the array; expected one"),
        ('[{"text": "a"},\n{"text": "b", "text": "c"}]', "a.json:2: .*the key 'text' occurs twice"),
        ('{"text": "a"}\n{"x": {"k": 1, "k": 2}}', "a.json:2: not JSON .the key 'k' occurs twice"),
        ("[]", "a.json' has no rows; expected an array of objects"),
        ("text", r"a.json:1: not JSON \("),
    ],
)
def test_a_broken_json_array_names_its_line(write, content, message):
    with pytest.raises(ValueError, match=message) as caught:
        read_records(write("a.json", content))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("suffix", "pack"), [(".gz", gzip.compress), (".bz2", bz2.compress), (".xz", lzma.compress)]
)
def test_compressed_files(write, suffix, pack):
    data = pack(b"text,label\nx,1\n")
    path = write(f"a.csv{suffix}", data)
    (record,) = read_records(path)
    assert record.values == {"text": "x", "label": "1"} and record.place == f"{path}:2"
    for broken in (data[:-9], data[:20] + b"\x00" * 9 + data[29:], b"text,label\nx,1\n"):
        with pytest.raises(ValueError, match=rf"a.csv\{suffix}' cannot be unpacked \(.*cut short"):
            read_records(write(f"a.csv{suffix}", broken))


def test_names_of_what_is_no_file(tmp_path):
    os.symlink("gone.jsonl", tmp_path / "link.jsonl")
    os.mkfifo(tmp_path / "pipe.jsonl")
    for name in ("link", "pipe"):
        with pytest.raises(
            FileNotFoundError, match=f"{name}.jsonl' does not exist as a file; it is"
        ):
            load(str(tmp_path / f"{name}.jsonl"))
    with pytest.raises(FileNotFoundError, match=r"a.jsonl' does not exist .looked from"):
        load("a" * 5000 + ".jsonl")


def test_a_file_that_cannot_be_read():
    def fail():
        raise OSError(5, "Input/output error")

    with pytest.raises(ValueError, match="file 'a.csv' cannot be read: Input/output error"):
        read_file(File("a.csv", fail))


def test_shards_by_folder_and_by_pattern(write, tmp_path):
    for number in range(3):
        write(f"rows/part-{number}.jsonl", f'{{"text": "t{number}", "label": "a"}}')
    write("rows/_SUCCESS", "")
    write("rows/readme.md", "")
    for source in (str(tmp_path / "rows"), str(tmp_path / "rows" / "part-*.jsonl")):
        task = load(source)
        assert [e.inputs for e in task.splits["train"]] == ["t0", "t1", "t2"]
        assert f"{source} has 3 files, 3 rows" in task.notes
    os.symlink(tmp_path / "rows", tmp_path / "rows" / "again")
    assert len(read_records(str(tmp_path / "rows" / "**" / "*.jsonl"))) == 3
    write("rows/part-0.jsonl.gz", gzip.compress(b'{"text": "t0", "label": "a"}'))
    with pytest.raises(
        ValueError, match="has the same rows twice, in '.*part-0.jsonl' and in '.*z'"
    ):
        load(str(tmp_path / "rows"))
    (tmp_path / "rows" / "part-0.jsonl.gz").unlink()
    write("rows/part-3.csv", "text,label\nx,1\n")
    with pytest.raises(ValueError, match="rows' has files in .csv and .jsonl; name those of one"):
        load(str(tmp_path / "rows"))
    with pytest.raises(FileNotFoundError, match=r"no file matches '.*/\*.parquet'; expected files"):
        load(str(tmp_path / "rows" / "*.parquet"))
    write("both/train.csv", "text,label\nx,1\n")
    write("both/test.csv", "text,label\nx,1\n")
    with pytest.raises(
        ValueError, match=r"several splits \(test, train\); name one by a pattern, s"
    ):
        load(str(tmp_path / "both"))


@pytest.fixture
def bucket(monkeypatch):
    with bucket_for(monkeypatch) as server:
        yield server


def test_rows_in_a_bucket(bucket):
    rows = b'{"text": "x", "label": "a"}'
    bucket.put("bucket/top.jsonl", rows)
    bucket.put("bucket/data/one.jsonl.gz", gzip.compress(rows))
    bucket.put("bucket/data/two.jsonl", rows)
    bucket.put("bucket/data/deeper/three.jsonl", rows)
    for source, count in (
        ("gs://bucket/top.jsonl", 1),
        ("gs://bucket/data/one.jsonl.gz", 1),
        ("gs://bucket/data", 2),
        ("gs://bucket/data/", 2),
        ("gs://bucket/data/*.jsonl", 1),
        ("gs://bucket/data/*/*.jsonl", 1),
    ):
        assert len(load(source).splits["train"]) == count, source
    bucket.put("bucket/hostile/a\x1b[2J.csv", rows)
    with pytest.raises(ValueError, match=r"the name 'a\\x1b\[2J.csv' holds a backslash or a co"):
        load("gs://bucket/hostile")
    bucket.put("bucket/marked/", b"")
    bucket.put("bucket/marked/a.jsonl", rows)
    assert len(load("gs://bucket/marked").splits["train"]) == 1
    folder = open_folder("gs://bucket/marked")
    del bucket.objects["bucket/marked/a.jsonl"]
    with pytest.raises(ValueError, match="object 'gs://bucket/marked/a.jsonl' was deleted while"):
        folder.open("a.jsonl").read()
    with pytest.raises(FileNotFoundError, match="'gs://bucket/none.csv' does not exist; check the"):
        load("gs://bucket/none.csv")
    for place in ("s3://bucket/a.csv", "https://host/a.csv", "gs://bucket"):
        with pytest.raises(ValueError, match="is an address that rows cannot be read from; expect"):
            load(place)


def test_a_dataset_of_a_paper_in_a_bucket(bucket):
    row = b'{"question": "q", "passage": "p", "label": true, "idx": 0}'
    for split in ("train", "val"):
        bucket.put(f"bucket/superglue/BoolQ/{split}.jsonl", row)
    task = load_task(TaskConfig(name="super_glue/boolq", origin="gs://bucket/superglue"))
    assert task.splits["test"][0].inputs == "passage: p question: q"
    assert "validation: 1 rows in gs://bucket/superglue/BoolQ/val.jsonl" in task.notes
