"""The tasks about arguments: no row of dev or test is known from what pretraining may read."""

from collections import Counter
from itertools import count

import pytest

from spt_jax.config.train import TaskConfig
from spt_jax.data.builtin import argument_tasks
from spt_jax.data.builtin.argument_tasks import argument_rows, select_rows
from spt_jax.data.builtin.arguments import KINDS
from spt_jax.data.builtin.cache import LabeledText
from spt_jax.data.builtin.docstrings import Docstring
from spt_jax.data.builtin.duplicates import ShingleIndex
from spt_jax.data.builtin.library import split_of
from spt_jax.data.tasks import load_task

TASKS = ("type", "describes", "argument")
WIDTH = "How wide the window is, in pixels of the screen it is shown on"
TITLE = "What is written above the window, or nothing where it has no frame"
SHADE = "Draw a soft grey border below the buttons while the mouse is over them"
KEY = "Letter that has to be pressed so that this part comes to the front"


def docstring(split, body):
    """A docstring that falls into a split, whatever it says."""
    for number in count():
        text = f"Opens number {number}.\n\n{body}"
        if split_of(text) == split:
            return Docstring("p", "p.m", "function", f"f{number}", text)


def documented(split, **descriptions):
    """One that documents {name: description}; the kind is int."""
    lines = [f"  {name} (int): {text}" for name, text in descriptions.items()]
    return docstring(split, "\n".join(["Args:", *lines]))


PACKAGES = ("numpy", "flax", "optax", "orbax")  # in both styles of docstrings; all take a minute


