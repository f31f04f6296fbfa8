"""The scripts for TPU VMs: the gcloud commands they make, and a run that they start and stop.

`gcloud` is a stand-in that writes down its arguments; for `ssh` it runs the command as a worker
would, in a home folder of the test. No script was ever called by these tests on a real TPU.
"""

import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPTS = ROOT / "scripts" / "tpu_vm"
NAMES = sorted(
    path.stem for path in SCRIPTS.glob("*.sh") if path.stem not in ("common", "supervise")
)
WHERE = ["--zone=us-west4-a", "--project=mine"]

pytestmark = pytest.mark.skipif(
    not all(map(shutil.which, ("bash", "flock", "setsid"))), reason="needs bash, flock and setsid"
)

GCLOUD = f"""#!{sys.executable}
import json, os, pathlib, shutil, subprocess, sys
if sys.argv[1] == "storage":
    *_, first, last = sys.argv
    real = lambda path: pathlib.Path(path.replace("gs:/", os.environ["WORKER_HOME"] + "/buckets"))
    if sys.argv[2] == "rsync":
        shutil.copytree(real(first), real(last), dirs_exist_ok=True)
    elif not real(last).parent.exists():
        sys.exit("ERROR: " + os.environ.get("LS_ERROR", "One or more URLs matched no objects."))
    sys.exit()
with open(os.environ["CALLS"], "a") as calls:
    calls.write(json.dumps(sys.argv[1:]) + "\\n")
command = [a.removeprefix("--command=") for a in sys.argv if a.startswith("--command=")]
if command:
    home = os.environ["WORKER_HOME"]
    environment = dict(os.environ, HOME=home)
    sys.exit(subprocess.run(["bash", "-c", command[0]], cwd=home, env=environment).returncode)
"""

# Writes down how it was called, and ends as the file `codes` says, a line a call; `wait` waits for
# SIGTERM and then exits with 75, as a run that has saved.
SPT_JAX = f"""#!{sys.executable}
import json, os, pathlib, signal, sys, time
home = pathlib.Path(os.environ["HOME"])
with open(home / "calls", "a") as calls:
    given = [os.environ["JAX_PLATFORMS"], os.environ.get("TOKEN"), *sys.argv[1:]]
    calls.write(json.dumps(given) + "\\n")
first, *others = (home / "codes").read_text().split()
(home / "codes").write_text("\\n".join(others))
print("output of", first, flush=True)
if first == "wait":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
    (home / "waiting").touch()
    time.sleep(60)
for argument in sys.argv:
    if argument.startswith("--workdir="):
        folder = home / argument.removeprefix("--workdir=")
        folder.mkdir(exist_ok=True)
        with open(folder / "log.jsonl", "a") as log:
            log.write(first + "\\n")
sys.exit(int(first))
"""


