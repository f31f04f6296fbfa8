"""Several real processes as hosts with their own disks: they match one process and end together.

Each run starts Python a few times, so few runs must tell much.
"""

import json
import signal
import time

import pytest
import yaml
from support import hosts, tiny

from spt_jax.config.fields import to_dict
from spt_jax.config.train import DataConfig, EvalConfig, LogConfig, OptimizerConfig
from spt_jax.evaluation.evaluate import evaluate_run
from spt_jax.models.backbone import convert_backbone
from spt_jax.prediction.jsonl import predict_file
from spt_jax.runs.log import read_log
from spt_jax.train import fit

STEPS = 24


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """(config file, run of one process, its result): SGD steps, 11 and 4 rows to score."""
    folder = tmp_path_factory.mktemp("one")
    config = tiny.train_config(
        folder,
        optimizer=OptimizerConfig(name="sgd", learning_rate=0.03),
        dropout_rate=0.0,
        steps=STEPS,
        eval=EvalConfig(every=12, batch_size=8, baselines=False),
        log=LogConfig(every=2, checkpoint_every=2),
    )
    (folder / "config.yaml").write_text(yaml.safe_dump(to_dict(config)))
    convert_backbone(config.model, folder / "base")
    return folder / "config.yaml", folder / "run", fit(config, folder / "run")


def logged(run):
    return read_log(run / "log.jsonl")


@pytest.mark.slow
@pytest.mark.parametrize("killed, count", [(False, 2), (True, 4)])
def test_ended_on_two_hosts_and_resumed_a_run_is_that_of_one(one, tmp_path, killed, count):
    config, alone, result = one
    folders = [tmp_path / f"host{index}" for index in range(count)]
    base = f"--model={config.parent / 'base'}"
    command = ["train", f"--config={config}", base, "--workdir=run", "--json"]
    run = folders[0] / "run"

    # The notice that one gets is one of all: they save the same step.
    checkpoints = run / "checkpoints"
    processes = hosts.start(command, folders[:2])
    hosts.wait_for(lambda: (checkpoints / "4").exists(), processes)
    processes[1].send_signal(signal.SIGTERM)
    main, other = hosts.finish(processes, folders)
    assert (main.code, other.code) == (75, 75), main.err
    assert main.err.count("spt-jax: ") == 1
    assert "spt-jax: ended by SIGTERM at step" in main.err

    if killed:
        saved = max(int(path.name) for path in checkpoints.iterdir() if path.name.isdigit())
        processes = hosts.start(command, folders[:2])
        hosts.wait_for(lambda: not (checkpoints / f"{saved}").exists(), processes)
        processes[1].send_signal(signal.SIGKILL)
        started = time.monotonic()
        main, other = hosts.finish(processes, folders)
        assert time.monotonic() - started < 60
        assert (main.code, other.code) == (1, -signal.SIGKILL)
        assert main.err.count("spt-jax: ") == 1
        assert "spt-jax: error: process 1 of 2 is gone: it was killed, or" in main.err
        assert not (run / "result.json").exists()

    ended = hosts.finish(hosts.start(command, folders), folders)
    assert [process.code for process in ended] == [0] * count, ended[0].err
    assert "resumed at step" in ended[0].err
    found = json.loads(ended[0].out)
    same = ("score", "rank_score", "dev_score", "steps_done", "trained_params")
    assert {name: found[name] for name in same} == {name: result[name] for name in same}
    for record, expected in zip(logged(run), logged(alone), strict=True):
        assert record.keys() == expected.keys()
        for name, value in expected.items():
            close = pytest.approx(value, rel=1e-5) if isinstance(value, float) else value
            assert record[name] == close, name

    # Process 0 alone prints and writes.
    for process, folder in zip(ended[1:], folders[1:]):
        assert process.out == "" and "spt-jax" not in process.err and "step" not in process.err
        assert sorted(path.name for path in folder.iterdir()) == [
            f"err{folder.name[-1]}",
            f"out{folder.name[-1]}",
        ]
    # Two hosts find its prompt on the disk of process 0, and count every row once.
    ended = hosts.finish(hosts.start(["evaluate", "run", "--json"], folders[:2]), folders)
    assert [process.code for process in ended] == [0, 0], ended[0].err
    scores = evaluate_run(run)
    assert json.loads(ended[0].out) == {**scores, "rank_score": pytest.approx(scores["rank_score"])}
    assert scores["rows"] == 4


def test_rows_of_process_0_are_answered_by_all(one, tmp_path):
    config, alone, _ = one
    folders = [tmp_path / f"host{index}" for index in range(2)]
    folders[0].mkdir()
    texts = [text for text, _ in tiny.sentences()[:11]]
    lines = [json.dumps({"text": text, "id": number}) for number, text in enumerate(texts)]
    (folders[0] / "rows.jsonl").write_text("\n".join([*lines, '{"no": "text"}']) + "\n")
    command = [
        "predict", f"--model={config.parent / 'tiny'}", f"--prompt=tiny={alone}",
        "--output=out.jsonl", "--window=4", "--batch_size=3", "--inputs_length=16",
        "--targets_length=4",
    ]  # fmt: skip
    ended = hosts.finish(hosts.start([*command, "--input=rows.jsonl"], folders), folders)
    assert [process.code for process in ended] == [3, 3]
    assert ended[0].err.count("spt-jax: ") == 1 and "1 of 12 rows failed" in ended[0].err
    rows = [json.loads(line) for line in (folders[0] / "out.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == list(range(11))

    result = predict_file(
        str(config.parent / "tiny"),
        {"tiny": alone},
        folders[0] / "rows.jsonl",
        tmp_path / "out.jsonl",
        data=DataConfig(inputs_length=16, targets_length=4, batch_size=3),
        window=4,
    )
    assert (result["answered"], result["failed"]) == (11, 1)
    assert (tmp_path / "out.jsonl").read_bytes() == (folders[0] / "out.jsonl").read_bytes()


def test_an_error_of_one_host_ends_all_and_is_said_once(one, tmp_path):
    config, _, _ = one
    folders = [tmp_path / f"host{index}" for index in range(2)]
    folders[0].mkdir()
    (folders[0] / "tiny").symlink_to(config.parent / "tiny")
    command = ["train", f"--config={config}", "--workdir=run", "--model=./tiny"]
    main, other = hosts.finish(hosts.start(command, folders), folders)
    assert (main.code, other.code) == (2, 2)
    assert main.err.count("spt-jax: ") == 1
    assert "spt-jax: process 1: error: " in main.err and "./tiny" in main.err
    assert "spt-jax" not in other.err
