"""What is answered is written as the training rows of the prompt were, or refused by name."""

import numpy as np
import pytest

from spt_jax.prediction.inputs import InputForm, form_of, list_rows

PAIR = InputForm("question: {q} context: {c}")


def test_a_template_is_filled_as_in_training():
    assert PAIR.fill({"q": " why? ", "c": 7, "other": []}) == "question: why? context: 7"
    assert PAIR.fill({"q": np.float64(0.5), "c": True}) == "question: 0.5 context: true"
    one = InputForm("say {sentence}!")
    assert one.fill("hi") == one.fill({"sentence": "hi"}) == one.fill({"text": "hi"}) == "say hi!"
    assert (
        InputForm().fill(" as it is ") == InputForm().fill({"text": " as it is "}) == " as it is "
    )


@pytest.mark.parametrize(
    ("form", "row", "message"),
    [
        (
            PAIR,
            "a text",
            "a text is given, but the template 'question.*' has the fields q, c; give",
        ),
        (PAIR, {"q": "x"}, "the row has no field 'c' of the template; its fields: q"),
        (PAIR, {"q": "x", "C": "y"}, r"no field 'c' of the template; .* \(did you mean 'C'\?\)"),
        (PAIR, {"q": "x", "c": None}, "field 'c' is null, expected a text or a number"),
        (PAIR, {"q": float("nan"), "c": "y"}, "field 'q' is NaN, expected a text or a number"),
        (
            PAIR,
            {"q": "", "c": "y"},
            "field 'q' is \"\", .*because task.missing of the run is 'error'",
        ),
        (InputForm("a {b}", "skip"), " \t", r"field 'b' is .*task.missing of the run is 'skip'"),
        (InputForm("a {b}", "empty"), {"c": None}, "no field 'b' of the template 'a {b}', nor 'te"),
        (InputForm("a {b}", "empty"), {"b": "\ud800"}, "field 'b' has half of a surrogate pair"),
        (
            PAIR,
            {"q": ["x"], "c": "y"},
            r"the row: field 'q' of task.template is a list of 1 items, expected one text",
        ),
        (PAIR, {"q": "\ud800", "c": "y"}, "field 'q' has half of a surrogate pair"),
        (InputForm("a {b}"), {"c": 1}, "no field 'b' of the template 'a {b}', nor 'text'"),
        (InputForm(), {"txt": "x"}, r"no field 'text', expected .* \(did you mean 'txt'\?\)"),
        (InputForm(), "\udfff", "text has half of a surrogate pair, expected whole characters"),
        (InputForm(), {"text": 3}, "text is 3, expected a string"),
        (InputForm("no field"), "x", "task.template 'no field' has no field"),
    ],
)
def test_what_is_no_row_of_a_template(form, row, message):
    with pytest.raises(ValueError, match=message):
        form.fill(row)


def test_nothing_is_an_empty_text_where_training_read_it_so():
    form = InputForm("question: {q} context: {c}", "empty")
    for nothing in ("", " ", None, float("nan")):
        assert form.fill({"q": nothing, "c": "y"}) == "question:  context: y"
    assert form == form_of({"template": form.template or "", "missing": "empty"})
    assert form_of({"template": "{a}"}) == InputForm("{a}", "error") and form_of({}) == InputForm()
    with pytest.raises(ValueError, match="keeps missing 'boo', expected error, skip or empty; get"):
        form_of({"template": "{a}", "missing": "boo"})


def test_rows_come_from_lists_arrays_and_generators():
    for texts in (
        ["a", "b"],
        np.array(["a", "b"]),
        (x for x in "ab"),
        np.array(["a", "b"], object),
    ):
        assert list_rows(texts) == ["a", "b"]
    for texts, message in {
        "a text": "texts is 'a text' of type str, expected a list of texts or rows; put it into a",
        b"a": "texts is b'a' of type bytes, expected a list",
        3: "texts is 3 of type int, expected a list",
    }.items():
        with pytest.raises(TypeError, match=message):
            list_rows(texts)
    with pytest.raises(TypeError, match="of type dict, expected a list of texts or rows"):
        list_rows({"q": "x"})
    with pytest.raises(
        ValueError, match="row 1 is None of type NoneType, expected a text or a map"
    ):
        list_rows(["a", None])


def test_sentinels_of_the_template_are_the_models_and_those_of_a_row_are_text():
    found = InputForm("{a} <extra_id_0>").fill("<extra_id_0> b")
    assert (found.inputs, found.sentinels) == ("<extra_id_0> b <extra_id_0>", (15,))
    assert InputForm("{x[0]}").fill({"x": ["a", "b"]}) == "a"
