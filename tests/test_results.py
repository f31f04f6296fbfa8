"""docs/results.md and the reports beside it say what the archived runs say."""

import re
import shlex
from pathlib import Path

import pytest

from spt_jax.cli.main import main
from spt_jax.studies import figures
from spt_jax.studies.page import report

DOCS = Path(__file__).parents[1] / "docs"
PAGE = (DOCS / "results.md").read_text()
COMMANDS = [shlex.split(line) for line in re.findall(r"^spt-jax (report .*)$", PAGE, re.M)]
NAMES = {"SST-2": "sst2", "TREC": "trec", "Subj": "subj", "AG News": "agnews"}


def rows_of(heading):
    """The cells of the table below a heading of docs/results.md, by the name of the task."""
    text = PAGE.split(f"## {heading}\n")[1].split("\n## ")[0]
    lines = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return {NAMES.get(cells[0], cells[0]): cells[1:] for cells in lines[2:]}


@pytest.fixture(scope="module")
def cells(tmp_path_factory):
    """Function of an archive, a task and settings: the cell as a report gives it."""
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("spt_jax.studies.page.can_draw", lambda: False)
        for name in ("methods", "steps"):
            page = tmp_path_factory.mktemp(name) / "report.md"
            found[name] = report(DOCS / "results" / f"{name}.jsonl", page)["cells"]

    def find(name, task, **settings):
        values = {key.replace("__", "."): value for key, value in settings.items()}
        return next(
            (c for c in found[name] if c["task"] == task and values.items() <= c["values"].items()),
            None,
        )

    return find


def test_every_archive_has_a_report_and_the_command_that_makes_it():
    archives = {path.stem for path in (DOCS / "results").glob("*.jsonl")}
    assert archives == {path.stem for path in (DOCS / "results").glob("*.md")}
    assert archives == {Path(words[1]).stem for words in COMMANDS} and len(archives) >= 5
    assert all(f"(results/{name}.md)" in PAGE for name in archives)


@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: Path(words[1]).stem)
def test_a_report_is_what_its_command_writes(words, tmp_path, monkeypatch):
    if not figures.can_draw():
        pytest.skip("extra 'results' is not installed: no matplotlib")
    monkeypatch.chdir(DOCS.parent)
    page = tmp_path / Path(words[1]).with_suffix(".md").name
    assert main([*words, f"--output={page}"]) == 0
    kept = DOCS / "results" / page.name
    for ending in (".md", ".csv", ".jsonl"):
        assert page.with_suffix(ending).read_bytes() == kept.with_suffix(ending).read_bytes()
    for figure in tmp_path.glob("*.svg"):
        assert (kept.parent / figure.name).is_file()


def test_scores_of_the_first_table_are_those_of_the_archive(cells):
    table = rows_of("Scores")
    assert len(table) == 8
    for task, row in table.items():
        for column, settings in ((4, {"prompt__length": 20}), (6, {"steps": 400})):
            cell = cells("methods", task, **settings)
            assert row[column].strip("*") == f"{cell['mean']:.1f} ± {cell['deviation']:.1f}"


def test_shares_of_model_tuning_are_computed_from_the_archives(cells):
    majority = {task: float(row[0]) for task, row in rows_of("Scores").items()}
    for task, row in rows_of("How much of model tuning a prompt gains").items():
        for shown, (length, steps) in zip(row, ((20, 900), (20, 3600), (100, 3600), (100, 7200))):
            archive = "methods" if steps == 900 else "steps"
            prompt = cells(archive, task, prompt__length=length, steps=steps)
            if shown == "–":
                assert prompt is None
                continue
            model = cells("methods", task, prompt__length=None, steps=400 if steps == 900 else 1600)
            score, _, share = shown.removesuffix(" (seed 0)").partition(": ")
            assert score == f"{prompt['mean']:.1f}"
            assert shown.endswith(" (seed 0)") == (prompt["n"] == 1)
            if share != "–":
                gained = prompt["mean"] - majority[task]
                expected = gained / (model["mean"] - majority[task])
                assert float(share) == pytest.approx(expected, abs=0.0075)
