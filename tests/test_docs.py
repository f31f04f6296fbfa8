"""The commands of the documentation exist with all their options, and its links resolve."""

import re
import shutil
import subprocess

import numpy as np
import optax
import pytest
from support.pages import ROOT, blocks, commands

from spt_jax.cli import main as cli
from spt_jax.pytree import label_params, split

PAGES = ("README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")))
TEXTS = (
    "CONTRIBUTING.md",
    *sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md")),
)


def spt_jax_commands() -> list[list[str]]:
    """The arguments of every call of spt-jax, also of those that a script makes on a worker."""
    found = []
    for page in PAGES:
        for words in commands(page):
            if "spt-jax" in words:
                found.append(words[words.index("spt-jax") + 1 :])
            elif words[0].endswith("launch.sh"):
                found.append(words[words.index("--") + 1 :])
    assert len(found) >= 90
    return found


@pytest.mark.parametrize("arguments", spt_jax_commands(), ids=" ".join)
def test_options_of_spt_jax_exist(arguments, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)  # which `--config configs/quickstart.yaml` starts from
    command, *rest = arguments
    if command in ("train", "sweep"):
        assert cli.main([command, *rest, "--print-config"]) == 0
        return
    action = [rest[0]] if command in ("prompt", "data") else []
    assert cli.main([command, *action, "--help"]) == 0
    helped = capsys.readouterr().out
    for option in rest:
        if option.startswith("--"):
            assert f"{option.partition('=')[0]} " in helped


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize("page", [*PAGES, "CONTRIBUTING.md"])
def test_commands_are_what_a_shell_reads(page):
    for block in blocks(page):
        block = block.replace("<this repository>", "REPOSITORY")
        result = subprocess.run(["bash", "-n"], input=block, capture_output=True, text=True)
        assert (result.returncode, result.stderr) == (0, ""), block


def test_the_study_files_of_the_docs_are_studies(tmp_path, capsys):
    studies = blocks("docs/sweeps.md", "yaml")
    assert len(studies) == 2
    for text in studies:
        (tmp_path / "study.yaml").write_text(text)
        workdir = f"--workdir={tmp_path / 'runs'}"
        config = f"--config={tmp_path / 'study.yaml'}"
        assert cli.main(["sweep", config, workdir, "--dry-run"]) == 0
        assert "runs" in capsys.readouterr().out


def test_the_design_page_labels_and_splits_as_the_code_does():
    [block] = blocks("docs/design.md", "python")
    names = {
        "weights": {"kernel": np.ones(3, np.float32)},
        "prompt": np.zeros((2, 3), np.float32),
        "optimizer": optax.sgd(1.0),
        "label_params": label_params,
        "split": split,
        "optax": optax,
    }
    exec(block, names)
    assert names["trained"] == {"t5": {"kernel": None}, "prompt": names["prompt"]}
    assert names["frozen"]["prompt"] is None
    gradients = {"t5": {"kernel": None}, "prompt": names["prompt"] + 1}
    state = names["tx"].init(names["trained"])
    updates, _ = names["tx"].update(gradients, state, names["trained"])
    assert updates["t5"] == {"kernel": None} and (updates["prompt"] == -1).all()


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_scripts_accept_their_arguments():
    called = [words for words in commands("docs/tpu.md") if words[0].startswith("scripts/tpu_vm/")]
    assert len(called) >= 15
    for script, *arguments in called:
        where = ["--tpu=t", "--zone=z", "--project=p", "--dry-run"]
        result = subprocess.run([ROOT / script, *where, *arguments], capture_output=True, text=True)
        assert result.returncode == 0, (script, arguments, result.stderr)


@pytest.mark.parametrize("page", PAGES)
def test_scripts_in_commands_exist(page):
    for words in commands(page):
        name = words[1] if words[0] == "python" else words[0]
        if "/" in name:
            assert (ROOT / name).is_file(), words


def slug(heading: str) -> str:
    """The name by which a link reaches a heading."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


@pytest.mark.parametrize("page", ["README.md", *TEXTS])
def test_links_resolve(page):
    links = re.findall(r"\]\(([^)\s]+)\)", (ROOT / page).read_text())
    for link in links:
        if link.startswith("https://"):
            continue
        name, _, anchor = link.partition("#")
        target = ((ROOT / page).parent / name).resolve() if name else ROOT / page
        assert target.exists(), f"{page}: {link}"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE)
            assert anchor in map(slug, headings), f"{page}: {link}"


@pytest.mark.parametrize("page", ["README.md", *TEXTS])
def test_files_of_the_repository_that_are_named_exist(page):
    folders = "spt_jax|tests|scripts|benchmarks|configs|docs"
    text = (ROOT / page).read_text()
    for name in re.findall(rf"`((?:{folders})/[\w./-]+\.\w+)`", text):
        assert (ROOT / name).is_file(), f"{page}: {name}"
