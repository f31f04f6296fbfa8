"""Tasks from a user's file: templates, label words, splits by a hash, and their errors."""

import json
import subprocess
import sys
from collections import Counter

import pytest

from spt_jax.config.train import DataConfig, TaskConfig
from spt_jax.data import tasks
from spt_jax.data.builtin.arguments import KINDS
from spt_jax.data.builtin.cache import LabeledText
from spt_jax.data.builtin.library import LIBRARIES
from spt_jax.data.example import Example, Task, sample_rows
from spt_jax.data.tasks import load_task, load_test, longest_input, task_names
from spt_jax.evaluation.metrics import check_metrics
from spt_jax.evaluation.scores import majority_score


@pytest.fixture
def write(tmp_path):
    def write(name, rows):
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(path)

    return write


def config(source, **options):
    return TaskConfig(source=source, **({"template": "{text}", "label": "label"} | options))


def many(count=400, label=lambda i: "yes" if i % 4 else "no"):
    return [{"text": f"row {i}", "label": label(i)} for i in range(count)]


def test_template_and_inferred_label_words(write):
    source = write("mine.jsonl", [{"q": " why? ", "c": "{x}", "y": i % 2} for i in range(3)])
    task = load_task(
        config(
            source,
            dev_source=source,
            test_source=source,
            template="question: {q} {{context}}: {c}{c}",
            label="y",
        )
    )
    assert task.name == "mine"
    assert task.label_words == ("0", "1")
    assert task.splits["test"][1] == Example("question: why? {context}: {x}{x}", "1")
    assert any("label words, inferred from" in note and "0, 1" in note for note in task.notes)


def test_every_row_is_in_one_split_and_duplicates_share_it(write):
    rows = many() + many()
    task = load_task(config(write("mine.jsonl", rows)))
    assert list(task.splits) == ["train", "dev", "test"]
    parts = [{e.inputs for e in split} for split in task.splits.values()]
    assert sum(map(len, parts)) == len(set.union(*parts)) == 400
    assert sum(map(len, task.splits.values())) == 800
    assert 280 < len(parts[0]) < 360
    assert min(len(parts[1]), len(parts[2])) > 20
    assert not any("input of a train row" in note for note in task.notes)


def test_adding_rows_moves_no_row(write):
    few = load_task(config(write("few.jsonl", many(200))))
    more = load_task(config(write("more.jsonl", many(400))))
    for name in few.splits:
        assert set(few.splits[name]) <= set(more.splits[name])


def test_split_of_a_sorted_file_is_shuffled(write):
    task = load_task(config(write("sorted.jsonl", many(label=lambda i: "ab"[i >= 200]))))
    assert len({e.targets for e in task.splits["dev"][:10]}) == 2
    numbers = [int(e.inputs.split()[1]) for e in task.splits["train"]]
    assert numbers == sorted(numbers)


@pytest.mark.parametrize("given", ["dev", "test"])
def test_only_the_missing_split_is_taken(write, given):
    source, other = write("mine.jsonl", many()), write("other.jsonl", many(10))
    task = load_task(config(source, **{f"{given}_source": other}))
    missing = {"dev": "test", "test": "dev"}[given]
    assert len(task.splits[given]) == 10
    assert len(task.splits["train"]) + len(task.splits[missing]) == 400
    assert 20 < len(task.splits[missing]) < 60
    assert task.splits[missing] == load_task(config(source)).splits[missing]
    assert any("input of a train row" in note for note in task.notes)


def test_notes_tell_sizes_and_majority(write):
    source = write("mine.jsonl", many(100))
    task = load_task(config(source, dev_source=source, test_source=source))
    assert "rows: 100 train, 100 dev, 100 test" in task.notes
    assert "rows per label (train/dev/test): no 25/25/25, yes 75/75/75" in task.notes
    assert "always answering 'yes' is right on 75.0% of test" in task.notes


