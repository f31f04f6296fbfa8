"""The parts of studies/results.py: its datasets, its plan, its runs and its tables; none trains."""

import dataclasses
import importlib
import importlib.util
import json
import shutil
import sys
from pathlib import Path

import pytest
from support import tiny

from spt_jax.config.fields import to_dict
from spt_jax.config.train import TaskConfig
from spt_jax.data.files import read_records
from spt_jax.data.tasks import Example, Task, load_task
from spt_jax.runs.folder import RunFolder
from spt_jax.runs.log import write_json_atomic
from spt_jax.train import fit

STUDIES = str(Path(__file__).parents[1] / "studies")


def from_studies(*names):
    """Modules of studies/, a folder that is on the path for this import alone."""
    sys.path.insert(0, STUDIES)
    try:
        return [importlib.import_module(name) for name in names]
    finally:
        sys.path.remove(STUDIES)


results, archive, baselines, datasets, ensembles = from_studies(
    *("results", "study.archive", "study.baselines", "study.datasets", "study.ensembles")
)
figures, grid, report, runs, tables = from_studies(
    *("study.figures", "study.grid", "study.report", "study.runs", "study.tables")
)

WITHOUT_EXTRA = [name for name in results.EXTRA if importlib.util.find_spec(name) is None]
needs_extra = pytest.mark.skipif(
    bool(WITHOUT_EXTRA), reason=f"extra 'results' is not installed: no {', '.join(WITHOUT_EXTRA)}"
)
TABLE = {
    ("*", "prompt_tuning"): grid.Settings(20, 0.1, 5, 4, 16, 4, 10),
    ("*", "model_tuning"): grid.Settings(10, 0.01, 0, 4, 16, 4, 5),
    ("b", "prompt_tuning"): grid.Settings(30, 0.2, 5, 4, 32, 4, 10),
}
SWEEP = grid.Sweep(("a", "absent"), (1, 5), ("class_labels", "uniform_paper"))
LONGER = (
    grid.Longer(grid.PROMPT, 80, ("a", "absent"), (0, 7)),
    grid.Longer(grid.PROMPT, 80, ("a",), (0,), length=9),
    grid.Longer(grid.MODEL, 40, ("a",), (1,)),
)
NO_ENSEMBLES = grid.Ensembles((), ())
FINGERPRINT = "f" * 64
ROWS = {"train": 80, "dev": 10, "test": 10}
ORIGIN = runs.Origin(FINGERPRINT, {"a": ROWS, "b": ROWS})


@pytest.fixture(autouse=True)
def _keep_programs(monkeypatch):
    """Programs that other tests have compiled stay."""
    monkeypatch.setattr(runs.jax, "clear_caches", lambda: None)


# Datasets


@pytest.mark.parametrize(
    ("name", "source", "expected"),
    [
        (
            "subj",  # 0x85 is a line break in Latin-1, and 0xe9 is no UTF-8
            b"0 a caf\xe9 .\x85 and more \n1 dr . no \x96 a spy  \n",
            [("a café .… and more", "subjective"), ("dr . no – a spy", "objective")],
        ),
        (
            "trec",
            b"4 What county is Modesto in ?\n5 How far is it ?\n",
            [("What county is Modesto in ?", "location"), ("How far is it ?", "number")],
        ),
        (
            "agnews",
            b"Turner   Newall say\tBusiness\nIt #39;s over\tSci/Tech\n",
            [("Turner Newall say", "business"), ("It #39;s over", "technology")],
        ),
        (
            "sst2",
            b"sentence\tlabel\na bonus \t1\nmany clich\xc3\xa9s \t0\n",
            [("a bonus", "positive"), ("many clichés", "negative")],
        ),
    ],
)
def test_a_source_becomes_a_table_that_the_library_reads(tmp_path, name, source, expected):
    for file in datasets.DATASETS[name].files.values():
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_bytes(source)
    datasets.convert(name, tmp_path, tmp_path / "converted")
    config = datasets.task_config(name, tmp_path / "converted")
    rows = [dict(row.values) for row in read_records(config.source)]
    assert [(row["text"], row["label"]) for row in rows] == expected
    assert {label for _, label in expected} <= set(config.label_words)


@pytest.mark.parametrize(
    ("name", "line", "message"),
    [
        ("trec", b"7 What ?", r"train.txt:2: '7 What \?' has no text or no label, expected 'label"),
        ("trec", b"4", "train.txt:2: '4' has no text or no label"),
        ("agnews", b"no tab", "dev.tsv:2: 'no tab' has no text or no label, expected 'text label'"),
        ("agnews", b"caf\xe9\tWorld", "dev.tsv:2: byte 0xe9 is not utf-8; expected AG News as"),
    ],
)
def test_a_line_of_another_form_is_named(tmp_path, name, line, message):
    dataset = datasets.DATASETS[name]
    good = {"trec": b"4 Where ?", "agnews": b"News\tWorld"}[name]
    file = tmp_path / Path(dataset.files["train"]).name
    file.write_bytes(good + b"\n" + line + b"\n")
    with pytest.raises(ValueError, match=message):
        list(datasets.read_rows(file, dataset))


