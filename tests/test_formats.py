"""The text of every task of the papers, letter by letter, from a row of the dataset's schema."""

import numpy as np
import pytest

from spt_jax.data.example import HIDDEN, Example
from spt_jax.data.papers.formats import pad_punctuation, remove_prefix
from spt_jax.data.papers.tasks import PAPER_TASKS
from spt_jax.data.records import Record

PONY = (
    "The boy continued to whip the pony , and eventually the pony threw him over. John laughed "
    'out quite loud. "Good for him," he said. '
)
PEBBLE = (
    "When they had eventually calmed down a bit , and had gotten home, Mr. Farley put the magic "
    "pebble in an iron safe . Some day they might want to use it , but really for now, what more "
    "could they wish for?"
)
SQUAD = {
    "id": "1",
    "title": "t",
    "question": "Who's first?",
    "context": "It cost $3.50 (or\n\nless) in  2_000, à Paris.",
    "answers": {"text": ["$3.50", "3.50"], "answer_start": [8, 9]},
}
SQUAD_TEXT = (
    "question: Who ' s first ? context: It cost $ 3 . 50 ( or less ) in 2 _ 000 , à Paris . "
)
SENTENCES = {"sentence1": "A  b.", "sentence2": " C", "idx": 0}
NLI = {"premise": "P.", "hypothesis": "H", "idx": 7}

# Task -> (row with the columns of its dataset, input text, targets of labels 0, 1, ...)
CLASSES = {
    "super_glue/boolq": (
        {"question": "is it", "passage": "A -- b", "idx": 0},
        "boolq passage: A -- b question: is it",
        ["False", "True"],
    ),
    "super_glue/cb": (
        NLI,
        "cb hypothesis: H premise: P.",
        ["entailment", "contradiction", "neutral"],
    ),
    "super_glue/copa": (
        {"premise": "p", "choice1": "a", "choice2": "b", "question": "cause", "idx": 0},
        "copa choice1: a choice2: b premise: p question: cause",
        ["choice1", "choice2"],
    ),
    "super_glue/multirc": (
        {
            "paragraph": "<b>Sent 1: </b>One.<br><b>Sent 2: </b>Two.<br>",
            "question": "Which <b>one</b>?",
            "answer": "One",
            "idx": {"paragraph": 3, "question": 5, "answer": 8},
        },
        "multirc question: Which one? answer: One paragraph: Sent 1: One. Sent 2: Two. ",
        ["False", "True"],
    ),
    "super_glue/rte": (
        NLI,
        "rte hypothesis: H premise: P.",
        ["entailment", "not_entailment"],
    ),
    "super_glue/wic": (
        {
            "word": "place",
            "sentence1": "a place",
            "sentence2": "to place",
            "start1": 2,
            "start2": 3,
            "end1": 7,
            "end2": 8,
            "idx": 0,
        },
        "wic sentence1: a place sentence2: to place word: place",
        ["False", "True"],
    ),
    "super_glue/axb": (
        {"sentence1": "premise one", "sentence2": "hypothesis two", "idx": 0},
        "rte hypothesis: hypothesis two premise: premise one",
        ["entailment", "not_entailment"],
    ),
    "super_glue/axg": (NLI, "rte hypothesis: H premise: P.", ["entailment", "not_entailment"]),
    "glue/cola": (
        {"sentence": "s .", "idx": 0},
        "cola sentence: s .",
        ["unacceptable", "acceptable"],
    ),
    "glue/sst2": (
        {"sentence": "fine ", "idx": 0},
        "sst2 sentence: fine ",
        ["negative", "positive"],
    ),
    "glue/mrpc": (
        SENTENCES,
        "mrpc sentence1: A  b. sentence2:  C",
        ["not_equivalent", "equivalent"],
    ),
    "glue/qqp": (
        {"question1": "q?", "question2": "r?", "idx": 0},
        "qqp question1: q? question2: r?",
        ["not_duplicate", "duplicate"],
    ),
    "glue/mnli": (
        NLI,
        "mnli hypothesis: H premise: P.",
        ["entailment", "neutral", "contradiction"],
    ),
    "glue/mnli_mismatched": (
        NLI,
        "mnli hypothesis: H premise: P.",
        ["entailment", "neutral", "contradiction"],
    ),
    "glue/qnli": (
        {"question": "q", "sentence": "s", "idx": 0},
        "qnli question: q sentence: s",
        ["entailment", "not_entailment"],
    ),
    "glue/rte": (
        SENTENCES,
        "rte sentence1: A  b. sentence2:  C",
        ["entailment", "not_entailment"],
    ),
    "glue/wnli": (
        SENTENCES,
        "wnli sentence1: A  b. sentence2:  C",
        ["not_entailment", "entailment"],
    ),
    "glue/ax": (
        NLI,
        "mnli hypothesis: H premise: P.",
        ["entailment", "neutral", "contradiction"],
    ),
    "sst5": ({"text": "t"}, "sst5 sentence: t", ["terrible", "bad", "okay", "good", "great"]),
    "trec": (
        {"text": "who ?"},
        "trec sentence: who ?",
        ["Expression", "Entity", "Description", "Human", "Location", "Number"],
    ),
    "ag_news": (
        {"text": "t"},
        "ag_news sentence: t",
        ["World", "Sports", "Business", "Technology"],
    ),
    "subj": ({"text": "t"}, "subj sentence: t", ["objective", "subjective"]),
}
FREE_TEXT = {
    "super_glue/record",
    "super_glue/wsc",
    "glue/stsb",
    "squad",
    "xsum",
    "cnn_dailymail",
}


