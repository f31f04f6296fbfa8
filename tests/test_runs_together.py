"""Several runs on one frozen model: each scored as alone, and together as an ensemble."""

import dataclasses
import json

import numpy as np
import pytest
from support import tiny
from support.runs import random_prompt, write_run

from spt_jax.config.train import DataConfig, EvalConfig, TaskConfig
from spt_jax.evaluation.ensemble import combine, evaluate_ensemble, vote
from spt_jax.evaluation.evaluate import evaluate_run, evaluate_runs
from spt_jax.evaluation.scores import Outputs
from spt_jax.prediction.run import predict_run
from spt_jax.prompts.load import load_runs

TEXTS = [text for text, _ in tiny.sentences()[::5]]
PROMPTS = {
    "one": random_prompt(3, 0),
    "two": random_prompt(9, 1),
    # Nearly the second, so that there are majorities; longer by what is not attended to.
    "three": random_prompt(9, 1) + 0.02 * random_prompt(9, 2),
}


def task(folder, name, targets, **changes):
    """A task of the texts with these targets, the same rows in every split."""
    path = folder / f"{name}.jsonl"
    rows = [{"text": text, "label": label} for text, label in zip(TEXTS, targets, strict=True)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    paths = {key: str(path) for key in ("source", "dev_source", "test_source")}
    return TaskConfig(name=name, template="{text}", label="label", **paths, **changes)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Runs of three tasks on one backbone, and ensembles `free` and `words` of three prompts each.

    The free texts to be written are in part what the prompts do write.
    """
    folder = tmp_path_factory.mktemp("runs")
    config = tiny.train_config(
        folder,
        data=DataConfig(inputs_length=16, targets_length=3, buckets=(9,)),
        eval=EvalConfig(batch_size=6),
    )
    for name, prompt in PROMPTS.items():
        write_run(folder / name, config, prompt)
    written = [predict_run(folder / name, TEXTS) for name in PROMPTS]
    targets = [texts[number % 3].strip() or "nothing" for number, texts in enumerate(zip(*written))]
    free = dataclasses.replace(config, task=task(folder, "free", targets, free_text=True))
    words = ["animal", "plant", "cat", "oak tree"]
    labels = [words[number % 4] for number in range(len(TEXTS))]
    words = dataclasses.replace(
        config,
        task=task(folder, "words", labels),
        data=DataConfig(inputs_length=20, targets_length=8),
        eval=EvalConfig(batch_size=4),
    )
    for name, prompt in PROMPTS.items():
        write_run(folder / f"free-{name}", free, prompt)
        write_run(folder / f"words-{name}", words, prompt)
    return folder


def runs_of(folder, task):
    return [folder / f"{task}-{name}" for name in PROMPTS]


def numbers_of(found):
    return {
        name: value
        for name, value in found.items()
        if name not in ("task", "split", "cut_inputs", "data_changed")
    }


@pytest.fixture(scope="module")
def alone(folder):
    """What `evaluate_run` gives for each run."""
    runs = [folder / "one", *runs_of(folder, "free"), *runs_of(folder, "words")]
    return {str(run): evaluate_run(run, "test") for run in runs}


def test_runs_of_several_tasks_score_as_alone(folder, alone):
    together = evaluate_runs([*map(type(folder), alone)], "test")
    assert together == alone and list(together) == list(alone)
    assert {found["task"] for found in alone.values()} == {"tiny", "free", "words"}
    assert len({found["rank_score"] for found in alone.values()}) > 2
    assert all(0 < alone[str(run)]["score"] < 100 for run in runs_of(folder, "free"))


def test_vote():
    one = ["a", "b", "x", "no", ""]
    two = ["b", "b", "y", " yes  sir", ""]
    three = ["b", "c", "a", "no", "z"]
    assert vote([one, two, three]) == ["b", "b", "x", "no", ""]
    assert vote([two, one, three])[2:4] == ["y", "no"]
    assert vote([two[3:4], ["yes sir"], one[3:4], one[3:4]]) == ["yes sir"]
    assert vote([one[3:4], two[3:4], ["yes sir"], one[3:4]]) == ["no"]


def test_mean_log_probs_may_be_those_of_no_majority():
    outputs = [
        Outputs((text,), np.array([row], np.float32))
        for text, row in (("a", [-1, -2]), ("a", [-1, -2]), ("b", [-9, -1]))
    ]
    combined = combine(outputs)
    assert combined.predictions == ("a",)
    np.testing.assert_allclose(combined.log_probs, [[-11 / 3, -5 / 3]], rtol=1e-6)
    assert combine([output._replace(log_probs=None) for output in outputs]).log_probs is None


def test_an_ensemble_votes_over_what_its_runs_write(folder, alone):
    runs = runs_of(folder, "free")
    found = evaluate_ensemble(runs, "test")
    voted = vote([predict_run(run, TEXTS) for run in runs])
    assert voted != predict_run(runs[0], TEXTS)
    rows = [json.loads(line) for line in (folder / "free.jsonl").read_text().splitlines()]
    hits = [text == row["label"] for text, row in zip(voted, rows, strict=True)]
    scores = [alone[str(run)]["score"] for run in runs]
    assert found == {
        "task": "free",
        "split": "test",
        "rows": len(TEXTS),
        "by": "vote",
        "average": pytest.approx(sum(scores) / 3),
        "best": max(scores),
        "ensemble": pytest.approx(100 * sum(hits) / len(hits)),
        "runs": {str(run): numbers_of(alone[str(run)]) for run in runs},
    }
    assert 0 < found["ensemble"] < 100


def test_an_ensemble_averages_log_probabilities(folder, alone):
    runs = runs_of(folder, "words")
    scores = [alone[str(run)]["rank_score"] for run in runs]
    found = evaluate_ensemble(runs, "dev", "log_probs")
    assert (found["by"], found["best"]) == ("log_probs", max(scores))
    assert found["average"] == pytest.approx(sum(scores) / 3)
    twice = [runs[0], write_run(folder / "again", load_runs(runs[:1])[0][0], PROMPTS["one"])]
    assert evaluate_ensemble(twice, "dev", "log_probs")["ensemble"] == scores[0]


def test_what_runs_together_must_have_in_common(folder, tmp_path):
    config = load_runs([folder / "one"])[0][0]
    prompt = PROMPTS["one"]
    tuned = write_run(tmp_path / "tuned", dataclasses.replace(config, tune="model"), prompt)
    half = write_run(tmp_path / "half", dataclasses.replace(config, dtype="bfloat16"), prompt)
    narrow = dataclasses.replace(config, param_dtype="bfloat16")
    narrow = write_run(tmp_path / "narrow", narrow, prompt)
    model = str(tiny.write_backbone(tmp_path / "other", seed=5))
    other = write_run(tmp_path / "other_run", dataclasses.replace(config, model=model), prompt)
    one = folder / "one"
    for runs, message in {
        (): "no run is given, expected the folders of one or more",
        (one, folder / "two", one): "run '.*one' is given twice; give each run once",
        (one, tuned): "run '.*tuned' tuned the model, so it shares no frozen one; evaluate it alo",
        (
            one,
            narrow,
        ): "run '.*narrow' keeps its frozen weights in bfloat16 but '.*one' in auto; ev",
        (one, half): "run '.*half' computes in bfloat16 but '.*one' in auto; evaluate them apart",
        (one, other): "other_run/.* was trained on model 'tiny-5' with .* but 'tiny-0' has",
    }.items():
        with pytest.raises(ValueError, match=message):
            evaluate_runs(runs, "test")
    again = one / ".." / "one"
    (tmp_path / "link").symlink_to(one)
    for same in (again, tmp_path / "link"):
        with pytest.raises(ValueError, match=f"run '{same}' is given twice; give each run once"):
            evaluate_runs([one, same], "test")
    with pytest.raises(FileNotFoundError, match="'.*nowhere' is not the folder of a run"):
        evaluate_runs([one, tmp_path / "nowhere"], "test")
    with pytest.raises(ValueError, match="unknown split 'tests'; expected one of train, dev, test"):
        evaluate_runs([one, folder / "two"], "tests")


def test_what_an_ensemble_needs(folder, tmp_path):
    config = load_runs([runs_of(folder, "words")[0]]).configs[0]
    task = dataclasses.replace(config.task, metrics=["macro_f1"])
    other = write_run(tmp_path / "f1", dataclasses.replace(config, task=task), PROMPTS["one"])
    free, words = runs_of(folder, "free"), runs_of(folder, "words")
    for arguments, message in {
        (tuple(free), "test", "votes"): "by is 'votes', expected one of vote, log_probs",
        ((free[0],), "test"): "an ensemble of 1 run is given, expected two or more of one task",
        ((free[0], words[0]), "test"): "run '.*words-one' is of task 'words' and '.*free-one' of "
        "'free', whose rows or label words differ; an ensemble has prompts of one task",
        ((words[0], other), "test"): "run '.*f1' is scored by macro_f1 and '.*words-one' by accur",
        (tuple(free), "test", "log_probs"): "task 'free' is free text, without label words to ave",
    }.items():
        with pytest.raises(ValueError, match=message):
            evaluate_ensemble(*arguments)