def test_a_dataset_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="SST-2 needs '.*sst2/train.tsv', which does not"):
        datasets.convert("sst2", tmp_path, tmp_path / "converted")


def test_classes_of_trec_are_those_of_its_raw_file(data_dir):
    # The order of the numbers is written nowhere but in the pairs of the two files.
    words = {"DESC": "description", "ENTY": "entity", "ABBR": "abbreviation"}
    words |= {"HUM": "human", "NUM": "number", "LOC": "location"}
    raw = (data_dir / "trec" / "raw_train.txt").read_bytes().split(b"\n")
    expected = [words[line.partition(b":")[0].decode()] for line in raw if line]
    trec = datasets.DATASETS["trec"]
    rows = datasets.read_rows(data_dir / "trec" / "train.txt", trec)
    assert [word for _, word in rows] == expected


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("sst2", {"train": 60_614, "dev": 6_735, "test": 872}),
        ("trec", {"test": 500}),
        ("subj", {}),
        ("agnews", {"test": 7_600}),
    ],
)
def test_a_converted_dataset_loses_no_row(data_dir, tmp_path, name, rows):
    datasets.convert(name, data_dir, tmp_path)
    task = load_task(datasets.task_config(name, tmp_path))
    sizes = {split: len(examples) for split, examples in task.splits.items()}
    totals = {"sst2": 68_221, "trec": 5_952, "subj": 10_000, "agnews": 17_601}
    assert sum(sizes.values()) == totals[name]
    assert rows.items() <= sizes.items() and min(sizes.values()) > 400
    assert {e.targets for e in task.splits["test"]} == set(datasets.DATASETS[name].words.values())


# The plan


def make_plan(workdir, seeds=(0, 1), **options):
    tasks = {"a": TaskConfig(name="library"), "b": TaskConfig(name="library")}
    options = {"longer": (), "ensembles": NO_ENSEMBLES, "model": "spt-nano"} | options
    return grid.plan(tasks, TABLE, SWEEP, seeds, workdir, **options)


def test_a_plan_has_every_method_and_seed_once_and_in_a_folder_of_its_own(tmp_path):
    planned = make_plan(tmp_path)
    methods = [(run.task, run.method) for run in planned if run.seed == 0]
    assert methods == [
        *[(task, method) for task in "ab" for method in ("prompt_tuning", "model_tuning")],
        *[("a", "length_1"), ("a", "init_uniform_paper")],  # 5 and class_labels are the first row's
    ]
    assert len({run.folder for run in planned}) == len(planned) == 2 * len(methods)
    assert planned[1].folder == tmp_path / "a" / "prompt_tuning" / "seed1"


def test_runs_of_a_method_differ_in_nothing_but_the_seed_and_methods_in_what_they_name(tmp_path):
    first, second = make_plan(tmp_path)[:2]
    same = dataclasses.replace(second.config, seed=0, eval=first.config.eval)
    assert first.config == same and (first.config.seed, second.config.seed) == (0, 1)
    assert first.config.eval.baselines and not second.config.eval.baselines
    of = {(run.task, run.method): run.config for run in make_plan(tmp_path, (0,))}
    prompt = of["a", "prompt_tuning"]
    swept = dataclasses.replace(prompt.prompt, length=1)
    scored = dataclasses.replace(prompt.eval, baselines=False)
    assert of["a", "length_1"] == dataclasses.replace(prompt, prompt=swept, eval=scored)
    assert of["a", "init_uniform_paper"].prompt.init == "uniform_paper"
    assert of["b", "prompt_tuning"].optimizer.learning_rate == 0.2  # its own row of the table
    model = of["b", "model_tuning"]
    assert (model.tune, model.prompt, model.steps) == ("model", None, 10)


def test_longer_runs_are_of_their_own_seeds_and_scored_as_often(tmp_path):
    longer = [run for run in make_plan(tmp_path, longer=LONGER) if "steps" in run.method]
    assert [(run.task, run.method, run.seed) for run in longer] == [
        ("a", "steps_80", 0), ("a", "steps_80_length_9", 0), ("a", "model_tuning_steps_40", 1)
    ]  # fmt: skip
    for run, length in zip(longer[:2], (5, 9), strict=True):
        assert (run.config.steps, run.config.eval.every) == (80, 40)
        assert run.config.prompt.length == length
    model = longer[2].config
    assert (model.tune, model.prompt, model.steps, model.eval.every) == ("model", None, 40, 20)
    trial = [run.method for run in make_plan(tmp_path, longer=LONGER, steps=3)]
    assert not any("steps" in method for method in trial)


