"""Datasets in the files that their authors distribute: the names of the files, and their rows.

SuperGLUE and MRQA nest what TFDS spreads over rows, SQuAD is one JSON object, the tables of GLUE
have columns of their own. Each `Unfold` turns such a row into rows with the columns that a format
asks for, the same as TFDS makes of it, and leaves alone a row that has these columns already.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from spt_jax.data.records import Record

# Spans of WSC with words between their parts in the text, where no form of them stands.
_APART = ("Kamenev and Zinoviev", "Kamenev, Zinoviev, and Stalin")

Values = Mapping[str, Any]
Unfold = Callable[[Values], Iterator[Values]]
"""A row of a file -> the rows of the dataset."""


@dataclass(frozen=True)
class Release:
    """How the files of a dataset differ from a table for each split with the format's columns.

    Args:
        files: Split -> names of its files, beside those that any dataset may have.
        unfold: Makes rows of a row.
        columns: Of a table that has no first line of names.
        ragged: Whether the tables have damaged rows, which are left out as TFDS does.
        dev_ids: Names of a file with the ids, in pairs, of the rows of train that are validation.
            Without it, validation is the file in `files`.
    """

    files: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    unfold: Unfold | None = None
    columns: tuple[str, ...] = ()
    ragged: bool = False
    dev_ids: tuple[str, ...] = ()

    def rows(self, record: Record) -> list[Record]:
        """Return the rows of the dataset that a row of a file stands for.

        Raises:
            ValueError: The row is not as the authors write it.
        """
        if self.unfold is None:
            return [record]
        try:
            rows = list(self.unfold(record.values))
        except (KeyError, TypeError, IndexError, AttributeError) as error:
            raise ValueError(
                f"{record.place}: the row is not as the authors of the dataset write it "
                f"({type(error).__name__}: {error})"
            ) from None
        several = len(rows) > 1
        return [
            Record(row, f"{record.place}, row {number} in it" if several else record.place)
            for number, row in enumerate(rows, 1)
        ]


def renamed(**columns: str) -> Unfold:
    """Return an unfold that renames columns: `label="gold_label"` for a format's label."""

    def unfold(row: Values) -> Iterator[Values]:
        yield {**row, **{ours: row[theirs] for ours, theirs in columns.items() if theirs in row}}

    return unfold


def multirc(row: Values) -> Iterator[Values]:
    """A paragraph with questions with answers -> a row for each answer."""
    if not isinstance(row.get("passage"), Mapping):
        yield row
        return
    passage = row["passage"]
    for question in passage["questions"]:
        for answer in question["answers"]:
            yield {
                "paragraph": passage["text"],
                "question": question["question"],
                "answer": answer["text"],
                "label": answer.get("label", -1),
                "idx": {
                    "paragraph": row["idx"],
                    "question": question["idx"],
                    "answer": answer["idx"],
                },
            }


def record(row: Values) -> Iterator[Values]:
    """A passage with queries, both with places of entities -> a row for each query."""
    if "qas" not in row:
        yield row
        return
    text = row["passage"]["text"]
    entities = {text[place["start"] : place["end"] + 1] for place in row["passage"]["entities"]}
    for query in row["qas"]:
        yield {
            "passage": text,
            "query": query["query"],
            "entities": sorted(entities),
            "answers": sorted({answer["text"] for answer in query.get("answers", ())}),
            "idx": {"passage": row["idx"], "query": query["idx"]},
        }


def wsc(row: Values) -> Iterator[Values]:
    """The target's spans -> columns, with the spans as they stand in the text (`wsc.fixed`)."""
    if "target" not in row:
        yield row
        return
    values = {**row, **row["target"]}
    for span in ("span1", "span2"):
        text, index = values[f"{span}_text"], values[f"{span}_index"]
        if text in values["text"] or text in _APART:
            continue
        if "theyscold" in text:  # two words as one, which moves the pronoun
            values["span2_index"] = 10
        small = values["text"].split()[index][0].islower()
        text = (text[0].lower() if small else text[0].upper()) + text[1:]
        values[f"{span}_text"] = text.rstrip(".").replace("\n", " ")
    yield values


def squad(row: Values) -> Iterator[Values]:
    """The one object of SQuAD's file -> a row for each question."""
    if "data" not in row:
        yield row
        return
    for article in row["data"]:
        for paragraph in article["paragraphs"]:
            for question in paragraph["qas"]:
                yield {
                    "context": paragraph["context"],
                    "question": question["question"],
                    "id": question["id"],
                    "answers": {"text": [answer["text"] for answer in question["answers"]]},
                }


def mrqa(row: Values) -> Iterator[Values]:
    """A context with questions -> a row for each question; the first line of a file is none."""
    if "header" in row:
        return
    if "qas" not in row:
        yield row
        return
    for question in row["qas"]:
        yield {
            "context": row["context"].strip(),
            "question": question["question"].strip(),
            "qid": question["qid"],
            "answers": question["answers"],
        }


def ag_news(row: Values) -> Iterator[Values]:
    """A class from 1, a title and a description -> a text and a label from 0."""
    if "description" not in row:
        yield row
        return
    label = str(int(row["class"]) - 1)
    yield {"text": f"{row['title']} {row['description']}", "label": label}
