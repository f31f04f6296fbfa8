"""From a row of a dataset to the text that T5 reads and writes, as Google's code makes it.

Each format is given one record and returns its examples; the input text begins with the name of the
task, which `remove_prefix` takes away again (the paper's runs have none). Letter by letter means:
single spaces between the parts, no other change of white space, and `<unk>` for a label that is
hidden. The reference is t5/data/preprocessors.py of text-to-text-transfer-transformer.
"""

import dataclasses
import re
import string
from collections.abc import Callable, Sequence

import numpy as np

from spt_jax.data.example import HIDDEN, Example
from spt_jax.data.records import Record

Format = Callable[[Record], list[Example]]
UNKNOWN = "<unk>"
_PUNCTUATION = re.compile(f"([{re.escape(string.punctuation)}])")
_SPACES = re.compile("[ \t\n\f\r]+")  # what \s is to RE2, which the reference runs on
# Sentences of WSC whose pronoun is not the word at its index: text -> text with X in its place.
_WSC_FIXES = {
    "The boy continued to whip the pony , and eventually the pony threw him over. John laughed "
    'out quite loud. "Good for him," he said. ': "The boy continued to whip the pony , and "
    "eventually the pony threw him over. John laughed out quite loud. "
    '"Good for X ," he said.',
    "When they had eventually calmed down a bit , and had gotten home, Mr. Farley put the magic "
    "pebble in an iron safe . Some day they might want to use it , but really for now, what more "
    "could they wish for?": "When they had eventually calmed down a bit , and had gotten home, "
    "Mr. Farley put the magic pebble in an iron safe . Some day they might want to use X , but "
    "really for now, what more could they wish for?",
}


def remove_prefix(inputs: str) -> str:
    """The text without its first word and the space behind it."""
    return re.sub("^[^ ]* ", "", inputs)


def classes(name: str, keys: str, words: Sequence[str]) -> Format:
    """The format of a task with label words: `name key: value key: value`.

    Args:
        name: What the text begins with.
        keys: In order; each is the column of its value, unless it is written `key=column`.
        words: The targets, in the order of the labels.
    """
    columns = [(key, column or key) for key, _, column in (k.partition("=") for k in keys.split())]

    def to_examples(row: Record) -> list[Example]:
        inputs = " ".join([name, *(f"{key}: {row.text(column)}" for key, column in columns)])
        label = row.label("label", words)
        return [Example(inputs, UNKNOWN if label == HIDDEN else words[label], label=label)]

    return to_examples


def multirc(name: str, keys: str, words: Sequence[str]) -> Format:
    """MultiRC: as `classes`, markup removed, and the answers of a question in one group."""
    plain = classes(name, keys, words)

    def to_examples(row: Record) -> list[Example]:
        (example,) = plain(row)
        inputs = re.sub("</?b>", "", example.inputs.replace("<br>", " "))
        index = row.inner("idx")
        group = f"{index.integer('paragraph')}/{index.integer('question')}"
        shared = row.text("paragraph")
        return [dataclasses.replace(example, inputs=inputs, group=group, shared=shared)]

    return to_examples


def record(row: Record) -> list[Example]:
    """ReCoRD: an example for each answer, all of a query in one group."""
    passage = re.sub("([.?!\"'])\n@highlight\n", r"\1 ", row.text("passage"))
    passage = passage.replace("\n@highlight\n", ". ")
    entities = ", ".join(row.texts("entities"))
    inputs = f"record query: {row.text('query')} entities: {entities} passage: {passage}"
    answers = tuple(row.texts("answers"))
    group = f"{row.inner('idx').integer('passage')}/{row.inner('idx').integer('query')}"
    label = None if answers else HIDDEN
    shared = row.text("passage")
    return [Example(inputs, a, answers, group, label, shared) for a in answers or (UNKNOWN,)]


def wsc(row: Record) -> list[Example]:
    """WSC: the pronoun in asterisks is to be replaced by what it stands for.

    The target is the candidate of the row, right (label 1) or wrong (label 0): trained on where it
    is right, and compared with by the metric `wsc` in both cases.
    """
    text, pronoun, index = row.text("text"), row.text("span2_text"), row.integer("span2_index")
    marked = _WSC_FIXES.get(text)
    if marked is None:
        words = text.split(" ")
        found = words[index] if 0 < index < len(words) else None
        if found != pronoun:
            raise ValueError(
                f"{row.place}: word {index} of the text is {found!r}, expected the pronoun "
                f"'{pronoun}' of span2_text behind the first word (wsc.fixed, not wsc)"
            )
        marked = " ".join([*words[:index], "X", *words[index + 1 :]])
    inputs = "wsc: " + marked.replace(" X ", f" *{pronoun}* ")
    label = row.label("label", ("False", "True"))
    return [Example(inputs, row.text("span1_text"), label=label)]


def stsb(row: Record) -> list[Example]:
    """STS-B: the similarity, rounded to fifths, as text such as '3.4'; hidden ones are '-1.0'."""
    inputs = f"stsb sentence1: {row.text('sentence1')} sentence2: {row.text('sentence2')}"
    value = np.float32(row.number("label"))
    rounded = np.round(value * np.float32(5)) / np.float32(5)
    return [Example(inputs, f"{rounded:.1f}", label=HIDDEN if value == HIDDEN else None)]


def squad(row: Record) -> list[Example]:
    """SQuAD: punctuation set apart by spaces everywhere; the first answer is the target."""
    return _question(row, row.inner("answers").texts("text"))


def mrqa(row: Record) -> list[Example]:
    """MRQA: as SQuAD, with the answers in a plain list."""
    return _question(row, row.texts("answers"))


def summary(article: str, target: str) -> Format:
    """Return the format of a summarization task: `summarize: ` and the article, as it is.

    Args:
        article: The column of the input.
        target: The column of the summary. It may have line breaks between its sentences.
    """

    def to_examples(row: Record) -> list[Example]:
        return [Example(f"summarize: {row.text(article)}", row.text(target))]

    return to_examples


def _question(row: Record, answers: Sequence[str]) -> list[Example]:
    question, context = pad_punctuation(row.text("question")), pad_punctuation(row.text("context"))
    inputs = _SPACES.sub(" ", f"question: {question} context: {context}")
    padded = tuple(pad_punctuation(answer) for answer in answers)
    target = padded[0] if padded else UNKNOWN
    label = None if padded else HIDDEN
    return [Example(inputs, target, padded, label=label, shared=row.text("context"))]


def pad_punctuation(text: str) -> str:
    """ASCII punctuation between spaces, and every run of white space as one."""
    return _SPACES.sub(" ", _PUNCTUATION.sub(r" \1 ", text))