def test_steps_for_a_trial_replace_those_of_the_table(tmp_path):
    configs = [run.config for run in make_plan(tmp_path, steps=3)]
    assert {config.steps for config in configs} == {config.eval.every for config in configs} == {3}


def test_expected_time_grows_with_steps_and_with_the_prompt(tmp_path):
    config = make_plan(tmp_path)[0].config
    longer = dataclasses.replace(config.prompt, length=100)
    assert grid.expected_minutes(config) < grid.expected_minutes(
        dataclasses.replace(config, prompt=longer)
    )
    assert grid.expected_minutes(config) < grid.expected_minutes(
        dataclasses.replace(config, steps=config.steps + 1)
    )


# Runs


def fake_fit(calls, fail=(), scores=None):
    """`fit` but for the training: it leaves the folder of a finished run."""

    def fit(config, workdir, *, overwrite=False, command=()):
        task, method = workdir.parts[-3:-1]
        calls.append((task, method, config.seed, overwrite))
        folder = RunFolder(workdir)
        facts = {"rows": ROWS, "truncated": {"train": 0.1, "dev": 0.1, "test": 0.125}}
        identity = {"model_fingerprint": FINGERPRINT}
        with folder.claim(to_dict(config), identity, facts, command, overwrite=overwrite):
            if method in fail:
                raise RuntimeError("the loss\nis nan")
            score = (scores or {}).get(method, 50.0) + config.seed
            lines = [{"step": n, "split": "dev", "score": score - 10 / n} for n in (10, 20)]
            text = "".join(f"{json.dumps(line)}\n" for line in [{"step": 1, "loss": 2.0}, *lines])
            folder.log_file.write_text(text)
            result = {
                "score": score,
                "rank_score": score + 1,
                "unprompted_score": 0.5 if config.eval.baselines else None,
                "unprompted_rank_score": 20.5 if config.eval.baselines else None,
                "best_step": 20,
                "trained_params": 1234,
                "examples_per_second": 100.0,
            }
            write_json_atomic(folder.result_file, result)
        return result

    return fit


def train(planned, overwrite=False):
    states = {run.folder: runs.state_of(run, ORIGIN) for run in planned}
    return runs.train_all(planned, states, ["results.py"], overwrite=overwrite)


def test_a_finished_run_is_not_trained_again_and_a_stopped_one_is(tmp_path, monkeypatch):
    calls, planned = [], make_plan(tmp_path, (0,))
    monkeypatch.setattr(runs, "fit", fake_fit(calls))
    assert train(planned) == [] and len(calls) == len(planned)
    assert {runs.state_of(run, ORIGIN) for run in planned} == {"finished"}
    (planned[1].folder / "result.json").unlink()  # as a killed run has it
    calls.clear()
    assert train(planned) == [] and calls == [("a", "model_tuning", 0, False)]
    times = [json.loads((run.folder / "measured.json").read_text())["seconds"] for run in planned]
    assert times[1] is None and times[0] > 0  # what it had taken before the kill is not known


def test_a_failed_run_is_reported_and_the_rest_goes_on(tmp_path, monkeypatch, capsys):
    calls, planned = [], make_plan(tmp_path, (0,))
    monkeypatch.setattr(runs, "fit", fake_fit(calls, fail=["model_tuning"]))
    failed = train(planned)
    assert failed == [f"{t} model_tuning seed 0: RuntimeError: the loss is nan" for t in "ab"]
    assert len(calls) == len(planned)
    assert f"failed: {failed[0]}\n" in capsys.readouterr().err
    assert [record.run.method for record in runs.collect(planned, ORIGIN)] == [
        *["prompt_tuning", "prompt_tuning", "length_1", "init_uniform_paper"]
    ]


def other_rate(run):
    optimizer = dataclasses.replace(run.config.optimizer, learning_rate=0.5)
    return dataclasses.replace(run, config=dataclasses.replace(run.config, optimizer=optimizer))


def other_steps(run):
    return dataclasses.replace(run, config=dataclasses.replace(run.config, steps=99))


@pytest.mark.parametrize(
    ("change", "origin", "message"),
    [
        (other_rate, ORIGIN, r"another config: optimizer.learning_rate \(0.1 there, 0.5 now\)"),
        (other_steps, ORIGIN, r"another number of steps \(20 there, 99 now\); give another --work"),
        (None, runs.Origin("e" * 64, {}), r"another backbone \(ffffffffffff there, eeeeeeeeeeee"),
        (None, runs.Origin(FINGERPRINT, {"a": {**ROWS, "dev": 9}}), "another number of rows"),
    ],
)
def test_a_run_of_something_else_is_not_counted_and_not_overwritten(
    tmp_path, monkeypatch, change, origin, message
):
    calls, (run, *_) = [], make_plan(tmp_path, (0,))
    monkeypatch.setattr(runs, "fit", fake_fit(calls))
    train([run])
    run = change(run) if change else run
    state = runs.state_of(run, origin)
    assert runs.collect([run], origin) == []
    [line] = runs.train_all([run], {run.folder: state}, [])
    assert len(calls) == 1
    with pytest.raises(ValueError, match=message):
        raise ValueError(line)
    assert runs.train_all([run], {run.folder: state}, [], overwrite=True) == []
    assert calls[1] == ("a", "prompt_tuning", 0, True)


