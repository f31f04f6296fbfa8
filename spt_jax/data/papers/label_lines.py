"""Datasets as their authors left them: a label and a text on each line, and no header.

TREC and Subj put the label first, AG News last, behind a tab. TREC and Subj are not UTF-8: their
bytes 0x85 (dots) and 0x92 (an apostrophe) are those of Windows, code page 1252.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from spt_jax.data.records import Record
from spt_jax.errors import shorten


@dataclass(frozen=True)
class LabelLines:
    """How such files are read.

    Args:
        form: `label text`, with a blank between them, or `text<tab>label`.
        encoding: Of the bytes.
        files: Split -> name of its file.
        words: Label in the file -> label word.
    """

    form: Literal["label text", "text<tab>label"]
    encoding: str
    files: Mapping[str, str]
    words: Mapping[str, str]


def read_label_lines(path: Path, lines: LabelLines) -> list[Record]:
    """Records with the columns `text` (white space as single blanks) and `label` (a label word).

    Raises:
        ValueError: A line has another form, another encoding or an unknown label, or there is none.
    """
    records = []
    for number, line in enumerate(path.read_bytes().split(b"\n"), 1):
        if not line.strip():
            continue
        place = f"{path}:{number}"
        try:
            decoded = line.decode(lines.encoding)
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{place}: byte 0x{line[error.start]:02x} is not {lines.encoding}; expected the "
                "file as its authors left it"
            ) from None
        if lines.form == "label text":
            label, _, text = decoded.partition(" ")
        else:
            text, _, label = decoded.rpartition("\t")
        text, word = " ".join(text.split()), lines.words.get(label.strip())
        if not text or word is None:
            raise ValueError(
                f"{place}: {shorten(decoded)!r} has no text or no label, expected "
                f"'{lines.form}' with a label of {', '.join(lines.words)}"
            )
        records.append(Record({"text": text, "label": word}, place))
    if not records:
        raise ValueError(f"file '{path}' has no rows; expected '{lines.form}' on each line")
    return records
