"""Compiled programs are kept for the next command, where the user's settings do not say else."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

# What a command does, with a program of a second: keep, compile, and say how jax is set.
COMMAND = """
import json, sys
from spt_jax.cache import keep_no_programs, keep_programs
from spt_jax.cli.printing import warnings_on_stderr
with warnings_on_stderr():
    {"keep": keep_programs, "afresh": keep_no_programs}[sys.argv[1]]()
import jax
hits = []
jax.monitoring.register_event_listener(lambda name, **_: hits.append(name.rsplit("/")[-1]))
jax.jit(lambda x: x * 2)(1.0).block_until_ready()
folder = jax.config.jax_compilation_cache_dir
print(json.dumps({"folder": folder, "hits": hits.count("cache_hits")}))
"""


def command(cache: Path, what: str = "keep", **environment: str) -> tuple[dict, str]:
    """What a process says of jax, and its stderr; `cache` is the root of what is kept."""
    own = {name: value for name, value in os.environ.items() if "COMPILATION_CACHE" not in name}
    done = subprocess.run(
        [sys.executable, "-c", COMMAND, what],
        env={**own, "SPT_JAX_CACHE": str(cache), **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), done.stderr


def test_the_second_command_finds_what_the_first_has_compiled(tmp_path):
    first, _ = command(tmp_path)
    assert first == {"folder": str(tmp_path / "jax"), "hits": 0}
    made = sorted((tmp_path / "jax").iterdir())
    programs = [path for path in made if path.name.endswith("-cache")]
    assert programs
    second, _ = command(tmp_path)
    assert second["hits"] == len(programs)
    assert sorted((tmp_path / "jax").iterdir()) == made


@pytest.mark.slow
def test_a_program_that_a_killed_process_left_half_is_written_again(tmp_path):
    command(tmp_path)
    folder = tmp_path / "jax"
    programs = {path: path.stat().st_size for path in folder.glob("*-cache")}
    for path in programs:  # jax writes the time of use after the program
        path.write_bytes(path.read_bytes()[:100])
        path.with_name(f"{path.name.removesuffix('-cache')}-atime").unlink()
    found, printed = command(tmp_path)
    assert (found["hits"], printed) == (0, "")
    assert {path: path.stat().st_size for path in folder.glob("*-cache")} == programs
    again, printed = command(tmp_path)
    assert (again["hits"], printed) == (len(programs), "")


@pytest.mark.parametrize(("option", "made"), [("--json", True), ("--help", False)])
def test_commands_keep_programs_once_they_run(tmp_path, option, made):
    own = {name: value for name, value in os.environ.items() if "COMPILATION_CACHE" not in name}
    subprocess.run(
        [sys.executable, "-m", "spt_jax", "evaluate", "nowhere", option],
        env={**own, "SPT_JAX_CACHE": str(tmp_path)},
        capture_output=True,
    )
    assert (tmp_path / "jax").exists() == made


def test_what_the_user_has_set_for_jax_wins(tmp_path):
    mine = tmp_path / "mine"
    found, _ = command(tmp_path, JAX_COMPILATION_CACHE_DIR=str(mine))
    assert found["folder"] == str(mine) and list(mine.iterdir())
    command(tmp_path, JAX_ENABLE_COMPILATION_CACHE="false")
    assert not [*tmp_path.glob("jax/*")]


def test_programs_for_absent_devices_are_not_kept(tmp_path):
    command(tmp_path, "afresh", JAX_COMPILATION_CACHE_DIR=str(tmp_path / "mine"))
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_is_one_warning(tmp_path):
    (tmp_path / "file").touch()
    found, printed = command(tmp_path / "file")
    assert found == {"folder": None, "hits": 0}
    assert printed == (
        f"spt-jax: warning: cannot keep compiled programs in {tmp_path}/file/jax (Not a "
        "directory), so the next command compiles again; name another folder in SPT_JAX_CACHE\n"
    )


def test_the_programs_used_longest_ago_make_room(tmp_path):
    folder = tmp_path / "jax"
    (folder / "tuned").mkdir(parents=True)  # as jax makes there for what it tunes on a GPU
    gigabyte = 10**9  # three of them are more than the limit; they are sparse
    for age, name in enumerate(("new", "old", "older")):
        with open(folder / f"{name}-cache", "wb") as file:
            file.truncate(gigabyte)
        (folder / f"{name}-atime").write_bytes((1000 - age).to_bytes(8, "little"))
    command(tmp_path)
    kept = {path.name.removesuffix("-cache") for path in folder.glob("*-cache")}
    assert kept & {"new", "old", "older"} == {"new", "old"} and len(kept) > 2
    assert (folder / "tuned").is_dir()


def test_the_users_limit_of_the_size_wins(tmp_path):
    command(tmp_path, JAX_COMPILATION_CACHE_MAX_SIZE="0")
    assert not list(tmp_path.glob("jax/*-cache"))