def test_time_left_goes_by_the_runs_that_were_timed(tmp_path):
    planned = make_plan(tmp_path, (0,))
    assert runs.speed_scale(planned) == 1
    planned[0].folder.mkdir(parents=True)
    seconds = 3 * 60 * grid.expected_minutes(planned[0].config)
    (planned[0].folder / "measured.json").write_text(json.dumps({"seconds": seconds}))
    assert runs.speed_scale(planned) == pytest.approx(3)
    total = 3 * sum(grid.expected_minutes(run.config) for run in planned[1:])
    assert runs.minutes(planned[1:], planned) == f"{total // 60:.0f} h {total % 60:02.0f} min"


def test_a_record_is_read_from_a_real_run(tmp_path):
    config = tiny.train_config(tmp_path)
    result = fit(config, tmp_path / "run")
    run = grid.Run("tiny", "prompt_tuning", 0, config, tmp_path / "run")
    task = load_task(config.task)
    rows = {name: len(split) for name, split in task.splits.items()}
    fingerprint = json.loads((tmp_path / "tiny" / "config.json").read_text())["fingerprint"]
    [record] = runs.collect([run], runs.Origin(fingerprint, {"tiny": rows}))
    assert record.result == result and [step for step, _ in record.curve] == [4, 8, 12]
    assert max(score for _, score in record.curve) == pytest.approx(result["dev_score"], abs=1e-3)
    facts = {"label_words": ["animal", "plant"], "majority_score": 50.0, "bag_of_words": None}
    facts |= {"rows": rows, "seen_in_train": 0}
    [study] = tables.by_task([record], {"tiny": facts}, {}, 1)
    assert "| tiny | prompt tuning | 12 |" in tables.cost_table([study])
    assert "| tiny |" in tables.task_table([study]) and "0.0% |" in tables.task_table([study])


def test_archived_runs_are_finished_without_their_folders(tmp_path, monkeypatch):
    planned, file = make_plan(tmp_path / "runs", (0,)), tmp_path / "docs" / "results.jsonl"
    monkeypatch.setattr(runs, "fit", fake_fit([]))
    assert train(planned) == []
    records = runs.collect(planned, ORIGIN)
    archive.pack(records, tmp_path / "runs", file)
    shutil.rmtree(tmp_path / "runs")
    assert runs.collect(planned, ORIGIN) == []
    archive.unpack(file, tmp_path / "runs")
    assert runs.collect(planned, ORIGIN) == records and len(records[0].curve) > 0
    planned[0].folder.joinpath("result.json").write_text("{}")
    archive.unpack(file, tmp_path / "runs")  # what is there stays
    assert planned[0].folder.joinpath("result.json").read_text() == "{}"


def test_an_ensemble_is_of_all_its_members_and_scored_once(tmp_path, monkeypatch):
    wanted = grid.Ensembles(("b", "absent"), (0, 5, 6))
    planned = make_plan(tmp_path, (0,), ensembles=wanted)
    members = [run for run in planned if run.method == "ensemble"]
    assert [(run.task, run.seed) for run in members] == [("b", 5), ("b", 6)]
    assert {run.config.prompt for run in members} == {planned[2].config.prompt}
    monkeypatch.setattr(runs, "fit", fake_fit([]))
    assert train(planned) == []
    records, calls = runs.collect(planned, ORIGIN), []

    def evaluate(folders, split, by="vote"):
        calls.append(by)
        assert [str(folder)[-5:] for folder in folders] == ["seed0", "seed5", "seed6"]
        return {"average": 50.0, "best": 51.0, "ensemble": {"vote": 52.0, "log_probs": 53.0}[by]}

    monkeypatch.setattr(ensembles, "evaluate_ensemble", evaluate)
    assert ensembles.score_ensembles(records, wanted.tasks, 3) == {}  # without their prompts
    for run in planned:
        RunFolder(run.folder).prompt_file.touch()
    without = [record for record in records if record.run != members[1]]
    assert ensembles.score_ensembles(without, wanted.tasks, 3) == {} and calls == []
    found = ensembles.score_ensembles(records, wanted.tasks, 3)
    assert found == ensembles.score_ensembles(records, wanted.tasks, 3)
    assert calls == ["vote", "log_probs"]
    facts = {"b": {"label_words": ["x"], "majority_score": 50.0}}
    text = tables.ensemble_table(tables.by_task(records, facts, {}, 1), found)
    assert text.endswith("| b | 3 | 50.0 | 51.0 | 52.0 | 53.0 |\n")
    records[0].result["score"] += 1  # of another task
    ensembles.score_ensembles(records, wanted.tasks, 3)
    assert len(calls) == 2
    changed = next(r for r in records if r.run == members[0])
    changed.result["score"] += 1
    ensembles.score_ensembles(records, wanted.tasks, 3)
    assert len(calls) == 4