@pytest.fixture(scope="module")
def rows():
    """Rows of real docstrings, from the cache at the latest the second time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(argument_tasks, "PRETRAINING_PACKAGES", PACKAGES)
        argument_rows("type")
        patch.setattr(argument_tasks, "select_rows", lambda _: pytest.fail("no cache was used"))
        yield {task: argument_rows(task) for task in TASKS}


def test_rows_of_each_task():
    for split in ("train", "dev", "test"):
        found = select_rows([documented(split, win_width=WIDTH, title=TITLE)])
        others = [name for name in ("train", "dev", "test") if name != split]
        assert all(rows[name] == [] for rows in found.values() for name in others)
        assert sorted(found["type"][split]) == sorted([(WIDTH, "int"), (TITLE, "int")])
        assert sorted(found["argument"][split]) == sorted([(WIDTH, "win width"), (TITLE, "title")])
        assert sorted(found["describes"][split]) == sorted(
            [
                (f"win width: {WIDTH}", "yes"),
                (f"title: {WIDTH}", "no"),
                (f"title: {TITLE}", "yes"),
                (f"win width: {TITLE}", "no"),
            ]
        )


HALF = " ".join(WIDTH.split()[:9])


@pytest.mark.parametrize("split", ["dev", "test"])
@pytest.mark.parametrize(
    "other",
    [
        documented("train", width=WIDTH),
        documented("train", breadth=WIDTH.upper(), title="Something else that is quite long"),
        docstring("train", f"Prose, in which\n   {WIDTH.replace(' ', chr(10))} stands."),
        docstring("train", f"Half of it: {HALF}."),
        documented("train", width=f"{HALF} and then on in another way, for all it says here"),
    ],
)
def test_what_pretraining_may_have_read_is_dropped(split, other):
    found = select_rows([other, documented(split, width=WIDTH, title=TITLE)])
    assert found["type"][split] == [(TITLE, "int")]
    assert found["argument"][split] == [(TITLE, "title")]
    assert found["describes"][split] == []  # one argument has no other one
    alone = select_rows([other])
    assert {t: found[t]["train"] for t in TASKS} == {t: alone[t]["train"] for t in TASKS}


def test_a_short_part_of_a_description_may_be_known():
    part = docstring("train", "How wide the window is, in pixels")
    found = select_rows([part, documented("test", width=WIDTH)])
    assert found["argument"]["test"] == [(WIDTH, "width")]


def test_what_is_held_out_elsewhere_is_kept_once_and_in_test():
    held = docstring("dev", f"Prose of dev: {WIDTH}.")
    found = select_rows([documented("dev", width=WIDTH), documented("test", width=WIDTH), held])
    assert found["argument"] == {"train": [], "dev": [], "test": [(WIDTH, "width")]}


def test_alike_descriptions_of_different_things_go():
    again = f"{WIDTH} and no more"
    found = select_rows([documented("train", width=WIDTH, breadth=again, title=TITLE)])
    assert len(found["type"]["train"]) == 2  # both are an int, so one of them stays
    assert found["argument"]["train"] == [(TITLE, "title")]
    text = docstring("train", f"Args:\n  a (int): {WIDTH}\n  b (bool): {again}")
    assert select_rows([text])["type"]["train"] == []


def test_short_descriptions_and_names_that_say_nothing_are_left_out():
    short = documented("train", width="Too few words here")
    names = documented("train", x=WIDTH, kwargs=TITLE, one_two_three_four_five=SHADE)
    found = select_rows([short, names])
    assert found["argument"]["train"] == found["describes"]["train"] == []
    assert len(found["type"]["train"]) == 3  # which shows no name


def test_describes_is_capped_by_whole_docstrings(monkeypatch):
    monkeypatch.setattr(argument_tasks, "PAIRS", 3)
    docs = [
        documented("train", width=WIDTH, title=TITLE),
        documented("train", shade=SHADE, key=KEY),
    ]
    found = select_rows(docs)
    assert len(found["argument"]["train"]) == 4
    assert Counter(row.label for row in found["describes"]["train"]) == {"yes": 2, "no": 2}


def test_long_descriptions_are_cut_at_a_word():
    found = select_rows([documented("train", width=f"{WIDTH} {'so ' * 200}")])
    ((text, _),) = found["type"]["train"]
    assert 290 < len(text) <= 300
    assert text.endswith(" so")


def test_rows_do_not_depend_on_the_order_of_the_docstrings():
    docs = [documented("train", width=WIDTH, title=TITLE), documented("test", shade=SHADE)]
    assert select_rows(docs) == select_rows(docs[::-1])


@pytest.mark.parametrize("task", TASKS)
def test_real_rows_are_many_and_no_class_dominates(rows, task):
    found = rows[task]
    assert list(found) == ["train", "dev", "test"]
    assert len(found["test"]) >= 150
    assert len(found["train"]) >= 1200
    assert all(isinstance(row, LabeledText) for row in found["dev"])
    words = {"type": tuple(KINDS), "describes": ("yes", "no"), "argument": None}[task]
    loaded = load_task(TaskConfig(name=task))
    assert loaded.label_words == words
    for split in found.values():
        labels = Counter(row.label for row in split)
        assert words is None or set(labels) == set(words)
        assert max(labels.values()) <= {"type": 0.3, "describes": 0.5}.get(task, 0.1) * len(split)


def test_real_halves_of_describes_tell_nothing(rows):
    for split in rows["describes"].values():
        for half in (0, 1):
            answers = [
                Counter(row.text.split(": ", 1)[half] for row in split if row.label == label)
                for label in ("yes", "no")
            ]
            assert answers[0] == answers[1]


@pytest.mark.parametrize("task", ["type", "argument"])
def test_real_rows_have_no_near_duplicates(rows, task):
    index = ShingleIndex()
    texts = [row.text for split in rows[task].values() for row in split]
    alike = []
    for number, text in enumerate(texts):
        alike += index.alike(text)
        index.add(number, text)
    assert alike == []
    described = {row.text.split(": ", 1)[1] for row in rows["describes"]["test"]}
    assert described <= {row.text for row in rows["argument"]["test"]}


def test_package_that_is_not_installed(monkeypatch):
    monkeypatch.setattr(argument_tasks, "PRETRAINING_PACKAGES", ("python", "gone"))
    with pytest.raises(ValueError, match="rows of 'arguments' .*gone.*install gone"):
        argument_rows("type")
