"""The code blocks of the documentation."""

import re
import shlex
from pathlib import Path

ROOT = Path(__file__).parents[2]


def blocks(page: str, language: str = "") -> list[str]:
    """The code blocks of one language, or the commands, which have no language."""
    text = (ROOT / page).read_text()
    found = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return [block for name, block in found if name == language]


def commands(page: str) -> list[list[str]]:
    """The lines of the commands as words, continued lines joined and comments left out."""
    lines = "".join(blocks(page)).replace("\\\n", " ").splitlines()
    begins = ("spt-jax ", "srun ", "scripts/", "python ")
    return [shlex.split(line, comments=True) for line in lines if line.startswith(begins)]