def test_an_archive_of_something_else_is_named_with_its_line(tmp_path):
    (tmp_path / "results.jsonl").write_text('{"run": "a"}\n')
    with pytest.raises(ValueError, match="results.jsonl, line 1 is no archived run .*restore the"):
        archive.unpack(tmp_path / "results.jsonl", tmp_path / "runs")


# Tables


def make_results(tmp_path, monkeypatch, seeds=(0, 1), name="a", asked=None, **scores):
    """The results of task `name`, with these scores at seed 0 and one point more a seed."""
    tasks = {name: TaskConfig(name="library")}
    sweep = SWEEP._replace(tasks=(name,))
    longer = [variant._replace(tasks=(name,)) for variant in LONGER]
    options = {"longer": longer, "ensembles": NO_ENSEMBLES, "model": "spt-nano"}
    planned = grid.plan(tasks, TABLE, sweep, seeds, tmp_path / name, **options)
    planned = [run for run in planned if run.method in scores]
    monkeypatch.setattr(runs, "fit", fake_fit([], scores=scores))
    origin = runs.Origin(FINGERPRINT, {name: ROWS})
    states = {run.folder: runs.state_of(run, origin) for run in planned}
    assert runs.train_all(planned, states, ["python", "results.py"]) == []
    facts = {
        "rows": ROWS,
        "label_words": ["x", "y"],
        "majority_score": 12.5,
        "seen_in_train": 3,
        "bag_of_words": {"score": 44.4},
    }
    records = runs.collect(planned, origin)
    [task] = tables.by_task(records, {name: facts}, {"trec": "TREC"}, asked or len(seeds))
    return task


def test_a_table_of_markdown():
    assert tables.table(("a", "b"), [["1", "2"]]) == "| a | b |\n| --- | ---: |\n| 1 | 2 |\n"


def test_scores_have_mean_deviation_and_what_is_missing(tmp_path, monkeypatch):
    task = make_results(
        tmp_path, monkeypatch, (0, 1), asked=3, prompt_tuning=40.0, model_tuning=60.0
    )
    row = tables.score_table([task]).splitlines()[-1]
    assert row == (
        "| a | 12.5 | 44.4 | 0.5 | 20.5 | **40.5 ± 0.7 (2 of 3)** | 41.5 ± 0.7 (2 of 3) "
        "| 60.5 ± 0.7 (2 of 3) | 61.5 ± 0.7 (2 of 3) |"
    )


def test_what_there_is_not_is_a_dash(tmp_path, monkeypatch):
    task = make_results(tmp_path, monkeypatch, (0,), prompt_tuning=40.0)
    free = dataclasses.replace(
        task, baselines={**task.baselines, "label_words": None, "bag_of_words": None}
    )
    row = tables.score_table([free]).splitlines()[-1]
    assert row == "| a | 12.5 | – | 0.5 | 20.5 | **40.0** | 41.0 | – | – |"
    assert tables.goal_table([free]).splitlines()[-1] == "| a | 40.0 | – | 27.5 | – | – | – |"
    assert tables.goal(task) == ("gain ≥ 25, share ≥ 0.8", "–")  # model tuning is missing
    none = dataclasses.replace(task, records={})
    assert tables.goal_table([none]).splitlines()[-1].count("–") == 5
    assert tables.cost_table([none]).count("\n") == 2


@pytest.mark.parametrize(
    ("prompt", "model", "gains", "met"),
    [
        (37.5, 43.75, "| 25.0 | 0.80 |", "yes"),
        (37.4, 40.0, "| 24.9 | 0.91 |", "no: gain"),
        (60.0, 72.0, "| 47.5 | 0.80 |", "no: share"),  # 0.798, which rounds to 0.80
        (20.0, 60.0, "| 7.5 | 0.16 |", "no: gain and share"),
        (40.0, 12.5, "| 27.5 | – |", "no: share"),  # model tuning gains nothing to share
    ],
)
def test_goals_of_a_built_in_task(tmp_path, monkeypatch, prompt, model, gains, met):
    task = make_results(tmp_path, monkeypatch, (0,), prompt_tuning=prompt, model_tuning=model)
    row = tables.goal_table([task]).splitlines()[-1]
    assert row == f"| a | {prompt:.1f} | {model:.1f} {gains} gain ≥ 25, share ≥ 0.8 | {met} |"


