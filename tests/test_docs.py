"""The commands of docs/tpu.md and docs/gpu.md: scripts accept them, and every option exists."""

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from spt_jax.cli import main as cli

ROOT = Path(__file__).parents[1]
PAGES = ("docs/tpu.md", "docs/gpu.md")


def commands(page: str) -> list[list[str]]:
    """The lines of the code blocks as words, continued lines joined and comments left out."""
    text = (ROOT / page).read_text()
    blocks = re.findall(r"^```\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def spt_jax_commands() -> list[list[str]]:
    """The arguments of every call of spt-jax, also of those that a script makes on a worker."""
    found = []
    for page in PAGES:
        for words in commands(page):
            if "spt-jax" in words:
                found.append(words[words.index("spt-jax") + 1 :])
            elif words[0].endswith("launch.sh"):
                found.append(words[words.index("--") + 1 :])
    assert len(found) >= 12
    return found


@pytest.mark.parametrize("arguments", spt_jax_commands(), ids=" ".join)
def test_options_of_spt_jax_exist(arguments, capsys):
    command, *rest = arguments
    if command == "train":
        assert cli.main([command, *rest, "--print-config"]) == 0
        return
    action = [rest[0]] if command in ("prompt", "data") else []
    assert cli.main([command, *action, "--help"]) == 0
    helped = capsys.readouterr().out
    for option in rest:
        if option.startswith("--"):
            assert f"{option.partition('=')[0]} " in helped


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_scripts_accept_their_arguments():
    called = [words for words in commands("docs/tpu.md") if words[0].startswith("scripts/tpu_vm/")]
    assert len(called) >= 15
    for script, *arguments in called:
        where = ["--tpu=t", "--zone=z", "--project=p", "--dry-run"]
        result = subprocess.run([ROOT / script, *where, *arguments], capture_output=True, text=True)
        assert result.returncode == 0, (script, arguments, result.stderr)
