"""`spt-jax predict` with a real, tiny model: whose answers they are, and SIGKILL on the process."""

import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from support import tiny
from support.runs import random_prompt, write_run

from spt_jax.cli import main as cli
from spt_jax.config.decode import DecodeConfig
from spt_jax.models.backbone import load_backbone
from spt_jax.prediction.predictor import Predictor
from spt_jax.prediction.run import predict_run
from spt_jax.prompts.bank import load_bank
from spt_jax.prompts.convert import import_prompt
from spt_jax.prompts.file import save_prompt

SHAPE = ["--inputs_length=16", "--targets_length=4", "--batch_size=8"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model, three prompts of which one is of another model, and rows of which two are bad."""
    folder = tmp_path_factory.mktemp("predict")
    model = load_backbone(str(tiny.write_backbone(folder / "model")))
    rng = np.random.default_rng(0)
    for name, length, of in (
        ("a", 2, model.fingerprint),
        ("b", 5, model.fingerprint),
        ("c", 3, "f" * 64),
    ):
        prompt = rng.standard_normal((length, 16)).astype(np.float32)
        save_prompt(folder / f"{name}.safetensors", prompt, {"model": "x", "fingerprint": of})
    rows = [
        {"prompt": ("a", "b", None)[i % 3], "text": " ".join([text] * (1 + i % 2)), "id": i}
        for i, (text, _) in enumerate(tiny.sentences() * 5)
    ]
    rows[40]["prompt"], rows[77]["text"] = "bb", "cat " * 16
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def command(folder, output, *options):
    prompts = [f"--prompt={name}={folder}/{name}.safetensors" for name in "ab"]
    files = [f"--input={folder}/rows.jsonl", f"--output={output}"]
    return ["predict", f"--model={folder}/model", *prompts, *files, *SHAPE, *options]


def test_the_answers_are_those_of_the_predictor_and_bad_rows_have_their_number(
    folder, tmp_path, capsys
):
    output = tmp_path / "out.jsonl"
    argv = command(folder, output, "--scores", "--num_beams=2", "--num_results=2", "--window=100")
    assert cli.main(argv) == 3
    out, err = capsys.readouterr()
    assert re.search(
        r"^answered +318\nfailed +2\noutput +.*out.jsonl\nerrors +.*errors.jsonl$", out, 8
    )
    assert err.endswith(f"error: 2 of 320 rows failed; see {output}.errors.jsonl\n")
    given = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    errors = [json.loads(line) for line in Path(f"{output}.errors.jsonl").read_text().splitlines()]
    assert [error["line"] for error in errors] == [41, 78]
    assert re.match("unknown prompt 'bb'; the bank has a, b", errors[0]["error"])
    assert re.search(r"has \d+ tokens .* set --inputs_length to \d+ or more", errors[1]["error"])
    del given[77], given[40]
    backbone = load_backbone(str(folder / "model"))
    bank = load_bank(backbone, {name: folder / f"{name}.safetensors" for name in "ab"})
    predictor = Predictor(
        backbone, bank, inputs_length=16, targets_length=4, batch_size=8,
        decode=DecodeConfig(num_beams=2, num_results=2),
    )  # fmt: skip
    answers = predictor.predict([(row["prompt"], row["text"]) for row in given])
    assert len({answer.texts for answer in answers}) > 20
    for line, row, answer in zip(output.read_text().splitlines(), given, answers, strict=True):
        found = json.loads(line)
        np.testing.assert_allclose(found.pop("scores"), answer.scores, rtol=1e-4)
        assert found == {**row, "output": answer.texts[0], "outputs": list(answer.texts)}
    assert cli.main(argv) == 3  # it is finished, and the bad rows are still bad
    assert "is finished; the same run has written it" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--seed=1"], r"output .*out.jsonl is from another run: seed \(0 there, 1 now\); give an"),
        (["--prompt=c={folder}/c.safetensors"], "c.safetensors was trained on model 'x' with fing"),
        (["--prompt=d={folder}/d.safetensors"], "d.safetensors does not exist"),
        (["--output=/no/where"], "folder /no of output /no/where does not exist; make it"),
        (["--input=nowhere"], "input file nowhere does not exist; expected a file of JSONL"),
        (["--input={folder}"], "input .* is a folder; expected a file of JSONL"),
        (["--seed=4294967296"], r"seed is 4294967296, expected 0 or more, and less than 2\*\*32"),
        (["--seed=-1"], r"seed is -1, expected 0 or more, and less than 2\*\*32"),
        (["--model=nano"], r"unknown model 'nano'; .*did you mean 'spt-nano'"),
    ],
)
def test_what_stops_the_command_is_one_line(folder, tmp_path, capsys, options, message):
    cli_options = command(folder, tmp_path / "out.jsonl", "--window=400")
    if options == ["--seed=1"]:
        cli.main(cli_options)
    capsys.readouterr()
    assert cli.main([*cli_options, *(option.format(folder=folder) for option in options)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert re.fullmatch(rf"spt-jax: error: .*{message}.*\n", err), err


def test_text_and_rows_of_a_pipe_are_answered_on_stdout(folder, capfdbinary, monkeypatch):
    argv = ["predict", f"--model={folder}/model", f"--prompt=a={folder}/a.safetensors", *SHAPE]
    assert cli.main([*argv, "--text=the cat", "--text=an oak"]) == 0
    first = capfdbinary.readouterr().out
    rows = [json.loads(line) for line in first.splitlines()]
    assert [row["text"] for row in rows] == ["the cat", "an oak"]
    reader, writer = os.pipe()
    os.write(writer, b'{"text": "the cat"}\n{"text": "an oak", "prompt": "a"}\n')
    os.close(writer)
    with os.fdopen(reader) as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        assert cli.main(argv) == 0
    again = [json.loads(line) for line in capfdbinary.readouterr().out.splitlines()]
    assert [row["output"] for row in again] == [row["output"] for row in rows]


def test_rows_go_through_the_template_of_the_run_of_their_prompt(folder, tmp_path, capsysbinary):
    config = tiny.train_config(tmp_path, model=str(folder / "model"))
    task = dataclasses.replace(config.task, template="the {a} likes {b}")
    run = write_run(tmp_path / "run", dataclasses.replace(config, task=task), random_prompt(3, 0))
    rows = tmp_path / "pairs.csv"
    rows.write_text("a,b\ncat,the oak\nowl,the elm\n")
    argv = ["predict", f"--model={folder}/model", f"--prompt=p={run}", *SHAPE]

    def outputs(*options):
        assert cli.main([*argv, *options]) == 0
        return [json.loads(line)["output"] for line in capsysbinary.readouterr().out.splitlines()]

    found = outputs(f"--input={rows}")
    finished = ["--text=the cat likes the oak", "--text=the owl likes the elm"]
    assert found == outputs(*finished, "--raw")
    assert found == predict_run(run, [{"a": "cat", "b": "the oak"}, {"a": "owl", "b": "the elm"}])
    import_prompt(run, tmp_path / "alone.safetensors")
    argv[2] = f"--prompt=p={tmp_path}/alone.safetensors"
    assert found == outputs(f"--input={rows}")
    assert cli.main([*argv, *finished]) == 3  # two fields, and one text
    assert b"line 1: a text is given, but the template" in capsysbinary.readouterr().err
    task = dataclasses.replace(config.task, template="the {prompt}")
    write_run(run, dataclasses.replace(config, task=task), random_prompt(3, 0))
    argv[2] = f"--prompt=p={run}"
    assert cli.main([*argv, f"--input={rows}"]) == 2
    assert (
        b"the template of prompt 'p' has a field 'prompt', which" in capsysbinary.readouterr().err
    )


# Children are forked after the imports, which take most of the time, and before jax starts.
KILLING = """
import json, os, random, signal, sys, time
from pathlib import Path
import spt_jax.prediction.jsonl
from spt_jax.cli.main import main

random.seed(0)
output, kills, argv = sys.argv[1], int(sys.argv[2]), sys.argv[3:]
state = Path(output + ".run.json")

def lines():
    return json.loads(state.read_text())["done"]["lines"] if state.exists() else 0

while True:
    before, child = lines(), os.fork()
    if child == 0:
        os._exit(main(argv))
    while kills and lines() == before:
        time.sleep(0.001)
    if not kills:
        sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    time.sleep(random.uniform(0, 0.03))
    os.kill(child, signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    kills -= 1
"""


@pytest.mark.slow
@pytest.mark.parametrize("kills", [1, 3])
def test_killed_it_gives_the_undisturbed_files(folder, tmp_path, kills):
    def files(name):
        (tmp_path / name).mkdir(exist_ok=True)
        return {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()}

    def arguments(name):
        output = tmp_path / name / "out.jsonl"
        return command(folder, output, "--sample", "--window=8", "--seed=3", "--scores")

    assert files("undisturbed") == files("killed") == {}
    assert cli.main(arguments("undisturbed")) == 3
    assert files("undisturbed")["out.jsonl"].count(b"\n") == 318
    output = str(tmp_path / "killed" / "out.jsonl")
    killing = [sys.executable, "-c", KILLING, output, str(kills), *arguments("killed")]
    result = subprocess.run(killing, capture_output=True, text=True)
    assert result.returncode == 3, result.stderr
    assert result.stderr.count("continuing") == kills
    assert files("killed") == files("undisturbed")