@pytest.mark.parametrize(("prompt", "met"), [(70.0, "yes"), (69.96, "no: score 69.96")])
def test_goal_of_a_dataset_is_a_score(tmp_path, monkeypatch, prompt, met):
    task = make_results(tmp_path, monkeypatch, (0,), "trec", prompt_tuning=prompt)
    assert tables.goal_table([task]).splitlines()[-1].endswith(f"| score ≥ 70 | {met} |")
    assert task.title == "TREC"


def test_every_dataset_has_a_goal():
    assert set(tables.SCORE_GOALS) == set(datasets.DATASETS)


def test_lengths_and_inits_stand_beside_the_run_that_they_vary(tmp_path, monkeypatch):
    task = make_results(tmp_path, monkeypatch, (0,), prompt_tuning=40.0, length_1=30.0)
    methods = {"1": "length_1", "5": "length_5", "20": "length_20"}
    assert tables.swept([task], methods.values()) == [task]
    row = tables.method_table([task], "vectors", methods).splitlines()[-1]
    assert row == "| a | 30.0 | 40.0 | – |"
    assert tables.swept([task], ["init_class_labels", "init_uniform_paper"]) == []


def test_goals_of_longer_runs_are_theirs(tmp_path, monkeypatch):
    scores = {"prompt_tuning": 30.0, "model_tuning": 72.5, "steps_80": 60.5}
    task = make_results(tmp_path, monkeypatch, (0,), **scores)
    row = tables.goal_table([task], "steps_80").splitlines()[-1]
    assert row == "| a | 60.5 | 72.5 | 48.0 | 0.80 | gain ≥ 25, share ≥ 0.8 | yes |"
    row = tables.goal_table([task], "steps_80", "model_tuning_steps_40").splitlines()[-1]
    assert row == "| a | 60.5 | – | 48.0 | – | gain ≥ 25, share ≥ 0.8 | – |"


# The bag of words, the figures and the document


def toy_task(rows):
    """(input, target) pairs as a task whose splits are all of them."""
    examples = [Example(*row) for row in rows]
    words = tuple(sorted({e.targets for e in examples}))
    return Task("toy", dict.fromkeys(("train", "dev", "test"), examples), words, ())


@needs_extra
def test_a_bag_of_words_knows_words_and_not_their_order():
    topics = [(f"the {w} is {n}", "animal") for n in range(9) for w in tiny.ANIMALS]
    topics += [(f"the {w} is {n}", "plant") for n in range(9) for w in tiny.PLANTS]
    found = baselines.bag_of_words(toy_task(topics))
    assert (found["score"], found["dev_score"], found["strength"]) == (100, 100, 0.1)
    assert found["words"] == 2 + 8 + 9
    order = [(f"{a} eats {b}", "first" if a < b else "last") for a in "bdfh" for b in "aceg"]
    order += [(f"{b} eats {a}", "first" if b < a else "last") for a in "bdfh" for b in "aceg"]
    assert baselines.bag_of_words(toy_task(order))["score"] == 50


@needs_extra
def test_baselines_are_kept_until_the_rows_change(tmp_path, monkeypatch):
    task = toy_task([("cat", "animal"), ("oak", "plant"), ("dog", "animal")])
    first = baselines.score_baselines(task, tmp_path)
    assert first["rows"] == {"train": 3, "dev": 3, "test": 3} and first["seen_in_train"] == 3
    assert first["majority_score"] == pytest.approx(200 / 3)
    monkeypatch.setattr(baselines, "bag_of_words", None)  # calling it would raise TypeError
    assert baselines.score_baselines(task, tmp_path)["bag_of_words"] == first["bag_of_words"]
    with pytest.raises(TypeError):
        baselines.score_baselines(toy_task([("cat", "a"), ("dog", "b")]), tmp_path)
    free = dataclasses.replace(task, label_words=None)
    assert baselines.score_baselines(free, tmp_path / "free")["bag_of_words"] is None


def write_study(tmp_path, monkeypatch, **changes):
    scores = {"prompt_tuning": 40.0, "model_tuning": 60.0, "length_1": 20.0}
    scores |= {"init_uniform_paper": 30.0, "steps_80": 50.0, "steps_80_length_9": 55.0}
    scores |= {"model_tuning_steps_40": 80.0}
    task = make_results(tmp_path, monkeypatch, (0, 1), **scores)
    records = [record for method in scores for record in task.records[method]]
    study = report.Study(
        results=[task],
        records=records,
        missing=[],
        sweep=SWEEP,
        longer=LONGER,
        ensembles={},
        seeds=(0, 1),
        model={"model": "spt-nano", "frozen_params": 5_377_792, "fingerprint": FINGERPRINT},
        left_out=[],
    )
    file = tmp_path / "docs" / "results.md"
    report.write_report(dataclasses.replace(study, **changes), file)
    return file


