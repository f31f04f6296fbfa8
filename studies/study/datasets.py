"""Convert SST-2, TREC, Subj and AG News from their original files to files that a task reads.

Every source becomes a TSV in UTF-8 with the columns `text` and `label`, where the label is the word
that the model has to write. All rows are kept in order, so the splits are those of the source. If
the source has no dev or test file, `load_task` makes the split by a hash of the text.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal, NamedTuple

from spt_jax.config.train import TaskConfig
from spt_jax.runs.log import write_atomic


class Dataset(NamedTuple):
    """The files of a dataset in the folder SPT_JAX_DATA, and their format.

    Args:
        title: Its name in the document.
        files: Its file for each split that has one.
        form: `header`: TSV with a first line `sentence<TAB>label`; `text label`: TSV without one;
            `label text`: the label, a space, the text.
        encoding: Encoding of the files.
        words: Label words by the label in the file.
    """

    title: str
    files: Mapping[str, str]
    form: Literal["header", "text label", "label text"]
    encoding: str
    words: Mapping[str, str]


DATASETS = {
    "sst2": Dataset(
        "SST-2",
        {"train": "sst2/train.tsv", "dev": "sst2/dev.tsv", "test": "sst2/test.tsv"},
        "header",
        "utf-8",
        {"0": "negative", "1": "positive"},
    ),
    "trec": Dataset(
        "TREC",
        {"train": "trec/train.txt", "test": "trec/test.txt"},
        "label text",
        "cp1252",
        {  # DESC, ENTY, ABBR, HUM, LOC, NUM
            "0": "description",
            "1": "entity",
            "2": "abbreviation",
            "3": "human",
            "4": "location",
            "5": "number",
        },
    ),
    "subj": Dataset(
        "Subj",
        {"train": "subj/all.txt"},
        "label text",
        "cp1252",  # not Latin-1, where its bytes 0x85, dots, would be line breaks
        {"0": "subjective", "1": "objective"},
    ),
    "agnews": Dataset(
        "AG News",
        {"train": "agnews/dev.tsv", "test": "agnews/test.tsv"},
        "text label",
        "utf-8",
        {"World": "world", "Sports": "sports", "Business": "business", "Sci/Tech": "technology"},
    ),
}


def task_config(name: str, folder: Path) -> TaskConfig:
    """Return the config of a converted dataset's task.

    Args:
        name: Key of `DATASETS`.
        folder: Folder that `convert` wrote to.
    """
    dataset = DATASETS[name]
    paths = {split: str(folder / name / f"{split}.tsv") for split in dataset.files}
    return TaskConfig(
        name=name,
        source=paths["train"],
        dev_source=paths.get("dev"),
        test_source=paths.get("test"),
        template="{text}",
        label="label",
        label_words=list(dataset.words.values()),
    )


def convert(name: str, data: Path, folder: Path) -> None:
    """Write `folder/<name>/<split>.tsv` from the files below `data`.

    Raises:
        FileNotFoundError: A file of the dataset is missing.
        ValueError: A line has another format, another encoding or an unknown label.
    """
    dataset = DATASETS[name]
    (folder / name).mkdir(parents=True, exist_ok=True)
    for split, file in dataset.files.items():
        if not (data / file).is_file():
            raise FileNotFoundError(
                f"{dataset.title} needs '{data / file}', which does not exist; SPT_JAX_DATA names "
                f"the folder that holds {', '.join(f'{name}/' for name in DATASETS)}"
            )
        lines = [f"{text}\t{label}\n" for text, label in read_rows(data / file, dataset)]
        write_atomic(folder / name / f"{split}.tsv", "".join(["text\tlabel\n", *lines]).encode())


def read_rows(path: Path, dataset: Dataset) -> Iterator[tuple[str, str]]:
    """Yield (text, label word) of each line. Runs of white space in a text become one space.

    Raises:
        ValueError: A line has another format, another encoding or an unknown label.
    """
    start = 1 if dataset.form == "header" else 0
    for number, line in enumerate(path.read_bytes().split(b"\n")[start:], start + 1):
        if not line.strip():
            continue
        try:
            decoded = line.decode(dataset.encoding)
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{path}:{number}: byte 0x{line[error.start]:02x} is not {dataset.encoding}; "
                f"expected {dataset.title} as its authors left it"
            ) from None
        if dataset.form == "label text":
            label, _, text = decoded.partition(" ")
        else:
            text, _, label = decoded.rpartition("\t")
        text = " ".join(text.split())
        word = dataset.words.get(label.strip())
        if not text or word is None:
            raise ValueError(
                f"{path}:{number}: {decoded[:60]!r} has no text or no label, expected "
                f"'{dataset.form}' with a label of {', '.join(dataset.words)}"
            )
        yield text, word
