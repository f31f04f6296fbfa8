"""The command `spt-jax serve`: what it refuses, and a whole life from start to SIGTERM."""

import dataclasses
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from support import serving, tiny

from spt_jax.cli import main as cli

httpx = pytest.importorskip("httpx", reason="needs httpx")
pytest.importorskip("uvicorn", reason="needs the extra `serve`")
TEXT = tiny.sentences()[0][0]
ROOT = Path(__file__).parents[1]


@pytest.fixture
def fails(capsys, monkeypatch):
    """Runs `spt-jax serve`, which ends with exit code 2, and returns the line of its error."""
    monkeypatch.delenv("SPT_JAX_API_KEY", raising=False)

    def fails(*argv):
        assert cli.main(["serve", *argv]) == 2
        return capsys.readouterr().err

    return fails


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "no --model is given; see spt-jax serve --help"),
        (["--model=m", "--allow-load"], "--allow-load is given without the folder to load from;"),
        (["--model=m", "--prompt=a"], "--prompt is 'a', expected NAME=PATH"),
        (["--model=m", "--ensemble=a"], "--ensemble is 'a', expected NAME=A,B, such as vote="),
        (["--model=m", "--ensemble=a=b,c", "--ensemble=a=d,e"], "two ensembles are named 'a'; re"),
        (["--model=m", "--port=70000"], "port is 70000, expected 0 to 65535"),
        (["--model=m", "--buckets=[8, 4]"], "buckets is "),
        (["--model=m", "--timeout=0"], "timeout is 0.0, expected more than 0"),
        (["--model=m", "--api-key="], "the API key is empty; give some text, or leave it out"),
        (
            ["--model=m", "--allow-load", "--prompts-dir=nowhere"],
            "--prompts-dir nowhere is not a folder",
        ),
        (["--model=nowhere", "--port=0"], "nowhere"),
    ],
)
def test_what_the_command_cannot_do_is_told_in_one_line(fails, argv, message):
    line = fails(*argv)
    assert message in line and line.count("\n") == 1


def test_an_address_that_is_taken_is_told(fails):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        found = fails("--model=spt-nano", f"--port={port}")
    assert f"cannot listen on 127.0.0.1:{port}: " in found and "another --host or --port" in found


def test_without_the_extra_the_command_says_what_to_install(fails, monkeypatch):
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    found = fails("--model=spt-nano")
    assert "needs prometheus_client, which is not installed; pip install 'spt_jax[serve]'" in found


def test_a_server_starts_answers_under_load_and_ends_with_code_0(tmp_path):
    paths = serving.write_prompts(tmp_path)
    command = [sys.executable, "-m", "spt_jax", "serve", f"--model={tmp_path / 'tiny'}"]
    command += [f"--prompt={name}={path}" for name, path in paths.items()]
    command += ["--ensemble=both=animals,plants", "--port=0", "--inputs_length=16"]
    command += ["--targets_length=4", "--batch_size=4", "--buckets=[8]", "--mesh.data=1"]
    command += [f"--prompts-dir={tmp_path}", "--allow-load"]
    environment = {**os.environ, "SPT_JAX_API_KEY": "key"}
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )
    assert process.stdout is not None
    lines = iter(process.stdout.readline, "")
    events = (json.loads(line) for line in lines)
    try:
        listening = next(events)
        assert listening["models"] == ["tiny-0", "animals", "plants", "pairs", "both"]
        ready = next(event for event in events if event["event"] == "ready")
        assert ready["programs"] == 8
        headers, statuses = {"Authorization": "Bearer key"}, []
        url, body = listening["address"], {"model": "both", "prompt": TEXT}
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+", url)
        assert httpx.post(f"{url}/v1/completions", json=body).status_code == 401

        def ask():
            with httpx.Client(base_url=url, headers=headers, trust_env=False) as client:
                try:
                    while True:
                        found = client.post("/v1/completions", json=body, timeout=30)
                        statuses.append(found.status_code)
                except (httpx.ConnectError, httpx.RemoteProtocolError, httpx.ReadError):
                    pass  # refused, after the end has begun

        clients = [threading.Thread(target=ask) for _ in range(4)]
        for client in clients:
            client.start()
        while len(statuses) < 20:
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        for client in clients:
            client.join(30)
        out, err = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 0, err
    assert {*statuses} == {200}
    answered = [json.loads(line) for line in out.splitlines()]
    assert answered[-1] == {"event": "ended"}
    logged = [line["status"] for line in answered if line["event"] == "request"]
    assert sorted(logged) == [200] * len(statuses) + [401]  # nothing was lost


@pytest.mark.parametrize("name", ["cpu.Dockerfile", "cuda.Dockerfile", "spt-jax.service"])
def test_the_files_of_deploy_name_options_and_files_that_exist(name, capsys):
    text = (ROOT / "deploy" / name).read_text()
    assert cli.main(["serve", "--help"]) == 0
    helped = capsys.readouterr().out
    [command] = re.findall(r"^(?:ENTRYPOINT|ExecStart=).*serve.*$", text, re.M)
    options = re.findall(r"--[\w-]+", command)
    assert options and all(f"  {option} " in helped for option in options)
    for copied in re.findall(r"^COPY (.+) \S+$", text, re.M):
        assert all((ROOT / file).exists() for file in copied.split())
    assert name.endswith(".service") == ("COPY" not in text)
    assert "SPT_JAX_API_KEY" in text


@pytest.mark.slow
def test_the_python_of_the_docs_runs_as_it_stands(tmp_path, monkeypatch, capsys):
    """With a tiny model in place of spt-nano, and on another port."""
    client, engine = re.findall(
        r"```python\n(.*?)```", (ROOT / "docs" / "serving.md").read_text(), re.DOTALL
    )
    pytest.importorskip("openai", reason="needs openai")
    paths = serving.write_prompts(tmp_path)
    (tmp_path / "runs").mkdir()
    Path(paths["animals"]).rename(tmp_path / "runs" / "quickstart")
    monkeypatch.chdir(tmp_path)
    engine = engine.replace('"spt-nano"', repr(str(tmp_path / "tiny")))
    exec(engine, {})
    written, ranked = capsys.readouterr().out.splitlines()
    assert written.startswith("['") and ranked.startswith("Label(label=")
    from support.server import Running

    from spt_jax.config.devices import MeshConfig
    from spt_jax.models.backbone import load_backbone
    from spt_jax.serving.engine import Engine

    backbone = load_backbone(str(tmp_path / "tiny"), mesh=MeshConfig(data=1))
    config = dataclasses.replace(serving.CONFIG, inputs_length=48)
    with Engine(backbone, {"library": "runs/quickstart"}, config) as serves:
        serves.wait_until_ready(300)
        with Running(serves) as running:
            names: dict = {}
            exec(client.replace("http://127.0.0.1:8000", running.url), names)
            names["client"].close()
    assert capsys.readouterr().out.splitlines()[:2] == ["tiny-0", "library"]