@needs_extra
def test_the_document_has_its_tables_figures_origin_and_the_notes_of_people(tmp_path, monkeypatch):
    notes = "Prose with `code` and 100 %.\n\n- A list.\n"
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "results_notes.md").write_text(notes)
    text = write_study(tmp_path, monkeypatch).read_text()
    assert f"## What to make of it\n\n{notes}\n## Tasks\n" in text
    assert "| vectors | 1 | 5 |\n| --- | ---: | ---: |\n| a | 20.5 ± 0.7 | 40.5 ± 0.7 |\n" in text
    assert "| init | class_labels | uniform_paper |" in text
    steps = text.partition("## More steps\n\n")[2].splitlines()
    assert steps[0] == (
        "| task | prompt tuning | 80 steps | 80 steps, 9 vectors | model tuning | 40 steps |"
    )
    assert steps[2] == (
        "| a | 40.5 ± 0.7 | 50.0 (1 of 2) | 55.0 (1 of 2) | 60.5 ± 0.7 | 81.0 (1 of 2) |"
    )
    for variant, row in (
        ("80 steps", "| a | 50.0 (1 of 2) | 81.0 (1 of 2) | 37.5 | 0.55 |"),
        ("80 steps, 9 vectors", "| a | 55.0 (1 of 2) | 81.0 (1 of 2) | 42.5 | 0.62 |"),
    ):
        goals = text.partition(f"prompts of {variant}, beside model tuning of 40 steps:\n\n")[2]
        assert goals.splitlines()[2].startswith(row)
    assert "`spt-nano` (5,377,792 parameters, fingerprint `ffffffffffff`)" in text
    assert "```\npython results.py\n```\n\n- Machine: " in text
    assert f"- Machine: {runs.machine()} (11 runs)\n" in text and "jax " in text
    assert "Left out" not in text and "Not finished" not in text
    for name in ("curves", "lengths", "inits"):
        assert f"(figures/{name}.svg)" in text
        assert "<svg" in (tmp_path / "docs" / "figures" / f"{name}.svg").read_text()


@needs_extra
def test_the_document_says_what_is_left_out_and_what_is_not_finished(tmp_path, monkeypatch):
    missing = make_plan(tmp_path)[:3]
    file = write_study(tmp_path, monkeypatch, missing=missing, left_out=["SST-2", "TREC"])
    text = file.read_text()
    assert "Left out: SST-2, TREC. They are read from the folder that the variable SPT_JAX" in text
    assert (
        "**Not finished** and not in the numbers: a prompt_tuning (2), a model_tuning (1)" in text
    )
    assert "What to make of it" not in text


@needs_extra
def test_the_same_runs_give_the_same_bytes(tmp_path, monkeypatch):
    file = write_study(tmp_path, monkeypatch)
    files = [file, *sorted((file.parent / "figures").iterdir())]
    before = [file.read_bytes() for file in files]
    write_study(tmp_path, monkeypatch)
    assert len(files) == 4 and [file.read_bytes() for file in files] == before


# The script


@pytest.fixture
def two_tasks(monkeypatch):
    """The script with built-in tasks of the same three rows, and without the datasets."""
    task = toy_task([("cat", "animal"), ("oak", "plant"), ("dog", "animal")])
    monkeypatch.delenv("SPT_JAX_DATA", raising=False)
    monkeypatch.setattr(results, "task_names", lambda: ["library", "other"])
    monkeypatch.setattr(results, "load_task", lambda config: task)
    monkeypatch.setattr(results, "describe", describe_tiny)
    monkeypatch.setattr(results, "LONGER", ())
    monkeypatch.setattr(results, "ENSEMBLES", NO_ENSEMBLES)
    for split in ROWS:
        monkeypatch.setitem(ROWS, split, 3)
    monkeypatch.setattr(results.jax.config, "update", lambda *args: None)


def describe_tiny(name, length):
    return {"model": name, "frozen_params": 1000, "fingerprint": FINGERPRINT}


