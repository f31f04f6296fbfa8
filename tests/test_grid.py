"""The runs of a study: which there are, what they are called, and one line for every mistake."""

import dataclasses

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from spt_jax.config.train import PromptConfig, TaskConfig, TrainConfig
from spt_jax.paths import require_safe_name
from spt_jax.studies.grid import Study, expand, merge, nest, to_tree

BASE = {"task.name": "library", "steps": 12}
DEFAULT = TrainConfig(task=TaskConfig(name="library"), steps=12)


def names(**parts):
    return [run.name for run in expand(Study(BASE, **parts))]


def test_a_grid_is_every_combination_with_every_seed():
    runs = expand(
        Study(
            BASE,
            {"prompt.length": [1, 20], "optimizer.learning_rate": [0.1, 1]},
            seeds=(0, 7),
        )
    )
    assert [run.name for run in runs] == [
        f"prompt.length={length},optimizer.learning_rate={rate},seed={seed}"
        for length in (1, 20)
        for rate in ("0.1", "1.0")
        for seed in (0, 7)
    ]
    assert {run.point for run in runs} == {run.name.rpartition(",")[0] for run in runs}
    last = dataclasses.replace(
        DEFAULT,
        prompt=PromptConfig(length=20),
        optimizer=dataclasses.replace(DEFAULT.optimizer, learning_rate=1.0),
        seed=7,
    )
    assert runs[-1].config == last


def test_without_seeds_the_seed_of_the_base_is_kept_and_not_in_the_name():
    [run, _] = expand(Study({**BASE, "seed": 5}, {"prompt.length": [1, 2]}))
    assert (run.name, run.point, run.config.seed) == ("prompt.length=1", "prompt.length=1", 5)


def test_seeds_alone_are_a_study():
    assert names(seeds=(0, 1)) == ["seed=0", "seed=1"]


def test_a_task_varies_by_its_name_and_as_a_whole():
    own = {"name": "mine", "source": "rows.jsonl", "template": "{text}", "label": "label"}
    by_name = expand(Study(BASE, {"task.name": ["library", "type"]}))
    assert [run.config.task.name for run in by_name] == ["library", "type"]
    whole = expand(Study({}, {"task": [{"name": "type"}, own]}, seeds=(0,)))
    assert [run.config.task for run in whole] == [TaskConfig(name="type"), TaskConfig(**own)]
    assert len({run.name for run in whole}) == 2


def test_a_list_of_runs_is_combined_with_the_grid_and_names_its_entries():
    tuned = {"name": "model_tuning", "prompt": None, "tune": "model", "optimizer.preset": "fresh"}
    runs = expand(
        Study(
            {**BASE, "prompt.length": 5},
            {"task.name": ["library", "type"]},
            runs=[{"prompt.init": "sampled_vocab"}, tuned],
        )
    )
    assert [run.name for run in runs] == [
        "prompt.init=sampled_vocab,task.name=library",
        "prompt.init=sampled_vocab,task.name=type",
        "model_tuning,task.name=library",
        "model_tuning,task.name=type",
    ]
    assert runs[0].config.prompt == PromptConfig(length=5, init="sampled_vocab")
    assert (runs[3].config.prompt, runs[3].config.tune) == (None, "model")


def test_a_sample_is_drawn_by_the_seed_and_a_larger_one_begins_with_a_smaller():
    def draw(sample, seed=0):
        vary = {"prompt.length": list(range(1, 11)), "steps": [5, 6, 7]}
        base = {"task.name": "library", "seed": seed}
        return [run.name for run in expand(Study(base, vary, sample=sample))]

    few, many = draw(4), draw(12)
    assert many[:4] == few and len({*many}) == 12
    assert draw(4) == few and draw(4, seed=1) != few
    assert sorted(draw(30)) == sorted({*draw(30)})


def test_every_point_of_a_sample_is_trained_with_every_seed():
    runs = expand(Study(BASE, {"prompt.length": [1, 2, 3]}, seeds=(0, 1), sample=2))
    assert len(runs) == 4 and len({run.point for run in runs}) == 2


LONG = {"task.template": "x" * 300, "task.source": "a.jsonl", "task.label": "y", "task.name": "t"}


@pytest.mark.parametrize(
    "option, value, word",
    [
        ("model", "google/t5-base-lm-adapt", "google-t5-base-lm-adapt~"),
        ("prompt.init", "class_labels", "class_labels"),
        ("optimizer.learning_rate", 1e-5, "1e-05"),
        ("optimizer.momentum", None, "null"),
        ("data.group_by_length", True, "true"),
        ("data.buckets", (8, 16), "8-16~"),
        ("task.origin", "../../etc", "etc~"),
        ("task.origin", "x" * 100, "x" * 24 + "~"),
    ],
)
def test_values_are_short_and_safe_in_names(option, value, word):
    name = expand(Study(BASE, {option: [value]}))[0].name
    assert name.startswith(f"{option}={word}")
    assert len(name) <= len(f"{option}={word}") + (8 if "~" in word else 0)
    require_safe_name(name)


def test_texts_that_are_shortened_alike_have_different_names():
    first, second = names(vary={"model": ["models/" + "x" * 60, "models/" + "x" * 61]})
    assert first != second and len(first) < 60


def test_a_long_name_is_cut_and_stays_different():
    many = {f"data.{option}": 8 for option in ("inputs_length", "targets_length", "batch_size")}
    many |= {"optimizer.weight_decay": 0.0, "optimizer.clip_norm": 1.0, "eval.every": 3}
    runs = [{**LONG, **many, "steps": steps} for steps in (5, 6)]
    first, second = names(runs=runs)
    assert first != second and len(first) <= 200 and len(second) <= 200
    require_safe_name(first)


