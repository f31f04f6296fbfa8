"""Rows from file to file: what comes out of a line, and what is left after a kill at any moment.

A stand-in answers here; test_predict_command.py has a model, and SIGKILL.
"""

import errno
import gzip
import io
import json
import os
from pathlib import Path
from types import SimpleNamespace

import pyarrow
import pyarrow.parquet
import pytest
from support import tiny

from spt_jax.config.train import DataConfig
from spt_jax.errors import RunError
from spt_jax.prediction import output as predict_output
from spt_jax.prediction.inputs import InputForm
from spt_jax.prediction.jsonl import answer_rows, predict_file
from spt_jax.prediction.output import check_output
from spt_jax.prediction.rows import answer_lines, parse_row

PROMPTS = {"a": InputForm(), "b": InputForm()}


class Upper:
    """Answers a text with itself in capitals, its prompt and its number."""

    def __init__(self):
        self.windows = []

    def problems(self, rows):
        return ["the text is too long" if len(text) > 20 else None for _, text in rows]

    def predict(self, rows, row_numbers=None):
        self.windows.append(list(row_numbers))
        return [
            SimpleNamespace(texts=(f"{name} {text.upper()} {number}", "é"), scores=(-0.5, -1 / 3))
            for (name, text), number in zip(rows, row_numbers, strict=True)
        ]


class Killed(BaseException):
    """Nothing may catch it, as nothing catches SIGKILL."""


def answer(source, output, predictor=None, **changes):
    """`answer_rows` with the stand-in, 4 lines a window."""
    settings = {
        "identity": {"model": "f" * 64, "seed": 0},
        "window": 4,
        "several": False,
        "scores": False,
        "overwrite": False,
    }
    return answer_rows(predictor or Upper(), PROMPTS, source, output, **{**settings, **changes})


def answered(*lines, **changes):
    """What comes out of a stream of these lines."""
    output = io.BytesIO()
    answer(io.BytesIO(b"".join(lines)), output, **changes)
    return output.getvalue()


@pytest.fixture
def rows(tmp_path):
    """23 lines: 16 good rows, 5 bad ones and 2 blank lines, in 6 windows."""
    lines = [f'{{"prompt": "{"ab"[i % 2]}", "text": "row {i}", "id": {i}}}' for i in range(23)]
    for number, line in {2: "{", 3: "[]", 8: '{"text": 1}', 9: "", 12: " "}.items():
        lines[number] = line
    lines[15], lines[20] = '{"text": "x"}', json.dumps({"prompt": "a", "text": "long " * 9})
    (tmp_path / "rows.jsonl").write_text("\n".join(lines) + "\n")
    return tmp_path / "rows.jsonl"


@pytest.fixture
def undisturbed(rows, tmp_path):
    """What a run that was not killed leaves."""
    (tmp_path / "whole").mkdir()
    result = answer(rows, tmp_path / "whole" / "out.jsonl")
    assert (result["answered"], result["failed"]) == (16, 5)
    return read_folder(tmp_path / "whole")