def test_a_dry_run_lists_the_runs_and_trains_none(tmp_path, monkeypatch, capsys, two_tasks):
    monkeypatch.setattr(runs, "fit", None)
    options = [f"--workdir={tmp_path}", "--seeds=0,3", "--only=library"]
    options.append(f"--output={tmp_path}/results.md")  # beside which there is no archive
    assert results.main([*options, "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 * (2 + 4 + 3) + 1
    assert lines[1].endswith("min  library prompt_tuning seed 3  new")
    assert lines[-1].startswith("18 runs, 1 h ") and "18 to run" in lines[-1]
    assert list(tmp_path.iterdir()) == []


def test_methods_can_be_chosen(tmp_path, monkeypatch, capsys, two_tasks):
    monkeypatch.setattr(results, "ENSEMBLES", grid.Ensembles(("library",), (0, 1, 2)))
    options = [f"--workdir={tmp_path}", f"--output={tmp_path}/results.md", "--seeds=0"]
    methods = "--methods=prompt_tuning,ensemble"
    assert results.main([*options, methods, "--dry-run"]) == 0
    lines = [line.split("min")[1].split() for line in capsys.readouterr().out.splitlines()[:-1]]
    assert [" ".join(words[:-1]) for words in lines] == [
        "library prompt_tuning seed 0",
        "library ensemble seed 1",
        "library ensemble seed 2",
        "other prompt_tuning seed 0",
    ]


@needs_extra
def test_the_script_trains_what_is_missing_and_writes_the_document(
    tmp_path, monkeypatch, capsys, two_tasks
):
    calls = []
    options = [f"--workdir={tmp_path / 'runs'}", f"--output={tmp_path / 'docs' / 'results.md'}"]
    options.append("--only=library")
    monkeypatch.setattr(runs, "fit", fake_fit(calls, fail=["length_1"]))
    assert results.main([*options, "--seeds=0"]) == 1
    assert len(calls) == 9 and "failed: library length_1 seed 0" in capsys.readouterr().err
    text = (tmp_path / "docs" / "results.md").read_text()
    assert (
        "the numbers: other prompt_tuning (1), other model_tuning (1), library length_1 (1).\n"
        in text
    )
    assert "Left out: SST-2, TREC, Subj, AG News." in text
    monkeypatch.setattr(runs, "fit", fake_fit(calls))
    assert results.main([*options, "--seeds=0"]) == 0
    assert len(calls) == 10  # the one that had failed
    shutil.rmtree(tmp_path / "runs" / "library")  # its runs are in the archive
    monkeypatch.setattr(runs, "fit", None)
    assert results.main([*options, "--seeds=0,1", "--report"]) == 0
    assert "(1 of 2)" in (tmp_path / "docs" / "results.md").read_text()
    monkeypatch.setattr(runs, "fit", fake_fit(calls))
    assert results.main([*options[:2], "--only=other", "--seeds=0"]) == 0
    text = (tmp_path / "docs" / "results.md").read_text()  # the other task is still in it
    assert len(calls) == 12 and "Not finished" not in text and "| library | 66.7 |" in text


@needs_extra
def test_a_task_that_cannot_be_read_is_reported_and_missing(
    tmp_path, monkeypatch, capsys, two_tasks
):
    load = results.load_task

    def fail(config):
        if config.name == "library":
            raise ValueError("package 'numpy' is not installed")
        return load(config)

    monkeypatch.setattr(results, "load_task", fail)
    monkeypatch.setattr(runs, "fit", fake_fit([]))
    output = tmp_path / "results.md"
    assert results.main([f"--workdir={tmp_path / 'runs'}", f"--output={output}", "--seeds=0"]) == 1
    line = "failed: library: ValueError: package 'numpy' is not installed\n"
    assert line in capsys.readouterr().err
    text = output.read_text()
    assert "not in the numbers: library prompt_tuning (1), " in text and "| other | 66.7 |" in text


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--seeds=0,0"], "--seeds is '0,0', expected different whole numbers such as 0,1,2"),
        (["--seeds=a"], "--seeds is 'a'"),
        (["--only=librari"], r"--only names 'librari', expected one of library.*'library'\?\)"),
        (["--only=trec"], r"--only names 'trec', .*\(SPT_JAX_DATA is not set\)"),
        (["--methods=ensembles"], r"--methods names 'ensembles', expected .*'ensemble'\?\)"),
        (["--dry"], "unknown option 'dry'; studies/results.py has: .*dry-run"),
        (["--model=spt-nono"], "unknown model 'spt-nono'"),
        (["--steps=many"], "steps is 'many', expected"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(tmp_path, monkeypatch, capsys, argv, message):
    monkeypatch.delenv("SPT_JAX_DATA", raising=False)
    assert results.main([f"--workdir={tmp_path}", "--dry-run", *argv]) == 2
    error = capsys.readouterr().err
    assert error.startswith("results.py: error: ") and error.count("\n") == 1
    with pytest.raises(ValueError, match=message):
        raise ValueError(error)


def test_a_missing_extra_is_named_with_its_command(tmp_path, monkeypatch, capsys, two_tasks):
    monkeypatch.setattr(results, "EXTRA", {"no_such_module": "scikit-learn"})
    assert results.main([f"--workdir={tmp_path}"]) == 2
    error = capsys.readouterr().err
    assert 'scikit-learn is not installed, and the results need it; pip install -e ".[resu' in error
