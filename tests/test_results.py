"""docs/results.md, docs/findings.md and the reports say what the archived runs say."""

import re
import shlex
from pathlib import Path
from statistics import mean, stdev

import pytest

from spt_jax.cli.main import main
from spt_jax.studies import figures
from spt_jax.studies.rows import read_lines

DOCS = Path(__file__).parents[1] / "docs"
RESULTS = (DOCS / "results.md").read_text()
FINDINGS = (DOCS / "findings.md").read_text()
COMMANDS = [shlex.split(line) for line in re.findall(r"^spt-jax (report .*)$", RESULTS, re.M)]
NAMES = {"SST-2": "sst2", "TREC": "trec", "Subj": "subj", "AG News": "agnews"}


def table_of(page, header):
    """The cells of the table that begins with this header, by the name of the task."""
    text = page[page.index(f"\n| {header} |") :].strip().split("\n\n")[0]
    lines = [line.strip("| ").split(" | ") for line in text.splitlines()[2:]]
    return {NAMES.get(cells[0], cells[0]): cells[1:] for cells in lines}


SCORES = table_of(RESULTS, "task | majority")


def runs_of(archive, task, length, steps):
    """The archived runs of a task with prompts of this length, or of model tuning if it is None."""
    rows, left_out = read_lines(DOCS / "results" / f"{archive}.jsonl")
    assert not left_out
    found = []
    for row in rows:
        given = row.task, row.options.get("prompt.length"), row.options["steps"]
        if given == (task, length, steps):
            found.append(row)
    return found


def shown(values):
    """The mean and the deviation as the table shows them; a dash if there are no values."""
    values = [value for value in values if value is not None]
    return f"{mean(values):.1f} ± {stdev(values):.1f}" if values else "–"


def test_every_archive_has_a_report_and_the_command_that_makes_it():
    archives = {path.stem for path in (DOCS / "results").glob("*.jsonl")}
    assert archives == {path.stem for path in (DOCS / "results").glob("*.md")}
    assert archives == {Path(words[1]).stem for words in COMMANDS} and len(archives) >= 5
    assert all(f"(results/{name}.md)" in page for name in archives for page in (RESULTS, FINDINGS))


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
    drawn = {figure.name for figure in tmp_path.glob("*.svg")}
    assert drawn == {figure.name for figure in kept.parent.glob(f"{kept.stem}_*.svg")}


@pytest.mark.parametrize("task", SCORES)
def test_scores_are_those_of_the_archive(task):
    majority, _, unprompted, unprompted_rank, *trained = SCORES[task]
    prompt, model = runs_of("methods", task, 20, 900), runs_of("methods", task, None, 400)
    assert len(prompt) == len(model) == 3
    assert {majority} == {f"{row.majority_score:.1f}" for row in prompt}
    first = next(row for row in prompt if row.seed == 0)
    rank = first.unprompted_rank_score
    assert unprompted == f"{first.unprompted_score:.1f}"
    assert unprompted_rank == ("–" if rank is None else f"{rank:.1f}")
    expected = [
        shown(getattr(row, name) for row in rows)
        for rows in (prompt, model)
        for name in ("score", "rank_score")
    ]
    assert [cell.strip("*") for cell in trained] == expected


def test_the_first_table_has_every_task():
    assert len(SCORES) == 8


def test_shares_of_model_tuning_are_computed_from_the_archives():
    table = table_of(FINDINGS, "task | 20 vectors, 900 steps")
    assert table.keys() == SCORES.keys()
    for task, row in table.items():
        for cell, (length, steps) in zip(row, ((20, 900), (20, 3600), (100, 3600), (100, 7200))):
            archive = "methods" if steps == 900 else "steps"
            prompt = runs_of(archive, task, length, steps)
            if cell == "–":
                assert not prompt
                continue
            model = runs_of("methods", task, None, 400 if steps == 900 else 1600)
            score, _, share = cell.removesuffix(" (seed 0)").partition(": ")
            assert score == f"{mean(row.score for row in prompt):.1f}"
            assert cell.endswith(" (seed 0)") == ([row.seed for row in prompt] == [0])
            if share != "–":
                majority = prompt[0].majority_score
                gained = mean(row.score for row in prompt) - majority
                expected = gained / (mean(row.score for row in model) - majority)
                assert share == f"{expected:.2f}"


def test_members_of_the_ensembles_are_archived():
    table = table_of(FINDINGS, "task | prompts")
    assert table.keys() == {"library", "sst2"}
    for task, (prompts, average, best, *_) in table.items():
        scores = [row.score for row in runs_of("ensembles", task, 20, 900)]
        assert prompts == f"{len(scores)}"
        assert (average, best) == (f"{mean(scores):.1f}", f"{max(scores):.1f}")