def call(name: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    """Runs a script with nothing of the caller's TPU variables."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("TPU_")}
    return subprocess.run(
        [SCRIPTS / f"{name}.sh", *arguments],
        capture_output=True,
        text=True,
        env={**kept, **environment},
    )


def dry(name: str, *arguments: str) -> list[list[str]]:
    """The commands that a script prints with --dry-run, as a shell splits them."""
    result = call(name, "--tpu=t", *WHERE, "--dry-run", *arguments)
    assert result.returncode == 0, result.stderr
    split = shlex.split(result.stdout.replace("\ngcloud", " ;; gcloud"))
    commands: list[list[str]] = [[]]
    for word in split:
        if word == ";;":
            commands.append([])
        else:
            commands[-1].append(word)
    return commands


GCLOUD_TPUS = ["gcloud", "compute", "tpus"]


@pytest.mark.parametrize(
    ("arguments", "command"),
    [
        (
            ["--type=v5litepod-8"],
            ["tpu-vm", "create", "t", "--version=v2-alpha-tpuv5-lite"]
            + ["--accelerator-type=v5litepod-8"],
        ),
        (
            ["--type", "v6e-16", "--spot", "--", "--network=my net"],
            ["tpu-vm", "create", "t", "--version=v2-alpha-tpuv6e"]
            + ["--accelerator-type=v6e-16", "--spot", "--network=my net"],
        ),
        (
            ["--type=v3-8", "--preemptible", "--version=mine"],
            ["tpu-vm", "create", "t", "--version=mine", "--accelerator-type=v3-8", "--preemptible"],
        ),
        (
            ["--type=v4-16", "--queued", "--spot", "--valid-until=6h"],
            ["queued-resources", "create", "t", "--node-id=t"]
            + ["--runtime-version=tpu-ubuntu2204-base", "--accelerator-type=v4-16", "--spot"]
            + ["--valid-until-duration=6h"],
        ),
    ],
)
def test_create_asks_for_a_vm_or_a_slice(arguments, command):
    assert dry("create", *arguments) == [[*GCLOUD_TPUS, *command, *WHERE]]


def test_install_copies_what_is_committed_and_installs_it_on_all_workers():
    archive, copy, install = dry("install", "--extras=hub")
    assert archive[:5] == ["git", "-C", str(ROOT), "archive", "--format=tar.gz"]
    assert archive[6:] == ["HEAD"]
    tar = archive[5].removeprefix("--output=")
    to = ["tpu-vm", "scp", tar, "t:spt_jax.tar.gz", "--worker=all"]
    assert copy == [*GCLOUD_TPUS, *to, *WHERE]
    assert install[:7] == [*GCLOUD_TPUS, "tpu-vm", "ssh", "t", "--worker=all"]
    assert "~/spt_jax/source'[tpu,hub]'\n" in install[7] and install[8:] == WHERE


@pytest.mark.parametrize(
    ("name", "arguments", "worker", "command"),
    [
        ("logs", [], "0", "tail -n 50 -F ~/spt_jax/runs/main/log"),
        ("logs", ["--run=a", "--lines=9", "--once"], "0", "tail -n 9 ~/spt_jax/runs/a/log"),
        (
            "logs",
            ["--worker=all"],
            "all",
            'tail -n 50 -F ~/spt_jax/runs/main/log | sed -u "s/^/$(hostname): /"',
        ),
        (
            "run",
            ["--", "python", "-c", "print('a b')"],
            "all",
            "PATH=~/spt_jax/venv/bin:$PATH; python -c 'print('\\''a b'\\'')'",
        ),
        (
            "launch",
            ["--run=a", "--", "train", "--steps=3"],
            "all",
            "$HOME/spt_jax/source/scripts/tpu_vm/supervise.sh start a 20 30 '' '' env "
            "JAX_PLATFORMS=tpu,cpu ~/spt_jax/venv/bin/spt-jax train --steps=3",
        ),
        (
            "launch",
            ["--copy-to=gs://b/r", "--", "train", "--workdir=a b"],
            "all",
            "$HOME/spt_jax/source/scripts/tpu_vm/supervise.sh start main 20 30 'a b' gs://b/r env "
            "JAX_PLATFORMS=tpu,cpu ~/spt_jax/venv/bin/spt-jax train '--workdir=a b'",
        ),
        ("stop", [], "all", "$HOME/spt_jax/source/scripts/tpu_vm/supervise.sh stop 600"),
    ],
)
def test_commands_that_run_on_workers(name, arguments, worker, command):
    ssh = ["tpu-vm", "ssh", "t", f"--worker={worker}", f"--command={command}"]
    assert dry(name, *arguments) == [[*GCLOUD_TPUS, *ssh, *WHERE]]


@pytest.mark.parametrize(
    ("name", "arguments", "command"),
    [
        ("delete", [], ["tpu-vm", "delete", "t"]),
        (
            "delete",
            ["--queued", "--yes"],
            ["queued-resources", "delete", "t", "--force", "--quiet"],
        ),
        ("stop", ["--vm"], ["tpu-vm", "stop", "t"]),
    ],
)
def test_commands_about_the_vm(name, arguments, command):
    assert dry(name, *arguments)[-1] == [*GCLOUD_TPUS, *command, *WHERE]


@pytest.mark.parametrize("name", NAMES)
def test_every_script_explains_itself_and_names_what_is_missing(name):
    helped = call(name, "--help")
    assert helped.returncode == 0 and f"usage: {name}.sh --tpu=NAME --zone=ZONE" in helped.stdout
    for missing, message in (
        ("tpu", "no TPU is named; give --tpu=NAME, or set TPU_NAME"),
        ("zone", "no zone is given; give --zone=ZONE such as us-west4-a, or set TPU_ZONE"),
        ("project", "no project is given; give --project=ID, or set TPU_PROJECT"),
    ):
        given = [f"--{key}=x" for key in ("tpu", "zone", "project") if key != missing]
        result = call(name, "--dry-run", *given)
        assert result.returncode == 2 and f"{name}.sh: error: {message}" in result.stderr


def test_variables_stand_for_the_options_that_are_always_the_same():
    result = call("delete", "--dry-run", TPU_NAME="t", TPU_ZONE="us-west4-a", TPU_PROJECT="mine")
    assert shlex.split(result.stdout) == [*GCLOUD_TPUS, "tpu-vm", "delete", "t", *WHERE]


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("create", [], "no type is given; give --type=TYPE such as v5litepod-8 or v6e-1"),
        ("create", ["--type=v9-8"], "version for type 'v9-8' is not known here; give --version="),
        ("create", ["--type=v4-8", "--spot", "--preemptible"], "exclude each other"),
        (
            "create",
            ["--type=v4-8", "--queued", "--preemptible"],
            "has no --preemptible; give",
        ),
        ("create", ["--type=v4-8", "--valid-until=6h"], "--valid-until is of --queued; give that"),
        ("create", ["--type"], "--type has no value; write --type=VALUE"),
        ("create", ["--tpye=v4-8"], "unknown option '--tpye=v4-8'; --help explains"),
        ("delete", ["--yes=no"], "unknown option '--yes=no'; --help explains the options"),
        ("delete", ["t2"], "unexpected argument 't2'; --help explains the options"),
        ("delete", ["--", "t2"], "unexpected argument 't2'; --help explains the options"),
        ("launch", [], "no command is given; write -- train --config ... at the end"),
        ("launch", ["--", "A=1"], "no command is given after the variables; write train"),
        ("launch", ["--run=a/b", "--", "train"], "--run is 'a/b', expected a name of letters"),
        ("launch", ["--max-restarts=x", "--", "train"], "is 'x', expected a whole number"),
        ("launch", ["--copy-to=b/r", "--", "train"], "is 'b/r', expected gs://BUCKET/FOLDER"),
        ("launch", ["--copy-to=gs://b/r", "--", "train"], "give COMMAND a --workdir=FOLDER"),
        (
            "launch",
            ["--copy-to=gs://b/r", "--", "train", "--workdir=gs://b/r"],
            "but --workdir=gs://b/r is in a bucket already; leave --copy-to out",
        ),
        ("run", [], "no command is given; write it at the end, after --"),
    ],
)
def test_a_wrong_option_is_one_line(name, arguments, message):
    result = call(name, "--tpu=t", *WHERE, "--dry-run", *arguments)
    assert result.returncode == 2 and result.stdout == ""
    assert message in result.stderr and result.stderr.count("\n") == 1


def test_without_gcloud_it_is_said_where_to_get_it(tmp_path):
    for tool in ("bash", "dirname", "env"):
        (tmp_path / tool).symlink_to(shutil.which(tool))
    result = call("delete", "--tpu=t", *WHERE, PATH=str(tmp_path))
    assert result.returncode == 2
    assert "gcloud is not installed; see https://cloud.google.com/sdk/docs/install" in result.stderr


@pytest.fixture
def worker(tmp_path):
    """A worker's home with a stand-in of spt-jax; returns how to call scripts with the gcloud."""
    home, tools = tmp_path / "home", tmp_path / "bin"
    for folder in (home / "spt_jax" / "venv" / "bin", tools):
        folder.mkdir(parents=True)
    (home / "spt_jax" / "source").symlink_to(ROOT)
    curl = '#!/bin/sh\nprintf %s "$WORKER"\n'
    programs = {"bin/gcloud": GCLOUD, "bin/curl": curl, "home/spt_jax/venv/bin/spt-jax": SPT_JAX}
    for path, text in ((tmp_path / name, text) for name, text in programs.items()):
        path.write_text(text)
        path.chmod(0o755)

    def script(name: str, *arguments: str, codes: str | None = None, **environment: str):
        if codes is not None:
            (home / "codes").write_text(codes)
        path = f"{tools}:{os.environ['PATH']}"
        calls, where = str(tmp_path / "gcloud_calls"), str(home)
        environment |= {"PATH": path, "CALLS": calls, "WORKER_HOME": where}
        return call(name, "--tpu=t", *WHERE, *arguments, **environment)

    yield script, home
    script("stop", "--timeout=10")


def wait_for(condition: Callable[[], bool]) -> None:
    for _ in range(1000):
        if condition():
            return
        time.sleep(0.02)
    raise AssertionError("it did not happen within 20 s")


def launched(home: Path) -> list[list[str]]:
    return [json.loads(line) for line in (home / "calls").read_text().splitlines()]


def test_arguments_reach_the_command_as_they_are_and_exit_code_75_runs_it_again(worker):
    script, home = worker
    arguments = ["train", "--task.template=it's {a b} $HOME\n!", "", "--x=*"]
    result = script("launch", "--restart-delay=0", "--", "TOKEN=a b", *arguments, codes="75 75 0")
    assert result.returncode == 0 and "started 'main'" in result.stdout, result.stderr
    code = home / "spt_jax/runs/main/exit_code"
    wait_for(code.exists)
    assert code.read_text() == "0\n"
    assert launched(home) == [["tpu,cpu", "a b", *arguments]] * 3
    log = (home / "spt_jax/runs/main/log").read_text()
    assert log.count("output of 75\n") == 2 and "exit code 75: restart 2 of 20 in 0 s" in log
    assert log.endswith("ended with exit code 0\n")
    assert script("logs", "--once", "--lines=1").stdout.endswith("ended with exit code 0\n")


@pytest.mark.parametrize(("codes", "calls", "code"), [("1 0", 1, "1"), ("75 75 75 0", 3, "75")])
def test_other_codes_and_the_limit_end_a_run(worker, codes, calls, code):
    script, home = worker
    script("launch", "--max-restarts=2", "--restart-delay=0", "--", "train", codes=codes)
    path = home / "spt_jax/runs/main/exit_code"
    wait_for(path.exists)
    assert path.read_text() == f"{code}\n" and len(launched(home)) == calls


def test_stop_lets_a_run_save_and_does_not_start_it_again(worker):
    script, home = worker
    script("launch", "--restart-delay=0", "--", "train", codes="wait 0")
    wait_for((home / "waiting").exists)
    second = script("launch", "--run=other", "--", "train")
    assert second.returncode == 1
    assert "error: run 'main' goes on here; stop.sh ends it" in second.stderr
    stopped = script("stop", "--timeout=20")
    assert stopped.returncode == 0 and "'main' ended with exit code 75" in stopped.stdout
    assert len(launched(home)) == 1
    assert "no run goes on" in script("stop").stdout


COPIED = ["--copy-to=gs://b/r", "--", "train", "--workdir=r"]


def ended(home: Path) -> None:
    wait_for((home / "spt_jax/runs/main/exit_code").exists)


def test_worker_0_copies_the_run_to_the_bucket_and_a_new_vm_takes_it_from_there(worker):
    script, home = worker
    script("launch", "--restart-delay=0", *COPIED, codes="75 0", WORKER="0")
    ended(home)
    assert (home / "buckets/b/r/log.jsonl").read_text() == "75\n0\n"
    shutil.rmtree(home / "r")
    script("launch", *COPIED, codes="0", WORKER="0")
    ended(home)
    assert (home / "r/log.jsonl").read_text() == "75\n0\n0\n"
    assert (home / "buckets/b/r/log.jsonl").read_text() == "75\n0\n0\n"


def test_the_run_is_copied_while_it_goes_on(worker):
    script, home = worker
    (home / "r").mkdir()
    (home / "r" / "log.jsonl").write_text("before\n")
    script("launch", *COPIED, codes="wait", WORKER="0", COPY_SECONDS="0.1")
    wait_for((home / "buckets/b/r/log.jsonl").exists)
    assert not (home / "spt_jax/runs/main/exit_code").exists()


def test_other_workers_copy_nothing(worker):
    script, home = worker
    script("launch", *COPIED, codes="0", WORKER="1")
    ended(home)
    assert not (home / "buckets").exists()


def test_a_bucket_that_cannot_be_read_starts_nothing(worker):
    script, home = worker
    result = script("launch", *COPIED, codes="0", WORKER="0", LS_ERROR="HTTPError 403: no access")
    assert result.returncode == 1 and not (home / "calls").exists()
    assert "error: gs://b/r cannot be read: ERROR: HTTPError 403: no access" in result.stderr