def test_majority_is_that_of_train():
    def rows(*targets):
        return [Example("x", target) for target in targets]

    splits = {"train": rows("a", "a", "b"), "dev": rows("b"), "test": rows("b", "b", "b", "a")}
    assert majority_score(Task("t", splits, ("a", "b"), ())) == 25.0
    assert majority_score(Task("t", splits, ("a", "b"), (), ("macro_f1",))) == 20.0


def test_test_rows_alone(write):
    source = config(write("mine.jsonl", many()))
    assert load_test(source).splits == {"test": load_task(source).splits["test"]}


def test_label_words_as_a_list_keep_their_order(write):
    task = load_task(config(write("mine.jsonl", many()), label_words=["yes", "no", "maybe"]))
    assert task.label_words == ("yes", "no", "maybe")
    assert not any("inferred" in note for note in task.notes)


def test_label_words_as_a_mapping(write):
    source = write("mine.jsonl", many(label=lambda i: i % 3))
    words = {"0": "bad", "1": "good", "2": "good"}
    task = load_task(config(source, label_words=words))
    assert task.label_words == ("bad", "good")
    counts = Counter(e.targets for split in task.splits.values() for e in split)
    assert counts == {"bad": 134, "good": 266}


def test_free_text_has_no_label_words(write):
    source = write("mine.jsonl", many(label=lambda i: f"an  answer {i}"))
    task = load_task(config(source, free_text=True))
    assert task.label_words is None
    assert {e.targets for e in task.splits["dev"]} <= {f"an answer {i}" for i in range(400)}


def test_too_many_values_for_labels(write):
    source = write("mine.jsonl", many(label=lambda i: f"answer {i % 60}"))
    with pytest.raises(ValueError, match=r"60 different values in 400 .*task.free_text=true"):
        load_task(config(source))
    fine = write("fine.jsonl", many(label=lambda i: f"answer {i % 40}"))
    assert len(load_task(config(fine)).label_words) == 40


def test_free_texts_become_no_label_words(write):
    source = write("mine.jsonl", many(60, label=lambda i: f"a text of its own, number {i % 45}"))
    with pytest.raises(
        ValueError, match=r"45 different values in 60 rows \(a text of its.*free_tex"
    ):
        load_task(config(source, dev_source=source, test_source=source))
    source = write("more.jsonl", many(400, label=lambda i: f"a text of its own, number {i % 45}"))
    task = load_task(config(source))
    (note,) = [note for note in task.notes if note.startswith("label words")]
    assert note.endswith(" and 25 more") and len(note) < 1000


def test_rows_of_one_group_are_in_one_split(write):
    rows = [{**row, "doc": f"d{i // 8}"} for i, row in enumerate(many())]
    task = load_task(config(write("mine.jsonl", rows), group="doc"))
    groups = [{e.group for e in split} for split in task.splits.values()]
    assert sum(map(len, groups)) == len(set.union(*groups)) == 50
    assert any("by a hash of what rows have in common" in note for note in task.notes)
    rows[3]["doc"] = None
    with pytest.raises(ValueError, match="mine.jsonl:4: field 'doc' of task.group is empty, null"):
        load_task(config(write("mine.jsonl", rows), group="doc"))


def test_a_sample_of_rows_is_a_function_of_the_rows():
    examples = [Example(f"row {i}", "ab"[i >= 500]) for i in range(1000)]
    kept = sample_rows(examples, 100)
    assert len(kept) == 100 and kept == sorted(kept)
    assert 25 < sum(examples[i].targets == "b" for i in kept) < 75  # the file is sorted by label
    turned = examples[::-1]
    assert {turned[i] for i in sample_rows(turned, 100)} == {examples[i] for i in kept}
    assert set(sample_rows(examples, 50)) < set(kept)
    assert sample_rows(examples[:3], 5) == [0, 1, 2]
    groups = [Example(f"row {i}", "a", shared=f"g{i // 10}") for i in range(1000)]
    assert len({groups[i].shared for i in sample_rows(groups, 100)}) == 10