def test_more_values_keep_the_names_of_the_runs_that_were_there():
    few = names(vary={"prompt.length": [1, 20]}, seeds=(0,))
    more = names(vary={"prompt.length": [1, 5, 20]}, seeds=(0, 1))
    assert {*few} < {*more}


@given(
    st.dictionaries(
        st.sampled_from(["prompt.length", "steps", "data.batch_size", "optimizer.clip_norm"]),
        st.lists(st.integers(1, 10**6), min_size=1, max_size=3, unique=True),
        min_size=1,
    ),
    st.lists(st.integers(0, 9), max_size=2, unique=True),
)
def test_runs_are_as_many_as_the_values_multiplied_and_all_different(vary, seeds):
    runs = expand(Study(BASE, vary, seeds=seeds))
    count = max(len(seeds), 1)
    for values in vary.values():
        count *= len(values)
    assert len({run.name for run in runs}) == len({repr(run.config) for run in runs}) == count


def test_a_section_and_the_options_below_it_replace_each_other():
    assert merge({"prompt.length": 5, "steps": 3}, {"prompt": None}) == {"steps": 3, "prompt": None}
    assert merge({"prompt": None}, {"prompt.length": 5}) == {"prompt.length": 5}
    assert merge({"prompt.length": 5}, {"prompt.init": "text"}) == {
        "prompt.length": 5,
        "prompt.init": "text",
    }


def test_the_file_of_a_study_has_only_what_is_given():
    assert nest({"prompt.length": 5, "prompt.init": "text", "steps": 3}) == {
        "prompt": {"length": 5, "init": "text"},
        "steps": 3,
    }
    tree = to_tree(Study(BASE, {"prompt.length": (1, 5)}, seeds=(0, 1)))
    assert yaml.safe_load(yaml.safe_dump(tree)) == {
        "task": {"name": "library"},
        "steps": 12,
        "vary": {"prompt.length": [1, 5]},
        "seeds": [0, 1],
    }


@pytest.mark.parametrize(
    "parts, message",
    [
        ({}, "nothing varies, so this is one run; give values of an option"),
        ({"seeds": (3,)}, "nothing varies"),
        ({"seeds": (3, 3)}, "seeds has 3 twice"),
        ({"vary": {"prompt.length": []}}, "the grid is empty: 'prompt.length' has no values"),
        ({"vary": {"prompt.lenght": [1]}}, "unknown option 'prompt.lenght' of a training run (did"),
        ({"runs": [{"stepz": 1}]}, "unknown option 'stepz' of a training run (did you mean"),
        ({"vary": {"seed": [1, 2]}}, "the option 'seed' cannot vary; give its values as seeds"),
        ({"runs": [{"seed": 1}]}, "the option 'seed' stands in runs; give its values as seeds"),
        ({"vary": {"log.every": [1]}}, "the option 'log.every' cannot vary: it changes nothing"),
        ({"vary": {"mesh": [None]}}, "the option 'mesh' cannot vary: it changes nothing"),
        ({"vary": {"remat": ["full"]}}, "the option 'remat' cannot vary: it changes nothing"),
        ({"vary": {"prompt.length": [5, 5]}}, "'prompt.length' has the value 5 twice"),
        ({"vary": {"optimizer.learning_rate": [1, 1.0]}}, "has the value 1.0 twice"),
        ({"vary": {"prompt.length": [0, 5]}}, "prompt.length is 0, expected 1 or more"),
        (
            {"runs": [{"optimizer.accumulate": 3}]},
            "run 'optimizer.accumulate=3': optimizer.accumulate 3 does not divide data.batch_size",
        ),
        ({"vary": {"prompt.length": ["x"]}}, "prompt.length is 'x', expected a whole number"),
        ({"vary": {"task": ["library"]}}, "'task' has the value 'library', expected null or a map"),
        ({"vary": {"task": [{"nam": "x"}]}}, "unknown option 'task.nam' of a training run (did"),
        (
            {"vary": {"prompt.length": [1]}, "runs": [{"prompt": None, "tune": "model"}]},
            "the option 'prompt' stands both in runs and in vary; leave it out of one of them",
        ),
        (
            {"vary": {"task": [{"name": "type"}]}, "runs": [{"task.name": "library"}]},
            "the option 'task.name' stands both in runs and in vary",
        ),
        ({"runs": [{"steps": 5}, {"steps": 5}]}, "two runs have the folder 'steps=5'; give one"),
        (
            {"runs": [{"name": "a", "steps": 5}, {"name": "A", "steps": 6}]},
            "two runs have the folder 'A'; give one of them another name",
        ),
        (
            {"runs": [{"name": "a", "steps": 5}, {"name": "b", "steps": 5}]},
            "the runs 'a' and 'b' are the same; leave one out",
        ),
        (
            {"runs": [{"name": "a/b", "steps": 5}]},
            "the name of a run is 'a/b', expected at most 100",
        ),
        (
            {"vary": {"steps": [1, 2]}, "sample": 3},
            "sample is 3, expected 1 to 2, the number of all",
        ),
        ({"vary": {"steps": [1, 2]}, "sample": 0}, "sample is 0, expected 1 to 2"),
    ],
)
def test_a_mistake_is_one_line(parts, message):
    with pytest.raises(ValueError) as error:
        expand(Study(BASE, **parts))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_the_name_of_a_task_from_a_file_cannot_vary_because_it_is_a_title():
    base = {f"task.{n}": v for n, v in {"source": "r.csv", "template": "{t}", "label": "l"}.items()}
    with pytest.raises(ValueError, match="task.name varies, but task.source is set, for which it"):
        expand(Study(base, {"task.name": ["a", "b"]}))
