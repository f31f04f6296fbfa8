"""The files that tell tools and people what to run, cite and change name what exists."""

import re
from pathlib import Path

import yaml

import spt_jax

ROOT = Path(__file__).parents[1]
WHAT_RECIPES_ADD = (
    "a task",
    "a metric",
    "a prompt init",
    "a parameterization of the prompt",
    "an optimizer",
    "a command",
)
LITERALS = {"Literal", "ValueError"}
"""Names in the recipes that the files need not spell out."""
CI = (ROOT / ".ci" / "run").read_text()


def test_the_workflow_runs_ci_on_the_oldest_and_the_newest_python():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    [job] = workflow["jobs"].values()
    assert job["strategy"]["matrix"]["python"] == ["3.11", "3.13"]
    assert [step["run"] for step in job["steps"] if "run" in step] == [".ci/run"]
    assert job["steps"][-1]["env"] == {"PYTHON": "python${{ matrix.python }}"}
    assert "${PYTHON:-python3}" in CI


def test_the_checks_before_a_commit_are_installed_tools_that_ci_runs_too():
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    assert [repository["repo"] for repository in config["repos"]] == ["local"]
    hooks = {hook["id"]: hook for hook in config["repos"][0]["hooks"]}
    assert {hook["language"] for hook in hooks.values()} == {"system"}
    assert {*hooks} == {"ruff", "ruff-format", "shellcheck", "whitespace"}
    for name in ("ruff", "ruff-format", "shellcheck"):
        assert re.search(rf"^{hooks[name]['entry']} ", CI, re.MULTILINE), name


def test_the_citation_is_of_this_version_and_of_both_papers():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == spt_jax.__version__
    dois = {paper["doi"] for paper in citation["references"]}
    assert dois == {"10.18653/v1/2021.emnlp-main.243", "10.18653/v1/2022.naacl-main.266"}
    bibtex = (ROOT / "README.md").read_text().partition("## Citation")[2]
    assert f"version = {{{spt_jax.__version__}}}" in bibtex
    assert all(f"{{{doi}}}" in bibtex for doi in dois)


def test_the_recipes_name_files_and_names_that_exist():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    recipes = re.split(r"^### ", text.partition("## Recipes")[2].partition("\n## ")[0], flags=re.M)
    titles = [recipe.splitlines()[0] for recipe in recipes[1:]]
    assert titles == [f"Add {what}" for what in WHAT_RECIPES_ADD]
    for recipe in recipes[1:]:
        steps = re.findall(r"^(\d+)\. ", recipe, re.M)
        assert steps == [str(number + 1) for number in range(len(steps))] and len(steps) >= 3
        files = re.findall(r"`([\w./-]+\.(?:py|md|yaml))`", recipe)
        assert {name.split("/")[0] for name in files} >= {"spt_jax", "tests"}
        for name in files:
            assert (ROOT / name).is_file(), name
        sources = "".join((ROOT / name).read_text() for name in files if name.endswith(".py"))
        for name in re.findall(r"`([A-Za-z_]\w*(?:\.\w+)?)(?:\(\))?`", recipe):
            last = name.split(".")[-1]
            assert last in LITERALS or re.search(rf"\b{last}\b", sources), name