def made(task, row):
    return PAPER_TASKS[task].format(Record(row, "row 0"))


def tfds(row):
    """The row as tensorflow-datasets gives it: bytes, numpy scalars and arrays."""

    def convert(value):
        if isinstance(value, dict):
            return {key: convert(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return np.array([convert(item) for item in value], object)
        return value.encode() if isinstance(value, str) else np.int64(value)

    return convert(row)


@pytest.mark.parametrize("task", CLASSES)
def test_classes(task):
    row, inputs, targets = CLASSES[task]
    assert PAPER_TASKS[task].words == tuple(targets)
    for label, target in enumerate(targets):
        for values in (row | {"label": label}, tfds(row | {"label": label})):
            (example,) = made(task, values)
            assert (example.inputs, example.targets) == (inputs, target)
            assert example.label == label
    assert made(task, row | {"label": targets[-1]})[0].targets == targets[-1]
    (hidden,) = made(task, row | {"label": -1})
    assert (hidden.inputs, hidden.targets, hidden.label) == (inputs, "<unk>", HIDDEN)


def test_every_task_has_its_text_tested():
    mrqa = {name for name in PAPER_TASKS if name.startswith("mrqa/")}
    assert {*CLASSES, *FREE_TEXT, *mrqa} == {*PAPER_TASKS}
    assert len(mrqa) == 6


def test_labels_as_the_json_files_of_superglue_have_them():
    row = CLASSES["super_glue/boolq"][0]
    assert made("super_glue/boolq", row | {"label": True})[0].targets == "True"
    assert made("super_glue/cb", NLI | {"label": "neutral"})[0].targets == "neutral"
    assert made("super_glue/rte", NLI | {"label": "1"})[0].targets == "not_entailment"


def test_the_first_word_is_removed_and_nothing_else():
    assert remove_prefix("boolq passage: A -- b") == "passage: A -- b"
    assert remove_prefix("wsc: The  dog") == "The  dog"
    assert remove_prefix("rte") == "rte"


def test_multirc_groups_the_answers_of_a_question():
    row = CLASSES["super_glue/multirc"][0] | {"label": 1}
    assert made("super_glue/multirc", row)[0].group == "3/5"


RECORD = {
    "passage": 'He said "yes"\n@highlight\nWhat?\n@highlight\nNo dot\n@highlight\nEnd.\nnext',
    "query": "@placeholder won",
    "entities": ["Ann", "Bo Li"],
    "answers": ["Ann", "Bo Li"],
    "idx": {"passage": 3, "query": 9},
}
RECORD_TEXT = (
    "record query: @placeholder won entities: Ann, Bo Li passage: "
    'He said "yes" What? No dot. End.\nnext'
)


@pytest.mark.parametrize("row", [RECORD, tfds(RECORD)], ids=["json", "tfds"])
def test_record_has_an_example_for_each_answer(row):
    answers = ("Ann", "Bo Li")
    assert made("super_glue/record", row) == [
        Example(RECORD_TEXT, answer, answers, "3/9") for answer in answers
    ]


def test_record_without_answers_is_hidden():
    (example,) = made("super_glue/record", RECORD | {"answers": []})
    assert (example.inputs, example.targets, example.label) == (RECORD_TEXT, "<unk>", HIDDEN)


def wsc(text, pronoun, index, label=1):
    return {
        "text": text,
        "span1_text": "the pony",
        "span1_index": 0,
        "span2_text": pronoun,
        "span2_index": index,
        "label": label,
        "idx": 0,
    }


@pytest.mark.parametrize(
    ("row", "inputs"),
    [
        (wsc("Bob asked Tom if he can lend", "he", 4), "wsc: Bob asked Tom if *he* can lend"),
        (wsc("A b  it c", "it", 3), "wsc: A b  *it* c"),  # two spaces: an empty word between
        (
            wsc(PONY, "him", 20),
            "wsc: The boy continued to whip the pony , and eventually the pony threw him over. "
            'John laughed out quite loud. "Good for *him* ," he said.',
        ),
        (
            wsc(PEBBLE, "it", 28),
            "wsc: When they had eventually calmed down a bit , and had gotten home, Mr. Farley put "
            "the magic pebble in an iron safe . Some day they might want to use *it* , but really "
            "for now, what more could they wish for?",
        ),
    ],
    ids=["plain", "spaces", "pony", "pebble"],
)
def test_wsc_marks_the_pronoun(row, inputs):
    for values in (row, tfds(row)):
        (example,) = made("super_glue/wsc", values)
        assert (example.inputs, example.targets, example.label) == (inputs, "the pony", 1)
    for label in (0, -1):
        assert made("super_glue/wsc", row | {"label": label})[0].label == label


@pytest.mark.parametrize("index", [0, 1, 9])
def test_wsc_with_another_word_at_the_index(index):
    with pytest.raises(ValueError, match=f"row 0: word {index} of the text is .*pronoun 'he'"):
        made("super_glue/wsc", wsc("he saw it", "he", index))


@pytest.mark.parametrize(
    ("score", "target"),
    [
        (3.4, "3.4"),
        (2.5, "2.4"),  # 12.5 fifths are rounded to even
        (2.7, "2.8"),  # 13.5
        (3.25, "3.2"),
        (5, "5.0"),
        ("3.799999952316284", "3.8"),
        (np.float32(0.2), "0.2"),
        (np.float32(0.75), "0.8"),
    ],
)
def test_stsb_rounds_to_fifths(score, target):
    (example,) = made("glue/stsb", SENTENCES | {"label": score})
    assert example == Example("stsb sentence1: A  b. sentence2:  C", target)


def test_stsb_hidden():
    (example,) = made("glue/stsb", SENTENCES | {"label": -1.0})
    assert (example.targets, example.label) == ("-1.0", HIDDEN)
    with pytest.raises(ValueError, match="row 0: column 'label' is nan, expected a finite number"):
        made("glue/stsb", SENTENCES | {"label": float("nan")})


def test_squad_sets_punctuation_apart():
    expected = Example(SQUAD_TEXT, " $ 3 . 50", (" $ 3 . 50", "3 . 50"))
    assert made("squad", SQUAD) == made("squad", tfds(SQUAD)) == [expected]


@pytest.mark.parametrize("task", [name for name in PAPER_TASKS if name.startswith("mrqa/")])
def test_mrqa_reads_as_squad(task):
    row = {
        "qid": "1",
        "subset": "s",
        "question": SQUAD["question"],
        "context": SQUAD["context"],
        "answers": SQUAD["answers"]["text"],
        "detected_answers": {"text": ["3"]},
    }
    assert made(task, row) == made(task, tfds(row)) == made("squad", SQUAD)


def test_squad_without_answers_is_hidden():
    (example,) = made("squad", SQUAD | {"answers": {"text": [], "answer_start": []}})
    assert (example.targets, example.label) == ("<unk>", HIDDEN)


@pytest.mark.parametrize(
    ("task", "row"),
    [
        ("xsum", {"document": "A  b.\nC", "summary": "S .\n t", "id": "1"}),
        ("cnn_dailymail", {"article": "A  b.\nC", "highlights": "S .\n t", "id": "1"}),
    ],
)
def test_a_summary_is_asked_for_by_a_word_and_no_white_space_changes(task, row):
    expected = Example("summarize: A  b.\nC", "S .\n t")
    assert made(task, row) == made(task, tfds(row)) == [expected]


def test_only_ascii_punctuation_is_padded():
    assert pad_punctuation("naïve “x” a-b\t\r\n_c—d") == "naïve “x” a - b _ c—d"


@pytest.mark.parametrize(
    ("task", "row", "message"),
    [
        ("glue/sst2", {"sentense": "x", "label": 1}, "no column 'sentence'.*mean 'sentense'"),
        ("glue/sst2", {"sentence": None, "label": 1}, "no column 'sentence'; it has: label"),
        ("glue/sst2", {"sentence": "x", "label": 2}, "'label' is 2, expected 0 to 1, -1, or one"),
        ("glue/sst2", {"sentence": "x", "label": -2}, "'label' is -2, expected 0 to 1, -1, or one"),
        ("glue/sst2", {"sentence": "x", "label": "Positive"}, "expected .* negative, positive"),
        ("glue/sst2", {"sentence": "x", "label": 0.5}, "'label' is 0.5, expected 0 to 1"),
        ("glue/sst2", {"sentence": 3, "label": 0}, "'sentence' is 3, expected text"),
        ("glue/sst2", {"sentence": b"\xff", "label": 0}, "'sentence' is not UTF-8"),
        ("super_glue/record", RECORD | {"answers": "Ann"}, "'Ann', expected a list of texts"),
        ("super_glue/record", RECORD | {"idx": 3}, "'idx' is 3, expected an object with columns"),
        (
            "super_glue/record",
            RECORD | {"idx": {"passage": 0}},
            "idx: the row has no column 'query'",
        ),
    ],
)
def test_a_row_that_does_not_fit(task, row, message):
    with pytest.raises(ValueError, match=f"^row 0: .*{message}") as caught:
        made(task, row)
    assert "\n" not in str(caught.value)
