"""Datasets as their authors left them: a label and a text on each line, and no header.

TREC puts the label first, AG News last, behind a tab; of Subj each file has the texts of one label.
TREC and Subj are not UTF-8: their bytes 0x85 (dots) and 0x92 (an apostrophe) are those of Windows,
code page 1252.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from spt_jax.data.places import File
from spt_jax.data.records import Record
from spt_jax.errors import shorten


@dataclass(frozen=True)
class LabelLines:
    """How such files are read.

    Args:
        form: `label text`, with a blank between them; `text<tab>label`; or `text`, whose label is
            the name of the file.
        encoding: Of the bytes.
        files: Split -> names of its files.
        words: Label in the file -> label word. A label such as DESC:manner is known by DESC too.
        blank: A byte that is read as a blank.
    """

    form: Literal["label text", "text<tab>label", "text"]
    encoding: str
    files: Mapping[str, tuple[str, ...]]
    words: Mapping[str, str]
    blank: bytes = b""


def read_label_lines(file: File, lines: LabelLines) -> list[Record]:
    """Read records with the columns `text` (white space as single blanks) and `label` (its word).

    Raises:
        ValueError: A line has another form, another encoding or an unknown label, or there is none.
    """
    records = []
    name = file.place.rpartition("/")[2]
    for number, line in enumerate(file.read().split(b"\n"), 1):
        if not line.strip():
            continue
        place = f"{file.place}:{number}"
        line = line.replace(lines.blank, b" ") if lines.blank else line
        try:
            decoded = line.decode(lines.encoding)
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{place}: byte 0x{line[error.start]:02x} is not {lines.encoding}; expected the "
                "file as its authors left it"
            ) from None
        if lines.form == "label text":
            label, _, text = decoded.partition(" ")
        elif lines.form == "text":
            label, text = name, decoded
        else:
            text, _, label = decoded.rpartition("\t")
        text, label = " ".join(text.split()), label.strip()
        word = lines.words.get(label) or lines.words.get(label.partition(":")[0])
        if not text or word is None:
            raise ValueError(
                f"{place}: {shorten(decoded)!r} has no text or no label, expected "
                f"'{lines.form}' with a label of {', '.join(lines.words)}"
            )
        records.append(Record({"text": text, "label": word}, place))
    if not records:
        raise ValueError(f"file '{file.place}' has no rows; expected '{lines.form}' on each line")
    return records