def test_metrics_of_ones_own_data(write):
    source = write("mine.jsonl", many())
    task = load_task(config(source, metrics=["accuracy", "macro_f1"]))
    assert task.metrics == ("accuracy", "macro_f1")
    check_metrics(task)
    assert 0 < majority_score(task) < 100
    assert load_task(config(source)).metrics == ("accuracy",)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metrics": ["acuracy"]}, "unknown metric 'acuracy'.*did you mean 'accuracy'"),
        ({"metrics": ["f1"], "label_words": ["yes", "no", "x"]}, "f1 is of two label words, given"),
        ({"metrics": ["macro_f1"], "free_text": True}, "macro_f1 is of label words, given none"),
        ({"metrics": ["pearson"]}, "target '(yes|no)' is no number; use another metric"),
        ({"metrics": ["group_exact_match"]}, "rows of dev have none; set task.group to a field"),
        ({"metrics": ["squad_by_group"]}, "'squad_by_group' scores rows of one group together"),
        ({"metrics": ["wsc"]}, "metric 'wsc' is of the task super_glue/wsc alone"),
    ],
)
def test_metrics_that_do_not_fit_the_rows(write, options, message):
    with pytest.raises(ValueError, match=message):
        check_metrics(load_task(config(write("mine.jsonl", many()), **options)))


def test_metrics_that_are_none(write):
    with pytest.raises(ValueError, match="task.metrics is empty, expected names such as"):
        config("mine.jsonl", metrics=[])
    with pytest.raises(
        ValueError, match="task.metrics is set, but the metrics of task 'squad' are"
    ):
        load_task(TaskConfig(name="squad", metrics=["squad"]))


def test_sentinels_of_the_template_are_found_and_said(write):
    rows = many(10)
    rows[0]["text"] = "own <extra_id_5>"
    source = write("mine.jsonl", rows)
    given = config(
        source, dev_source=source, test_source=source, template="  {text} is <extra_id_0>"
    )
    task = load_task(given)
    assert task.splits["train"][1] == Example("row 1 is <extra_id_0>", "yes", sentinels=(9,))
    assert task.splits["train"][0].sentinels == (len("own <extra_id_5> is "),)
    assert "<extra_id_0> of task.template: sentinels of the model" in task.notes
    assert any("3 rows have '<extra_id_' in their own text: text" in note for note in task.notes)


def test_longest_inputs_of_an_evaluation():
    data, own = DataConfig(inputs_length=64), config("mine.jsonl")
    paper = TaskConfig(name="super_glue/rte")
    assert longest_input(own, data, "dev", None) == 64
    assert longest_input(paper, data, "train", None) == longest_input(paper, data, "train", 9) == 64
    assert longest_input(paper, data, "test", None) > 10**9
    assert longest_input(paper, data, "dev", 512) == longest_input(own, data, "dev", 512) == 512


def test_label_outside_the_label_words(write):
    rows = many()
    rows[7]["label"] = "yess"
    with pytest.raises(ValueError, match=r"mine.jsonl:8: label 'yess' is not .*: yes, no \(did"):
        load_task(config(write("mine.jsonl", rows), label_words=["yes", "no"]))
    train = write("train.jsonl", many())
    with pytest.raises(ValueError, match=r"mine.jsonl:8: label 'yess' .*inferred from .*train"):
        load_task(config(train, dev_source=write("mine.jsonl", rows)))


@pytest.mark.parametrize("words", [[], ["a", "a"], ["a", " "], {}, {"0": ""}])
def test_label_words_that_are_none(write, words):
    with pytest.raises(ValueError, match="task.label_words is .*expected one or more different"):
        load_task(config(write("mine.jsonl", many()), label_words=words))


def test_row_without_a_template_field(write):
    rows = [*many(3), {"txt": "a", "label": "no"}]
    with pytest.raises(
        ValueError, match=r"mine.jsonl:4: .*no field 'text' of task.template.*: txt, label .*'txt'"
    ):
        load_task(config(write("mine.jsonl", rows)))
    with pytest.raises(
        ValueError, match=r"mine.jsonl:1: .*no field 'lable' of task.label.*'label'"
    ):
        load_task(config(write("mine.jsonl", rows), label="lable"))