def read_folder(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


# A line and what comes out of it.


def test_a_line_is_passed_on_as_it_was_written():
    line = b'{ "id":1e400, "x" : [1.0, 12345678901234567890, "\\u00e9 \xc3\xa9"],"text":"hi" ,'
    assert answered(line + b'"prompt":"b"}\r\n') == (line + b'"prompt":"b", "output": "b HI 1"}\n')


def test_order_numbers_blank_lines_and_a_last_line_without_an_end():
    first, *lines = [b'{"prompt": "a", "text": "%d"}' % i for i in range(7)]
    text = b"\n".join([b"\xef\xbb\xbf" + first, b"", b"  \r", *lines])
    found = [json.loads(line)["output"] for line in answered(text).splitlines()]
    assert found == ["a 0 1"] + [f"a {i} {i + 3}" for i in range(1, 7)]


def test_no_prompt_the_only_prompt_and_a_named_one():
    one = {"a": InputForm()}
    assert parse_row(b'{"text": "t"}', {}) == (None, "t")
    assert parse_row(b'{"text": "t"}', one) == ("a", "t")
    assert parse_row(b'{"text": "t", "prompt": null}', one) == (None, "t")
    assert parse_row(b'{"text": "t", "prompt": null}', PROMPTS) == (None, "t")
    assert parse_row(b'{"text": "t", "prompt": "b"}', PROMPTS) == ("b", "t")


def test_a_row_goes_through_the_template_of_its_prompt():
    forms = {"a": InputForm("say {x}: {y}"), "b": InputForm("it is {x}")}
    assert parse_row(b'{"prompt": "a", "x": 1, "y": " z "}', forms) == ("a", "say 1: z")
    assert parse_row(b'{"prompt": "b", "text": "t", "y": 2}', forms) == ("b", "it is t")
    assert parse_row(b'{"prompt": null, "text": "t"}', forms) == (None, "t")
    assert parse_row(b'{"prompt": "c", "x": 1}', forms)[0] == "c"  # which the predictor refuses
    with pytest.raises(ValueError, match="the row has no field 'y' of the template; its fields: p"):
        parse_row(b'{"prompt": "a", "x": 1}', forms)


@pytest.mark.parametrize("suffix", ["csv", "tsv", "parquet", "json", "csv.gz", "jsonl.gz"])
def test_a_table_is_answered_and_goes_on_like_jsonl(tmp_path, suffix):
    columns = {"prompt": ["a", "b", "a"], "text": ["one", "two", "three"], "n": ["1", "2", "3"]}
    path, output = tmp_path / f"rows.{suffix}", tmp_path / "out.jsonl"
    if suffix == "parquet":
        pyarrow.parquet.write_table(pyarrow.table(columns), path)
    elif suffix.startswith("json"):
        objects = [dict(zip(columns, row)) for row in zip(*columns.values(), strict=True)]
        lines = "".join(f"{json.dumps(row)}\n" for row in objects)
        data = (json.dumps(objects) if suffix == "json" else lines).encode()
        path.write_bytes(gzip.compress(data) if suffix.endswith("gz") else data)
    else:
        comma = "\t" if suffix == "tsv" else ","
        rows = [columns, *zip(*columns.values(), strict=True)]
        data = "".join(comma.join(row) + "\n" for row in rows).encode()
        path.write_bytes(gzip.compress(data) if suffix.endswith("gz") else data)
    assert answer(path, output, window=2)["answered"] == 3
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert [row["output"] for row in rows] == ["a ONE 1", "b TWO 2", "a THREE 3"]
    assert [row["n"] for row in rows] == ["1", "2", "3"]
    whole = read_folder(tmp_path)
    predictor = Upper()
    output.rename(f"{output}.partial")
    state = json.loads(Path(f"{output}.run.json").read_text())
    state["done"] |= {"lines": 2, "answered": 2, "input_bytes": 0, "output_bytes": 0}
    first = [line + b"\n" for line in whole["out.jsonl"].splitlines()[:2]]
    state["done"] |= {"output_bytes": sum(map(len, first))}
    lines = [json.dumps({"prompt": p, "text": t, "n": n}) for p, t, n in zip(*columns.values())]
    state["done"] |= {"input_bytes": sum(len(line) + 1 for line in lines[:2])}
    Path(f"{output}.run.json").write_text(json.dumps(state))
    answer(path, output, predictor, window=2)
    assert predictor.windows == [[3]] and read_folder(tmp_path) == whole


def test_a_table_with_what_json_cannot_hold_names_the_row(tmp_path):
    path, columns = tmp_path / "rows.parquet", {"text": ["one", "two"], "image": [b"a", b"\xff"]}
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    with pytest.raises(
        ValueError, match="rows.parquet:2: a value is bytes that are not UTF-8 .*out"
    ):
        answer(path, tmp_path / "out.jsonl")


def test_several_answers_and_scores_are_added_where_asked_for():
    line = b'{"prompt": "a", "text": "x"}'
    assert answered(line, scores=True).endswith(
        b'"output": "a X 1", "scores": [-0.5, -0.333333]}\n'
    )
    assert answered(line, several=True).endswith(
        '"output": "a X 1", "outputs": ["a X 1", "é"]}\n'.encode()
    )


BAD_LINES = {
    b"{": "the line is not JSON: Expecting property name .* at character 2; expected an object "
    r'such as \{"prompt": "name", "text": "..."\}',
    b"\xff{}": "the line is not text in UTF-8: .* can't decode byte 0xff",
    b'{"text": "x", "n": NaN}': "the line is not JSON: it has NaN, expected a finite number",
    b'{"text": "x", "text": "y"}': "the key 'text' occurs twice",
    b"[" * 100_000: "the line is nested too deeply",
    b"[1, 2]": r"the line is \[1, 2\], expected a JSON object such as",
    b'"text"': 'the line is "text", expected a JSON object such as',
    b'{"prompt": "a", "txt": "x"}': r"the row has no field 'text', .* \(did you mean 'txt'\?\)",
    b'{"prompt": "a", "text": null}': "text is null, expected a string",
    b'{"prompt": "a", "text": "\\ud800"}': "text has half of a surrogate pair",
    b'{"prompt": 1, "text": "x"}': "prompt is 1, expected a name, or null for no prompt",
    b'{"text": "x"}': "the row has no field 'prompt' and 2 prompts are given; set it to one of "
    "a, b, or to null",
    b'{"prompt": "a", "text": "x", "output": ""}': "the row has a field 'output' already; rename",
}


@pytest.mark.parametrize(("line", "message"), BAD_LINES.items(), ids=range(len(BAD_LINES)))
def test_a_bad_line_says_what_is_wrong(line, message):
    with pytest.raises(ValueError, match=message):
        parse_row(line, PROMPTS)


def test_bad_rows_go_to_the_errors_file_with_their_number_and_the_rest_goes_on(undisturbed, rows):
    lines = rows.read_text().splitlines()
    errors = [json.loads(line) for line in undisturbed["out.jsonl.errors.jsonl"].splitlines()]
    assert [error["line"] for error in errors] == [3, 4, 9, 16, 21]
    assert [error["row"] for error in errors] == [lines[error["line"] - 1] for error in errors]
    assert errors[4]["error"] == "the text is too long"
    output = [json.loads(line) for line in undisturbed["out.jsonl"].splitlines()]
    assert [row["id"] for row in output] == [
        i for i in range(23) if i + 1 not in (3, 4, 9, 10, 13, 16, 21)
    ]
    assert all(
        row["output"] == f"{row['prompt']} ROW {row['id']} {row['id'] + 1}" for row in output
    )


def test_bad_rows_of_a_stream_are_lines_on_stderr(capsys):
    assert answered(b"{\n", b'{"prompt": "a", "text": "x"}').count(b"\n") == 1
    err = capsys.readouterr().err
    assert "spt-jax: line 1: the line is not JSON" in err
    assert err.count("\npredict 2  failed 1  ") == 1  # of how many, nobody knows


def test_no_more_than_a_window_is_read_ahead():
    read = 0

    def endless():
        nonlocal read
        while True:
            read += 1
            yield b'{"prompt": "a", "text": "x"}\n'

    predictor = Upper()
    settings = {"first": 11, "window": 5, "several": False, "scores": False}
    windows = answer_lines(endless(), predictor, PROMPTS, **settings)
    for number in range(1, 4):
        window = next(windows)
        assert (read, len(window.answered), window.lines) == (5 * number, 5, 5)
    assert predictor.windows == [[11, 12, 13, 14, 15], [16, 17, 18, 19, 20], [21, 22, 23, 24, 25]]


# Killed and started again.


def test_killed_at_any_moment_and_started_again_it_gives_the_undisturbed_files(
    rows, undisturbed, tmp_path, monkeypatch
):
    def die_at(call):
        """Every step that changes the disk: dies before the one of that number."""
        steps = 0

        def dying(function):
            def run(*args, **kwargs):
                nonlocal steps
                steps += 1
                if steps == call:
                    raise Killed
                return function(*args, **kwargs)

            return run

        patch.setattr(predict_output, "_append", dying(predict_output._append))
        patch.setattr(predict_output, "write_json_atomic", dying(predict_output.write_json_atomic))
        patch.setattr(os, "fsync", dying(os.fsync))
        patch.setattr(os, "replace", dying(os.replace))

    for call in range(1, 1000):
        folder = tmp_path / str(call)
        folder.mkdir()
        first, second = Upper(), Upper()
        with monkeypatch.context() as patch:
            die_at(call)
            try:
                answer(rows, folder / "out.jsonl", first)
                break
            except Killed:
                pass
        answer(rows, folder / "out.jsonl", second)
        assert read_folder(folder) == undisturbed, f"killed before step {call}"
        assert len(first.windows) + len(second.windows) <= 7, "more than a window was lost"
    assert call > 40
    assert read_folder(folder) == undisturbed


@pytest.mark.parametrize("moments", [(1, 1, 1), (2, 1, 3), (5,)])
def test_a_window_is_answered_again_only_if_it_was_not_whole(rows, tmp_path, moments):
    class Mortal(Upper):
        def predict(self, rows, row_numbers=None):
            if len(self.windows) == self.left:
                raise Killed
            return super().predict(rows, row_numbers)

    seen = []
    for left in (*moments, 100):
        predictor = Mortal()
        predictor.left = left
        try:
            answer(rows, tmp_path / "out.jsonl", predictor)
        except Killed:
            pass
        seen += predictor.windows
    assert seen == [[1, 2], [5, 6, 7, 8], [11, 12], [14, 15], [17, 18, 19, 20], [22, 23]]


def stopped(rows, output, windows=2):
    """A run that died after so many windows, in the middle of writing the next."""
    with pytest.MonkeyPatch.context() as patch:
        commit = predict_output.OutputFile.commit

        def dying(self, window):
            if self.done.lines == 4 * windows:
                raise Killed
            commit(self, window)

        patch.setattr(predict_output.OutputFile, "commit", dying)
        with pytest.raises(Killed):
            answer(rows, output)
    with open(f"{output}.partial", "ab") as file:
        file.write(b'{"prompt": "a", "text": "row 8"}\n{"prompt": "b", "te')
    with open(f"{output}.errors.jsonl", "ab") as file:
        file.write(b'{"line": 9, "err')


def test_a_half_line_is_cut(rows, undisturbed, tmp_path, capsys):
    folder = tmp_path / "run"
    folder.mkdir()
    stopped(rows, folder / "out.jsonl")
    answer(rows, folder / "out.jsonl")
    assert f"continuing {folder}/out.jsonl after line 8 of {rows}" in capsys.readouterr().err
    assert read_folder(folder) == undisturbed


@pytest.mark.parametrize("lost", ["out.jsonl.partial", "out.jsonl.errors.jsonl"])
def test_without_what_was_written_it_starts_over(rows, undisturbed, tmp_path, lost):
    folder = tmp_path / "run"
    folder.mkdir()
    stopped(rows, folder / "out.jsonl")
    (folder / lost).unlink()
    answer(rows, folder / "out.jsonl")
    assert read_folder(folder) == undisturbed


def test_a_stream_starts_over(rows, undisturbed, tmp_path, capsys):
    folder = tmp_path / "run"
    folder.mkdir()
    for _ in range(2):
        with open(rows, "rb") as stream:
            stopped(stream, folder / "out.jsonl")
    assert (
        "a stream cannot be read again: if this run is killed, it starts over"
        in capsys.readouterr().err
    )
    answer(io.BytesIO(rows.read_bytes()), folder / "out.jsonl")
    files = read_folder(folder)
    assert files["out.jsonl"] == undisturbed["out.jsonl"]
    with pytest.raises(FileExistsError, match=r"output .*out.jsonl exists; give another --output"):
        answer(io.BytesIO(rows.read_bytes()), folder / "out.jsonl")
    assert read_folder(folder) == files


# An output that is there.


def test_a_finished_output_is_left_as_it_is(rows, undisturbed, tmp_path, capsys):
    output = tmp_path / "whole" / "out.jsonl"
    again = answer(rows, output)
    assert (again["answered"], again["failed"], again["errors"].name) == (
        16,
        5,
        "out.jsonl.errors.jsonl",
    )
    assert f"{output} is finished; the same run has written it" in capsys.readouterr().err
    assert read_folder(output.parent) == undisturbed


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 1}, r"seed \(0 there, 1 now\);"),
        ({"model": "e" * 64}, r"model \(f{12}\.\.\. there, e{12}\.\.\. now\);"),
        ({"prompt c": "9"}, r"prompt c \(none there, 9 now\);"),
        (
            None,
            r"input \(.{12}\.\.\. there, .{12}\.\.\. now\), input_bytes \(\d+ there, \d+ now\);",
        ),
    ],
)
def test_an_output_of_another_run_is_refused_and_left(rows, tmp_path, finished, change, message):
    folder = tmp_path / "run"
    folder.mkdir()
    if finished:
        answer(rows, folder / "out.jsonl")
    else:
        stopped(rows, folder / "out.jsonl")
    before = read_folder(folder)
    if change is None:
        rows.write_text(rows.read_text() + "{}\n")
    identity = {"model": "f" * 64, "seed": 0, **(change or {})}
    name = "out.jsonl" if finished else "out.jsonl.partial"
    with pytest.raises(
        FileExistsError, match=rf"^output .*/{name} is from another run: {message} give"
    ):
        answer(rows, folder / "out.jsonl", identity=identity)
    assert read_folder(folder) == before
    answer(rows, folder / "out.jsonl", identity=identity, overwrite=True)
    assert len((folder / "out.jsonl").read_bytes().splitlines()) == 16


