"""`spt-jax report`: which runs count, what the page says, what is chosen and what is compared.

No run is trained: folders are written with made-up scores.
"""

import csv
import dataclasses
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from support.runs import write_scores

from spt_jax.cli import main as cli
from spt_jax.config.train import EvalConfig, OptimizerConfig, PromptConfig, TaskConfig, TrainConfig
from spt_jax.errors import RunError
from spt_jax.studies import figures, packs, page
from spt_jax.studies import sweep as sweep_module
from spt_jax.studies.cells import Cell, choose_by_dev, compare, make_cells, read_values
from spt_jax.studies.collect import LeftOut, collect
from spt_jax.studies.grid import Study
from spt_jax.studies.page import report
from spt_jax.studies.statistics import equivalence_p_value, summarize
from spt_jax.studies.tables import difference_table, table


def make_config(task="library", length=20, rate=0.3, seed=0, **changes):
    return TrainConfig(
        **{
            "task": TaskConfig(name=task) if isinstance(task, str) else task,
            "prompt": PromptConfig(length=length),
            "optimizer": OptimizerConfig(learning_rate=rate),
            "steps": 20,
            "seed": seed,
            **changes,
        }
    )


SCORES = {
    # length: score on test of the seeds 0, 1, ...; the dev scores are half of it
    5: (30.0, 31.0, 33.0, 30.5, 31.5),
    20: (40.0, 40.5, 41.5, 39.5, 41.0),
    100: (40.5, 40.6, 41.2, 40.0, 41.4),
}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Three lengths, two tasks, five seeds; `type` scores 10 more."""
    folder = tmp_path_factory.mktemp("study")
    for task, more in (("library", 0), ("type", 10)):
        for length, scores in SCORES.items():
            for seed, score in enumerate(scores):
                config = make_config(task, length, seed=seed)
                dev = {10: score / 4, 20: score / 2}
                name = f"task={task},length={length},seed={seed}"
                write_scores(folder / name, config, score=score + more, dev=dev)
    return folder


@pytest.fixture
def study(written, tmp_path):
    """A copy of it, which a test may change."""
    return shutil.copytree(written, tmp_path / "study")


@pytest.fixture
def drawn():
    """Requested by the tests whose pages have figures. All others save the time."""
    if not figures.can_draw():
        pytest.skip("extra 'results' is not installed: no matplotlib")


@pytest.fixture(autouse=True)
def few_figures(request, monkeypatch):
    if "drawn" not in request.fixturenames:
        monkeypatch.setattr(page, "can_draw", lambda: False)


# Which runs count, and what varies.


def test_a_run_is_read_with_its_scores_costs_and_curve(tmp_path):
    write_scores(tmp_path / "deep" / "run", make_config(seed=7), score=41.5, seconds=3.0)
    (row,) = collect(tmp_path).rows
    found = dataclasses.asdict(row)
    options = found.pop("options")
    assert options["prompt.length"] == 20 and not {"seed", "log.every"} & {*options}
    assert found == {
        "study": str(tmp_path),
        "run": "deep/run",
        "task": "library",
        "seed": 7,
        "values": {},
        "score": 41.5,
        "rank_score": 42.5,
        "dev_score": 45.0,
        "best_step": 20,
        "near_best_step": 20,
        "steps": 20,
        "trained_params": 320,
        "seconds": 3.0,
        "examples_per_second": 80.0,
        "device": "1 x cpu (cpu)",
        "test_rows": 1327,
        "majority_score": 12.0,
        "unprompted_score": None,
        "unprompted_rank_score": None,
        "identity": {},
        "curve": [(10, 40.0), (20, 45.0)],
    }


def test_a_step_is_near_the_best_from_99_percent_of_its_dev_score_on(tmp_path):
    for seed, dev in enumerate(({10: 39.7, 20: 39.5, 30: 40.0}, {10: 39.5, 20: 39.6, 30: 40.0})):
        write_scores(tmp_path / str(seed), make_config(seed=seed), dev=dev)
    assert [row.near_best_step for row in collect(tmp_path).rows] == [10, 20]
    (tmp_path / "1" / "log.jsonl").unlink()
    assert collect(tmp_path).rows[1].near_best_step is None


def test_the_folder_may_be_a_run_itself(tmp_path):
    assert collect(write_scores(tmp_path / "run", make_config())).rows[0].run == "."


def test_what_is_inside_of_a_run_is_no_run(tmp_path):
    write_scores(tmp_path / "run", make_config())
    write_scores(tmp_path / "run" / "model" / "copy", make_config(seed=1))
    assert [row.run for row in collect(tmp_path).rows] == ["run"]


def test_options_without_effect_may_have_values_of_older_versions(tmp_path):
    file = write_scores(tmp_path / "run", make_config()) / "config.yaml"
    file.write_text(file.read_text().replace("remat: none", "remat: false"))
    assert "remat: false" in file.read_text() and len(collect(tmp_path).rows) == 1


def test_what_varies_is_found_by_comparing_the_configs(study):
    table = collect(study)
    assert table.fields == {"prompt.length": []}
    assert len(table.rows) == 30 and not table.left_out and not table.notes
    assert table.rows[0].values == {"prompt.length": 100}


def test_an_option_that_follows_from_the_task_or_from_another_is_no_field_of_its_own(tmp_path):
    for task, length, rate, steps in (
        ("library", 5, 0.3, 20),
        ("library", 20, 0.1, 20),
        ("type", 5, 0.3, 40),
        ("type", 20, 0.1, 40),
    ):
        config = make_config(task, length, rate, steps=steps)
        write_scores(tmp_path / f"{task}{length}", config)
    assert collect(tmp_path).fields == {"prompt.length": ["optimizer.learning_rate"]}


def test_how_often_dev_is_scored_follows_the_steps_and_not_they_it(tmp_path):
    for steps in (20, 40):
        config = make_config(steps=steps, eval=EvalConfig(every=steps // 2))
        write_scores(tmp_path / str(steps), config)
    assert collect(tmp_path).fields == {"steps": ["eval.every"]}


def test_options_without_effect_do_not_vary(tmp_path):
    write_scores(tmp_path / "a", make_config())
    config = make_config(seed=1, remat="full", eval=EvalConfig(baselines=False, batch_size=8))
    write_scores(tmp_path / "b", config)
    assert collect(tmp_path).fields == {}


def test_model_tuning_has_no_prompt(tmp_path):
    write_scores(tmp_path / "prompt", make_config())
    write_scores(tmp_path / "model", make_config(prompt=None, tune="model"))
    table = collect(tmp_path)
    assert [row.values["prompt.length"] for row in table.rows] == [None, 20]
    assert {"tune", "prompt.init"} <= {*table.fields, *table.fields["prompt.length"]}


def test_an_unfinished_run_is_listed_with_its_last_step(study):
    write_scores(study / "more", make_config(seed=9), score=None, dev={10: 3.0})
    table = collect(study)
    assert table.left_out == [LeftOut("more", "it is not finished: its log ends at step 10 of 20")]
    assert len(table.rows) == 30


def test_a_run_that_has_not_begun_is_listed(study):
    write_scores(study / "more", make_config(seed=9), score=None)
    (study / "more" / "log.jsonl").unlink()
    assert collect(study).left_out[0].reason == "it is not finished: its log ends at step 0 of 20"


def test_a_sweep_is_read_with_the_reasons_of_its_failed_runs(tmp_path, monkeypatch):
    def fit_together(configs, workdirs, **options):
        outcomes = []
        for config, workdir in zip(configs, workdirs, strict=True):
            write_scores(workdir, config, score=None if config.seed else 50.0)
            failed = RunError("the loss is nan at step 3") if config.seed else None
            outcomes.append(failed or json.loads((workdir / "result.json").read_text()))
        return outcomes

    monkeypatch.setattr(packs, "fit_together", fit_together)
    base = {"task.name": "library", "steps": 20}
    sweep_module.sweep(Study(base, {"prompt.length": [5, 20]}, seeds=(0, 1)), tmp_path / "s")
    table = collect(tmp_path / "s")
    assert table.fields == {"prompt.length": []}
    assert [row.run for row in table.rows] == ["prompt.length=20,seed=0", "prompt.length=5,seed=0"]
    assert table.left_out == [
        LeftOut(f"prompt.length={length},seed=1", "failed: the loss is nan at step 3")
        for length in (20, 5)
    ]


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("config.yaml", "name: nano\nsteps: 3\n", "it is no training run: its config has no task"),
        (
            "config.yaml",
            "[1, 2]",
            "config.yaml is damaged (it is no mapping); expected the options",
        ),
        ("config.yaml", "task: [", "config.yaml is damaged (while parsing a flow node"),
        ("config.yaml", "task: {name: library}\nstep: 3\n", "TrainConfig has no field 'step'"),
        ("result.json", "{", "Expecting property name"),
        ("result.json", '{"task": "t", "score": "nan"}', "its result has no score"),
        ("result.json", '{"task": "t", "score": 3.0}', "its result has no dev_score"),
        ("result.json", '{"task": "t", "score": NaN}', "its result has no score"),
        ("result.json", "[]", "its result has no task"),
        ("timing.jsonl", '{"step": 1}\n', "a line of its logs has no 'seconds'"),
        ("log.jsonl", '{"step": 1, "split": "dev"}\n', "a line of its logs has no 'score'"),
        ("log.jsonl", "no log\n", "log.jsonl:1 is 'no log', expected a JSON object"),
        ("timing.jsonl", "[]\n", "timing.jsonl:1 is '[]', expected a JSON object"),
    ],
)
def test_a_damaged_run_is_listed_with_the_reason(study, name, text, reason):
    (study / "task=library,length=5,seed=0" / name).write_text(text)
    table = collect(study)
    assert len(table.rows) == 29
    ((run, given),) = table.left_out
    assert run == "task=library,length=5,seed=0" and reason in given


def test_no_seed_of_a_cell_counts_twice(study):
    write_scores(study / "z", make_config("library", 5, seed=0), score=99.0)
    table = collect(study)
    reason = "it has the same options and seed as 'task=library,length=5,seed=0'"
    assert table.left_out == [LeftOut("z", reason)] and len(table.rows) == 30


@pytest.mark.parametrize(("what", "lengths"), [("model", (5, 5)), ("data", (5, 20))])
def test_runs_of_other_weights_or_rows_are_told(tmp_path, what, lengths):
    for seed, length in enumerate(lengths):
        identity = {"model_fingerprint": "m", "data_fingerprint": "d"}
        identity[f"{what}_fingerprint"] = str(seed)
        config = make_config(length=length, seed=seed)
        write_scores(tmp_path / str(seed), config, identity=identity)
    (note,) = collect(tmp_path).notes
    assert note == (
        f"'1' and '0' have the same options of the {what} but not the same {what} (their "
        "fingerprints differ), so more than their options differs between them."
    )
    assert f"**Careful.** {note}" in read_report(tmp_path)


def test_runs_of_other_tasks_have_other_rows_without_a_note(tmp_path):
    for task in ("library", "type"):
        identity = {"model_fingerprint": "m", "data_fingerprint": task}
        write_scores(tmp_path / task, make_config(task), identity=identity)
    assert not collect(tmp_path).notes


def test_dev_rows_that_are_test_rows_too_are_told(tmp_path):
    own = TaskConfig(name="glue/rte", source="a.jsonl", template="{text}", label="label")
    apart = TaskConfig(name="glue/mrpc", dev_from_train=True)
    for number, task in enumerate((TaskConfig(name="glue/rte"), own, apart)):
        write_scores(tmp_path / str(number), make_config(task))
    [note] = collect(tmp_path).notes
    assert note.startswith("The dev rows of glue/rte are the published validation rows, which are")


# Cells: choosing and comparing.


def test_cells_have_their_seeds_in_order_and_are_sorted_by_number(study):
    cells = make_cells(collect(study))
    found = [(cell.task, cell.values["prompt.length"]) for cell in cells]
    assert found == [(task, length) for task in ("library", "type") for length in (5, 20, 100)]
    assert all([row.seed for row in cell.rows] == [0, 1, 2, 3, 4] for cell in cells)
    assert cells[0].summary("score") == summarize(SCORES[5])
    for seed in (9, 10):  # by name, "seed=10" comes first
        write_scores(study / f"more,seed={seed}", make_config(length=7, seed=seed))
    found = [[row.seed for row in cell.rows] for cell in make_cells(collect(study))]
    assert [9, 10] in found


def write_grid(folder, scores, seeds=(0, 1)):
    """Runs of {(length, rate): (score, dev score)}."""
    for (length, rate), (score, dev) in scores.items():
        for seed in seeds:
            config = make_config(length=length, rate=rate, seed=seed)
            name = f"{length},{rate},{seed}"
            write_scores(folder / name, config, score=score + seed, dev={20: dev + seed})
    return make_cells(collect(folder))


def fields_of(cells):
    return dict.fromkeys(cells[0].values, ())


def test_cells_are_chosen_by_dev_and_never_by_test(tmp_path):
    scores = {(5, 0.1): (90.0, 10.0), (5, 0.3): (20.0, 30.0), (20, 0.1): (40.0, 20.0)}
    cells = write_grid(tmp_path, scores)
    best = choose_by_dev(cells, "library", {})
    assert best is not None and best.values == {"prompt.length": 5, "optimizer.learning_rate": 0.3}
    slow = choose_by_dev(cells, "library", {"optimizer.learning_rate": 0.1})
    assert slow is not None and slow.values["prompt.length"] == 20
    assert choose_by_dev(cells, "library", {"prompt.length": 100}) is None
    assert choose_by_dev(cells, "type", {}) is None


def test_a_difference_is_taken_within_task_and_seed(study):
    cells = make_cells(collect(study))
    differences = compare(cells, {"prompt.length": 100}, "score", 1.0)
    assert [(d.values["prompt.length"], d.task) for d in differences] == [
        (length, task) for length in (5, 20) for task in ("library", "type", None)
    ]
    expected = np.subtract(SCORES[20], SCORES[100])
    for difference in differences[3:]:
        assert difference.summary == pytest.approx(summarize(expected))
        assert difference.p == pytest.approx(equivalence_p_value(expected, 1.0))
        assert difference.p < 0.05 < differences[0].p


def test_pairs_are_of_common_seeds_alone_whatever_their_order(study):
    for seed in (0, 3):
        (study / f"task=library,length=20,seed={seed}" / "result.json").unlink()
    (study / "task=type,length=100,seed=4" / "result.json").unlink()
    cells = make_cells(collect(study))
    library, kind, mean = compare(cells, {"prompt.length": 100}, "score")[3:]
    expected = np.subtract(SCORES[20], SCORES[100])
    assert library.summary == pytest.approx(summarize(expected[[1, 2, 4]]))
    assert kind.summary == pytest.approx(summarize(expected[:4]))
    assert mean.task is None and mean.summary == pytest.approx(summarize(expected[[1, 2]]))
    assert library.p is None


def test_the_mean_of_all_tasks_counts_a_seed_once(tmp_path):
    for task, differences in (("library", (1.0, 3.0)), ("type", (5.0, 1.0))):
        for seed, difference in enumerate(differences):
            for length, score in ((5, 40 + difference), (20, 40)):
                config = make_config(task, length, seed=seed)
                write_scores(tmp_path / f"{task}{length}{seed}", config, score=score)
    mean = compare(make_cells(collect(tmp_path)), {"prompt.length": 20}, "score")[-1]
    assert mean.summary is not None and mean.summary[:2] == (2, 2.5)
    assert mean.summary.deviation == pytest.approx(np.std([3.0, 2.0], ddof=1))


def test_each_side_of_a_comparison_has_its_own_best_settings_by_dev(tmp_path):
    scores = {
        (5, 0.1): (30.0, 30.0),
        (5, 0.3): (99.0, 20.0),
        (20, 0.1): (99.0, 10.0),
        (20, 0.3): (50.0, 50.0),
    }
    cells = write_grid(tmp_path, scores)
    (difference,) = compare(cells, {"prompt.length": 20}, "score")
    rates = tuple(values["optimizer.learning_rate"] for values in difference.chosen)
    assert rates == (0.1, 0.3)
    assert difference.summary is not None and difference.summary.mean == -20


def test_a_baseline_of_two_options_is_compared_with_every_other_combination(tmp_path):
    scores = {(5, 0.1): (30, 3), (5, 0.3): (20, 2), (20, 0.1): (40, 4)}
    cells = write_grid(tmp_path, scores)
    baseline = read_values("optimizer.learning_rate=0.1,prompt.length=5", cells, fields_of(cells))
    means = {
        tuple(d.values.values()): d.summary.mean
        for d in compare(cells, baseline, "score")
        if d.summary is not None
    }
    assert means == {(0.1, 20): 10, (0.3, 5): -10}


def test_one_common_seed_gives_a_difference_without_interval_and_test(tmp_path):
    cells = write_grid(tmp_path, {(5, 0.3): (30, 3), (20, 0.3): (40, 4)}, seeds=(3,))
    (difference,) = compare(cells, {"prompt.length": 20}, "score", 1.0)
    assert difference.summary == (1, -10.0, None, None, None) and difference.p is None
    last = difference_table([difference], 1.0).splitlines()[-1]
    assert last == "| prompt.length=5 | library | 1 | -10.00 | – | – | – | – |"


def test_a_task_without_common_seeds_has_a_row_without_numbers(tmp_path):
    for task, seeds in (("library", {5: 0, 20: 1}), ("type", {5: 2, 20: 2})):
        for length, seed in seeds.items():
            write_scores(tmp_path / f"{task}{length}", make_config(task, length, seed=seed))
    differences = compare(make_cells(collect(tmp_path)), {"prompt.length": 5}, "score", 1.0)
    assert [d.summary and d.summary.n for d in differences] == [None, 1, None]
    rows = difference_table(differences, 1.0).splitlines()
    assert rows[2] == "| prompt.length=20 | library | 0 | – | – | – | – | – |"


def test_values_are_named_as_the_page_shows_them(tmp_path):
    cells = write_grid(tmp_path, {(5, 0.1): (1, 1), (20, 0.3): (2, 2), (20, 0.1): (2, 2)})
    for text in ("prompt.length=20,optimizer.learning_rate=0.3", "prompt.length=20.0"):
        assert read_values(text, cells, fields_of(cells))["prompt.length"] == 20
    found = read_values("optimizer.learning_rate=.3", cells, fields_of(cells))
    assert found == {"optimizer.learning_rate": 0.3}


def test_values_that_are_text_or_null(tmp_path):
    for number, prompt in enumerate((None, PromptConfig(init="text", text="a, b=c"))):
        config = make_config(prompt=prompt, tune="model" if prompt is None else "prompt")
        write_scores(tmp_path / str(number), config)
    cells = make_cells(collect(tmp_path))
    field = next(iter(cells[0].values))
    assert read_values(f"{field}=null", cells, fields_of(cells)) == {field: None}
    named = Cell("t", {"prompt.text": "a, b=c"}, ())
    assert read_values("prompt.text=a, b=c", [named], fields_of([named])) == {
        "prompt.text": "a, b=c"
    }


# The page.


def read_report(folder, **options):
    return Path(report(folder, **options)["output"]).read_text()


def test_a_table_escapes_what_would_end_a_cell():
    assert table(("a", "b"), [("x|y", "line\nbreak")]) == (
        "| a | b |\n| --- | ---: |\n| x\\|y | line break |\n"
    )


def test_the_page_has_every_cell_with_its_statistics(study):
    text = read_report(study)
    assert "- Finished runs: 30, with the seeds 0, 1, 2, 3, 4.\n" in text
    task = "- Task: library, 1,327 test rows; the most frequent answer alone scores 12.0.\n"
    assert task in text
    assert "- `prompt.length` varies: 5, 20, 100.\n" in text
    assert "| task | prompt.length | n | score | deviation | 95% interval | dev_score |\n" in text
    expected = summarize(SCORES[20])
    assert expected.deviation is not None
    row = (
        f"| library | 20 | 5 | 40.5 | {expected.deviation:.2f} | "
        f"{expected.low:.1f} to {expected.high:.1f} | 20.2 |\n"
    )
    assert row in text
    assert text.index("| library | 20 |") < text.index("| library | 100 |")
    assert "Few seeds" not in text and "Left out" not in text and "Careful" not in text
    assert "## Differences" not in text and "### By" not in text


def test_few_and_unequal_seeds_are_told(study):
    (study / "task=type,length=5,seed=1" / "result.json").unlink()
    text = read_report(study)
    assert "- **Careful.** The cells have between 4 and 5 seeds.\n" in text
    assert (
        "- **Few seeds.** 1 of 6 cells have fewer than 5 seeds. Their intervals contain the mean "
        "less often than they should: 50% with 2, 75% with 3, 87% with 4 seeds, where 95% is meant."
    ) in text
    rows = [line for line in text.splitlines() if line.startswith("| type | 5 | 4 |")]
    assert rows and all("\\* |" in row for row in rows)
    assert "## Left out\n" in text
    assert (
        "- `task=type,length=5,seed=1`: it is not finished: its log ends at step 20 of 20" in text
    )


def test_the_chosen_cell_is_the_best_on_dev_and_shows_its_test_score(tmp_path):
    scores = {(5, 0.1): (90.0, 10.0), (5, 0.3): (20.0, 30.0), (20, 0.1): (40.0, 20.0)}
    write_grid(tmp_path, scores)
    text = read_report(tmp_path)
    chosen = text.partition("## Chosen by dev\n")[2]
    best, by_length = (part.splitlines() for part in chosen.split("### By `prompt.length`\n")[:2])
    assert best[3].startswith("| library | 5 | 0.3 | 30.5 | 2 | 20.5 | 0.71 | 20.0 to 21.0")
    assert by_length[3].startswith("| library | 5 | 0.3 | 30.5 | 2 | 20.5 |")
    assert by_length[4].startswith("| library | 20 | 0.1 | 20.5 | 2 | 40.5 |")
    assert "### By `optimizer.learning_rate`\n" in text
    assert "The choice does not look at test scores." in text


def test_the_page_compares_and_tests_equivalence(study):
    text = read_report(study, baseline="prompt.length=100", margin=1.0)
    part = text.partition("## Differences to prompt.length=100\n")[2].partition("\n## ")[0]
    rows = [line for line in part.splitlines() if line.startswith("| prompt.length")]
    assert [row.split(" | ")[7].removesuffix(" |") for row in rows] == ["not shown"] * 3 + [
        "yes"
    ] * 3
    assert rows[5].startswith("| prompt.length=20 | mean of all tasks | 5 | -0.24 | 0.")
    assert rows[0].split(" | ")[6] == "1.000"
    assert "chosen by dev" not in part
    without = read_report(study, baseline="prompt.length=100")
    assert "## Differences" in without and "within" not in without


def test_the_metric_is_that_of_every_table(study):
    text = read_report(study, metric="rank_score", baseline="prompt.length=5")
    assert "| n | rank_score | deviation |" in text and "the mean rank_score of the" in text
    assert "the score on test of the likeliest label word" in text and "| 41.5 |" in text
    text = read_report(study, metric="dev_score")
    assert "| task | prompt.length | n | dev_score | deviation | 95% interval |\n" in text


def test_runs_of_one_config_make_a_page_too(tmp_path):
    for seed in range(3):
        write_scores(tmp_path / str(seed), make_config(seed=seed), score=50.0 + seed)
    text = read_report(tmp_path)
    assert "- No option varies but the seed.\n" in text
    assert "| task | n | score |" in text and "| library | 3 | 51.0 | 1.00 |" in text
    assert "Chosen by dev" not in text


def test_costs_are_means_over_the_seeds_and_hours_in_all(study):
    text = read_report(study)
    assert "| library | 20 | 320 | 20 | 20 | 20 | 2 | 80 | 1 x cpu (cpu) |\n" in text
    assert "All finished runs together: 0.02 hours." in text  # 30 runs of 2 seconds


def test_runs_without_timing_have_dashes(tmp_path):
    lacking = {"examples_per_second": None, "majority_score": None}
    folder = write_scores(tmp_path / "run", make_config(), **lacking)
    (folder / "timing.jsonl").unlink()
    (folder / "manifest.json").unlink()
    text = read_report(tmp_path)
    assert "| library | 320 | 20 | 20 | 20 | – | – | – |\n" in text
    assert "hours" not in text and "- Task: library.\n" in text


def test_rows_are_beside_the_page_as_csv_and_jsonl(study):
    read_report(study, output=study / "out" / "page.md")
    with open(study / "out" / "page.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    lines = (study / "out" / "page.jsonl").read_text().splitlines()
    assert len(rows) == len(lines) == 30
    assert rows[0]["prompt.length"] == "100" and "curve" not in rows[0]
    first = json.loads(lines[0])
    assert first["prompt.length"] == 100 and first["curve"] == [[10, 10.125], [20, 20.25]]
    assert {**rows[0], "score": float(rows[0]["score"])}["score"] == first["score"] == 40.5


def test_the_page_has_its_figures_beside_it(tmp_path, drawn):
    scores = {(n, rate): (n + rate, n) for n in (1, 5, 20) for rate in (0.1, 0.3)}
    write_grid(tmp_path, scores)
    result = report(tmp_path)
    names = [
        "report_heat_prompt.length_optimizer.learning_rate.svg",
        "report_over_optimizer.learning_rate.svg",
        "report_over_prompt.length.svg",
    ]
    assert sorted(path.name for path in tmp_path.glob("*.svg")) == names
    text = (tmp_path / "report.md").read_text()
    assert re.findall(r"!\[.*?\]\((.*?)\)", text) == [names[2], names[1], names[0]]
    assert sorted(result["figures"]) == [str(tmp_path / name) for name in names]
    drawn = (tmp_path / names[2]).read_text()
    assert "prompt.length" in drawn and "optimizer.learning_rate=0.1" in drawn
    assert ">20.6<" in (tmp_path / names[0]).read_text()  # the mean over two seeds


def test_learning_curves_have_the_steps_that_all_seeds_have(tmp_path, drawn):
    for seed in (0, 1):
        dev = dict.fromkeys((10, 20, 30)[: 3 - seed], 40.0)
        write_scores(tmp_path / str(seed), make_config(seed=seed), dev=dev)
    (figure,) = report(tmp_path)["figures"]
    assert figure.endswith("report_curves.svg")
    drawn = Path(figure).read_text()
    assert "all runs" in drawn and ">library<" in drawn and "dev score" in drawn


def test_lengths_are_on_a_log_scale_and_the_cell_that_is_worst_on_dev_has_no_curve(tmp_path, drawn):
    for length in (1, 2, 3, 4, 5, 10, 20, 50, 100):
        dev = {10: 1.0, 20: 60.0 - length % 50}  # 20 is the worst
        write_scores(tmp_path / str(length), make_config(length=length), dev=dev)
    curves, over = (Path(figure).read_text() for figure in report(tmp_path)["figures"])
    shown = set(re.findall(r"prompt\.length=(\d+)<", curves))
    assert shown == {"1", "2", "3", "4", "5", "10", "50", "100"}
    ticks = re.findall(r'<g id="xtick_\d+">.*?<use [^>]*? x="([\d.]+)"', over, re.DOTALL)
    one, ten, hundred = (float(ticks[number]) for number in (0, 5, 8))
    assert ten - one == pytest.approx(hundred - ten, rel=1e-3)


def test_a_heat_map_needs_two_options_that_vary_independently(tmp_path, drawn):
    write_grid(tmp_path, {(5, 0.1): (1, 1), (20, 0.3): (2, 2), (100, 0.3): (2, 2)})
    report(tmp_path)
    assert not [*tmp_path.glob("*heat*")] and len([*tmp_path.glob("*over*")]) == 2


def test_the_same_runs_give_the_same_bytes(tmp_path, drawn):
    write_grid(tmp_path, {(5, 0.1): (1, 1), (20, 0.3): (2, 2), (20, 0.1): (2, 2)})

    def files():
        report(tmp_path, baseline="prompt.length=20", margin=1.0)
        return [(path.name, path.read_bytes()) for path in sorted(tmp_path.glob("report*"))]

    before = files()
    assert len(before) == 6 and files() == before  # three figures


def test_without_matplotlib_the_page_has_no_figures_and_says_what_to_install(
    study, monkeypatch, drawn
):
    monkeypatch.setattr(figures.importlib.util, "find_spec", lambda name: None)
    text = read_report(study)
    assert (
        "## Figures\n\nNone: matplotlib is not installed, so there are no figures; "
        "pip install 'spt_jax[results]'.\n"
    ) in text
    assert not [*study.glob("*.svg")]


# The command.


@pytest.fixture
def run(capsys):
    def run(*argv):
        code = cli.main(["report", *map(str, argv)])
        out, err = capsys.readouterr()
        return code, out, err

    return run


def test_the_command_prints_the_cells_and_the_place_of_the_page(study, run):
    code, out, err = run(study)
    assert (code, err) == (0, f"spt-jax: {page.NO_FIGURES}\n")
    lines = out.splitlines()
    assert lines[0].split() == ["task", "prompt.length", "n", "score", "interval"]
    assert lines[2].split()[:4] == ["library", "20", "5", "40.5"]
    assert lines[-1] == f"{study / 'report.md'} is written, with 30 runs in it"


def test_the_command_says_how_many_runs_are_left_out(study, run):
    write_scores(study / "more", make_config(seed=9), score=None)
    assert run(study)[1].endswith("with 30 runs in it, 1 left out\n")


def test_the_command_draws_where_matplotlib_is_installed(tmp_path, run, drawn):
    write_scores(tmp_path / "run", make_config())
    code, _, err = run(tmp_path)
    assert (code, err) == (0, "") and (tmp_path / "report_curves.svg").is_file()


def test_the_result_as_json(study, run):
    output = study / "x.md"
    options = ("--compare=prompt.length=100", "--margin=1", "--metric=score", f"--output={output}")
    code, out, err = run(study, *options, "--json")
    assert (code, err) == (0, f"spt-jax: {page.NO_FIGURES}\n")
    result = json.loads(out)
    assert (result["output"], result["runs"], result["left_out"]) == (str(output), 30, [])
    assert result["best"] == {"library": {"prompt.length": 100}, "type": {"prompt.length": 100}}
    cell = result["cells"][1]
    assert cell["task"] == "library" and cell["values"] == {"prompt.length": 20}
    assert (cell["n"], cell["mean"], cell["seeds"]) == (5, 40.5, [0, 1, 2, 3, 4])
    last = result["differences"][-1]
    assert last["compared"] == {"prompt.length": 20} and last["task"] is None
    assert last["equivalent"] == "yes" and 0 < last["p"] < 0.05
    assert last["mean"] == pytest.approx(-0.24)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--compare=100", "--compare is '100', expected OPTION=VALUE or several with commas"),
        (
            "--compare=prompt.lenght=100",
            "--compare names 'prompt.lenght', which does not vary within a task; what does: "
            "prompt.length (did you mean 'prompt.length'?)",
        ),
        (
            "--compare=prompt.length=7",
            "--compare gives prompt.length as '7', but the runs have 5, 20, 100",
        ),
        ("--compare=prompt.length=x", "--compare gives prompt.length as 'x', but the runs have 5,"),
        ("--margin=1", "--margin is given without --compare, which names what is compared"),
        (
            "--compare=prompt.length=5 --margin=0",
            "--margin is 0, expected points, more than 0 and at most 100",
        ),
        ("--compare=prompt.length=5 --margin=101", "--margin is 101, expected points"),
        ("--metric=accuracy", "metric is 'accuracy', expected one of score, rank_score, dev_score"),
    ],
)
def test_bad_options_are_one_line(study, run, options, message):
    code, out, err = run(study, *options.split())
    assert (code, out) == (2, "") and message in err and err.count("\n") == 1
    assert not (study / "report.md").exists()


def test_a_comparison_needs_something_that_varies(tmp_path, run):
    write_scores(tmp_path / "run", make_config())
    code, _, err = run(tmp_path, "--compare=prompt.length=20")
    assert code == 2 and "does not vary within a task; nothing but seed and task does" in err


def test_an_option_that_follows_another_is_named_with_it(tmp_path, run):
    write_grid(tmp_path, {(5, 0.3): (1, 1), (20, 0.1): (2, 2)})
    code, _, err = run(tmp_path, "--compare=optimizer.learning_rate=0.3")
    assert code == 2
    assert (
        "--compare names 'optimizer.learning_rate', which varies only together with "
        "'prompt.length'; name that one"
    ) in err


def test_a_combination_that_no_run_has_is_named(tmp_path, run):
    write_grid(tmp_path, {(5, 0.1): (1, 1), (20, 0.3): (2, 2), (20, 0.1): (2, 2)})
    code, _, err = run(tmp_path, "--compare=prompt.length=5,optimizer.learning_rate=0.3")
    assert code == 2
    assert "no finished run has prompt.length=5,optimizer.learning_rate=0.3, so nothing can" in err


def test_a_comparison_without_common_seeds_is_named(tmp_path, run):
    for length, seed in ((5, 0), (20, 1)):
        write_scores(tmp_path / str(length), make_config(length=length, seed=seed))
    code, _, err = run(tmp_path, "--compare=prompt.length=5")
    assert code == 2
    assert (
        "no run has a seed in common with a run of prompt.length=5, and a difference is taken "
        "between runs of one seed; train both with the same seeds"
    ) in err


def test_a_metric_that_runs_lack_is_named(study, run):
    write_scores(study / "z", make_config(seed=9), rank_score=None)
    code, _, err = run(study, "--metric=rank_score")
    assert code == 2
    assert (
        "1 of 31 runs have no rank_score, such as 'z', because answers in free text are not "
        "ranked; give --metric=score"
    ) in err


def test_a_folder_without_runs_is_named(tmp_path, run):
    code, _, err = run(tmp_path)
    assert code == 2
    assert (
        f"'{tmp_path}' contains no run; expected folders as `spt-jax train` and `spt-jax sweep` "
        "write them, each with a config.yaml"
    ) in err


def test_a_folder_that_does_not_exist_is_named(tmp_path, run):
    code, _, err = run(tmp_path / "nowhere")
    assert code == 2 and "nowhere' is no folder; expected one with runs in it" in err


def test_an_address_is_named_with_the_command_that_copies_it(run):
    code, _, err = run("gs://bucket/study")
    assert code == 2
    assert (
        "'gs://bucket/study' is in a bucket, and a report reads folders of this machine; copy it "
        "with `gcloud storage cp -r gs://bucket/study .` first"
    ) in err


def test_a_folder_without_a_finished_run_is_named(tmp_path, run):
    write_scores(tmp_path / "run", make_config(), score=None)
    code, _, err = run(tmp_path)
    assert code == 2
    assert (
        f"'{tmp_path}' contains no finished run, but 1 other(s), such as 'run': it is not "
        "finished: its log ends at step 20 of 20"
    ) in err


# The runs of an earlier report.


def test_a_report_of_the_runs_of_a_report_has_the_same_bytes(study, run):
    write_scores(study / "more", make_config(seed=9), score=None)
    write_scores(study / "twice", make_config(length=5, seed=0))
    report(study, study / "out" / "page.md")
    shutil.copytree(study / "out", study / "again")
    (study / "again" / "page.md").unlink()
    code, out, _ = run(study / "again" / "page.jsonl")
    assert code == 0 and out.endswith("page.md is written, with 30 runs in it, 2 left out\n")
    for name in ("page.md", "page.csv", "page.jsonl"):
        assert (study / "again" / name).read_bytes() == (study / "out" / name).read_bytes()


def test_runs_of_two_reports_are_one_study(tmp_path):
    lines = ""
    for length in (5, 20):
        write_scores(tmp_path / str(length) / "run", make_config(length=length))
        report(tmp_path / str(length))
        lines += (tmp_path / str(length) / "report.jsonl").read_text()
    (tmp_path / "both.jsonl").write_text(lines)
    table = collect(tmp_path / "both.jsonl")
    assert table.studies == [str(tmp_path / "5"), str(tmp_path / "20")]
    assert table.fields == {"prompt.length": []} and len(table.rows) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda line: line[:40], "line 2 is no run: "),
        (lambda line: "[]", "line 2 is no run: it has no task;"),
        (lambda line: line.replace('"options"', '"x"'), "line 2 is no run: it has no options;"),
        (lambda line: line.replace('"score": 40', '"score": NaN, "x": 40'), "it has no score;"),
        (lambda line: line.replace('"device"', '"seconds": "1", "device"'), "it has no seconds;"),
        (lambda line: line.replace("[[10,", "[10, [10,"), "its curve is no list of pairs of num"),
        (lambda line: line.replace('"identity": {}', '"identity": 1'), "it has no identity;"),
        (lambda line: '{"left_out": "x"}', "line 2 is no run: it has no run;"),
    ],
)
def test_a_damaged_line_is_named_by_its_number(tmp_path, run, change, message):
    write_scores(tmp_path / "run", make_config())
    report(tmp_path)
    file = tmp_path / "report.jsonl"
    line = file.read_text().replace('"score": 50.0', '"score": 40').strip()
    file.write_text(f"{line}\n{change(line)}\n")
    code, out, err = run(file)
    assert (code, out) == (2, "") and message in err and err.count("\n") == 1
    assert "make the file again from the folders of the runs" in err


def test_a_file_without_runs_is_named(tmp_path, run):
    (tmp_path / "report.jsonl").touch()
    code, _, err = run(tmp_path / "report.jsonl")
    assert code == 2 and "report.jsonl' contains no run; expected folders as" in err