def test_empty_label(write):
    rows = [*many(3), {"text": "a", "label": "  "}]
    with pytest.raises(ValueError, match="mine.jsonl:4: field 'label' of task.label is empty"):
        load_task(config(write("mine.jsonl", rows)))


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{text", "is broken"),
        ("text}", "is broken"),
        ("no field", "has no field"),
        ("", "has no field"),
        ("{}", "field without a name"),
        ("{text!r}", "or with a format"),
        ("{text:>9}", "or with a format"),
    ],
)
def test_template_that_is_none(write, template, message):
    with pytest.raises(ValueError, match=f"task.template .*{message}.*expected"):
        load_task(config(write("mine.jsonl", many()), template=template))


def test_too_few_rows_to_split(write):
    with pytest.raises(ValueError, match=r"has 2 rows and none falls into .*task.test_source"):
        load_task(config(write("mine.jsonl", many(2))))


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="none.tsv' does not exist"):
        load_task(config(str(tmp_path / "none.tsv")))


@pytest.mark.parametrize("name", ["librery", "?"])
def test_unknown_task(name):
    with pytest.raises(ValueError, match="unknown task.*built-in tasks: library") as caught:
        load_task(TaskConfig(name=name))
    assert ("did you mean 'library'?" in str(caught.value)) == (name == "librery")


def test_options_that_a_task_has_no_use_for(write):
    source = write("mine.jsonl", many())
    for given in ({"origin": "hub"}, {"prefix": True}, {"dev_from_train": True}):
        for task in (config(source, **given), TaskConfig(name="library", **given)):
            with pytest.raises(ValueError, match=f"task.{next(iter(given))} is set, but it is of"):
                load_task(task)
    with pytest.raises(ValueError, match="task.free_text is set, but the answers of task 'squad'"):
        load_task(TaskConfig(name="squad", free_text=True))


WORDS = {"library": LIBRARIES, "type": KINDS, "describes": ("yes", "no"), "argument": None}


@pytest.mark.parametrize("name", WORDS)
def test_built_in_task(monkeypatch, name):
    assert task_names() == list(WORDS)
    rows = [LabeledText(f"text {i}", "jax" if i % 2 else "hub") for i in range(4)]
    splits = {"train": rows, "dev": rows[:1], "test": rows[:3]}
    monkeypatch.setitem(tasks.BUILT_IN, name, (lambda: splits, tasks.BUILT_IN[name][1]))
    task = load_task(TaskConfig(name=name))
    assert task.name == name
    assert task.label_words == (WORDS[name] and tuple(WORDS[name]))
    assert task.splits["test"][1] == Example("text 1", "jax")
    assert load_task(TaskConfig(name=name, free_text=True)).label_words is None


def test_sst2_by_options_alone(data_dir):
    files = {name: str(data_dir / "sst2" / f"{name}.tsv") for name in ("train", "dev", "test")}
    task = load_task(
        TaskConfig(
            source=files["train"],
            dev_source=files["dev"],
            test_source=files["test"],
            template="{sentence}",
            label="label",
            label_words={"0": "negative", "1": "positive"},
        )
    )
    assert {name: len(rows) for name, rows in task.splits.items()} == {
        "train": 60_614,
        "dev": 6_735,
        "test": 872,
    }
    assert task.splits["dev"][0] == Example("the expressive power of the camera", "positive")
    assert majority_score(task) == pytest.approx(100 * 444 / 872)


def test_reading_a_task_imports_no_array_library(write):
    code = (
        "import sys\n"
        "from spt_jax.config.train import TaskConfig\n"
        "from spt_jax.data.tasks import load_task\n"
        f"load_task(TaskConfig(source={write('mine.jsonl', many())!r}, template='{{text}}', "
        "label='label'))\n"
        "print(sorted({'jax', 'grain', 'tensorflow', 'torch'} & set(sys.modules)))"
    )
    output = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    )
    assert output.stdout.strip() == "[]"