@pytest.mark.parametrize("name", ["out.jsonl", "out.jsonl.partial", "out.jsonl.errors.jsonl"])
def test_a_file_of_no_known_run_is_refused_and_left(rows, tmp_path, name):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / name).write_text("precious\n")
    with pytest.raises(
        FileExistsError, match=rf"output .*/{name} exists and is of no known run; give"
    ):
        answer(rows, folder / "out.jsonl")
    assert read_folder(folder) == {name: b"precious\n"}


def test_an_output_that_was_changed_is_refused(rows, undisturbed, tmp_path):
    output = tmp_path / "whole" / "out.jsonl"
    output.write_text("changed\n")
    with pytest.raises(FileExistsError, match="output .*out.jsonl exists; give another --output"):
        answer(rows, output)
    (tmp_path / "whole" / "out.jsonl.run.json").write_text('{"identity": {}}')
    with pytest.raises(
        FileExistsError, match=r"out.jsonl.run.json does not describe a run \('done'\)"
    ):
        answer(rows, output)


def test_two_processes_do_not_write_one_output(rows, tmp_path):
    class Second(Upper):
        def predict(self, *args):
            with pytest.raises(RunError, match=r"another process is writing .*out.jsonl.partial"):
                answer(rows, tmp_path / "out.jsonl", overwrite=True)
            return super().predict(*args)

    answer(rows, tmp_path / "out.jsonl", Second())
    assert len((tmp_path / "out.jsonl").read_bytes().splitlines()) == 16


# What else goes wrong.


def test_a_full_disk_is_a_failed_run_that_goes_on_later(rows, undisturbed, tmp_path, monkeypatch):
    def full(file, lines):
        file.write(b"".join(lines)[:10])
        raise OSError(errno.ENOSPC, "No space left on device")

    folder = tmp_path / "run"
    folder.mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(predict_output, "_append", full)
        with pytest.raises(
            RunError, match=r"out.jsonl could not be written \(No space left on dev"
        ):
            answer(rows, folder / "out.jsonl")
    answer(rows, folder / "out.jsonl")
    assert read_folder(folder) == undisturbed


def test_an_input_that_grows_meanwhile_is_told(rows, tmp_path):
    class Growing(Upper):
        def predict(self, *args):
            with open(rows, "a") as file:
                file.write("{}\n")
            return super().predict(*args)

    with pytest.raises(
        RunError, match=r"had \d+ bytes when the run began and \d+ were read; leave"
    ):
        answer(rows, tmp_path / "out.jsonl", Growing())
    assert not (tmp_path / "out.jsonl").exists()


def test_places_where_no_output_can_be(rows, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"folder .*/no of output .*/no/out does not exist"):
        check_output(tmp_path / "no" / "out", rows)
    with pytest.raises(IsADirectoryError, match="is a folder; give a file such as"):
        check_output(tmp_path, rows)
    with pytest.raises(ValueError, match="output /dev/null is a device; redirect standard output"):
        check_output(Path("/dev/null"), rows)
    with pytest.raises(ValueError, match="rows.jsonl would be written as output"):
        check_output(rows, rows)
    errors = rows.rename(tmp_path / "out.errors.jsonl")
    with pytest.raises(ValueError, match="out.errors.jsonl would be written as output"):
        check_output(tmp_path / "out", errors)


def test_weights_of_another_dtype_are_another_run(tmp_path):
    model, output = str(tiny.write_backbone(tmp_path)), tmp_path / "out.jsonl"
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"text": "a"}\n')
    data = DataConfig(inputs_length=8, targets_length=2, batch_size=8)
    options = dict(data=data, dtype="float32")
    predict_file(model, {}, rows, output, **options)
    with pytest.raises(FileExistsError, match="is from another run: .*param_dtype"):
        predict_file(model, {}, rows, output, param_dtype="bfloat16", **options)