# Mixtures, and fewer rows.


def rows_of(task, sizes):
    """Built-in rows of a split, whose texts name their task."""
    return lambda: {
        split: [LabeledText(f"{task} {split} {i}", "ab"[i % 2]) for i in range(n)]
        for split, n in sizes.items()
    }


@pytest.fixture
def built_in(monkeypatch):
    """Tasks of 300, 50 and 10 training rows; the last has other label words."""
    for name, words, train in (("big", ("a", "b"), 300), ("mid", ("a", "b"), 50)):
        sizes = {"train": train, "dev": 4, "test": 6}
        monkeypatch.setitem(tasks.BUILT_IN, name, (rows_of(name, sizes), words))
    sizes = {"train": 10, "dev": 3, "test": 3}
    monkeypatch.setitem(tasks.BUILT_IN, "small", (rows_of("small", sizes), ("a", "b", "c")))


def test_a_mixture_draws_each_task_by_its_rows_up_to_a_cap(built_in):
    names = ["big", "mid", "small"]
    task = load_task(TaskConfig(name="all", mixture=names, mixture_cap=100))
    of = Counter(example.inputs.split()[0] for example in task.splits["train"])
    assert of == {"big": 100, "mid": 50, "small": 10}
    assert [len(task.splits[name]) for name in ("dev", "test")] == [11, 15]
    assert task.name == "all" and task.label_words is None and task.metrics == ("accuracy",)
    assert task.prompt_words == ("a", "b", "c")
    assert task.notes == (
        "big: 100 of 300 train rows, 4 dev, 6 test",
        "mid: 50 of 50 train rows, 4 dev, 6 test",
        "small: 10 of 10 train rows, 3 dev, 3 test",
        "mixture of 3 tasks: 160 train rows, answers are free text",
    )
    kept = {e.inputs for e in task.splits["train"] if e.inputs.startswith("big")}
    assert kept != {f"big train {i}" for i in range(100)}  # a sample, not the first rows
    again = load_task(TaskConfig(name="all", mixture=names, mixture_cap=100))
    assert again == task
    test = load_test(TaskConfig(name="boolq", mixture=names))
    assert len(test.splits["test"]) == 15 and list(test.splits) == ["test"]


def test_few_training_rows_are_a_fixed_sample(built_in):
    task = load_task(TaskConfig(name="big", max_train_rows=32))
    assert len(task.splits["train"]) == 32 and len(task.splits["test"]) == 6
    assert {e.targets for e in task.splits["train"]} == {"a", "b"}
    assert task.notes[-1] == "train has 32 of these 300 rows, a fixed random sample"
    more = load_task(TaskConfig(name="big", max_train_rows=64)).splits["train"]
    assert set(task.splits["train"]) < set(more)
    whole = load_task(TaskConfig(name="big", max_train_rows=300))
    assert whole == load_task(TaskConfig(name="big"))
    mixed = load_task(TaskConfig(name="x", mixture=["big", "mid"], max_train_rows=7))
    assert len(mixed.splits["train"]) == 7


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mixture": ["big"]}, r'task.mixture is \["big"\], expected two or more different tasks'),
        ({"mixture": ["big", "big"]}, "expected two or more different tasks"),
        (
            {"name": None, "mixture": ["big", "mid"]},
            "task.name is null with task.mixture, ex",
        ),
        (
            {"name": "big", "mixture": ["big", "mid"]},
            "task.name is 'big' with task.mixture",
        ),
        (
            {"mixture": ["big", "mid"], "metrics": ["accuracy"]},
            "task.metrics is set beside task.mixture, whose tasks have their own rows",
        ),
        ({"mixture": ["big", "nowhere"]}, "unknown task 'nowhere'; built-in tasks: "),
        ({"max_train_rows": 0}, "task.max_train_rows is 0, expected 1 or more"),
    ],
)
def test_mixtures_that_are_none(built_in, options, message):
    with pytest.raises(ValueError, match=message):
        load_task(TaskConfig(**{"name": "title", **options}))
