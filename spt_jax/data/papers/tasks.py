"""The tasks of the papers, as a table: input text, label words, metrics, splits and sources.

Lester et al. 2021 train on SuperGLUE, SQuAD, MRPC and QQP and evaluate SQuAD prompts on six MRQA
datasets that they have not seen; Khashabi et al. 2022 train on SST-2, SST-5, TREC, AG News and
Subj. XSum and CNN/DailyMail are in Google's code and in neither paper. The texts are those of
Google's code. Where the labels of a test set are hidden, "test" is the validation set, as in the
paper, which chooses the best step on it as well.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from spt_jax.data.papers import formats, releases
from spt_jax.data.papers.formats import Format
from spt_jax.data.papers.label_lines import LabelLines
from spt_jax.data.papers.origins import Hub, Source
from spt_jax.data.papers.releases import Release, renamed

_ON_VALIDATION = {"train": "train", "dev": "validation", "test": "validation"}
_ON_TEST_ONLY = {"test": "test"}


@dataclass(frozen=True)
class PaperTask:
    """A task of a paper.

    Args:
        source: Where its rows are.
        format: Makes examples of a row.
        words: Its label words in the order of the labels; None where targets are free text.
        metrics: Its scores.
        splits: train, dev or test -> split of the dataset. One that is missing beside train is
            taken from train by a hash of the input.
        prefixed: The input text begins with the task's name, unless that is removed.
        prompt_words: What `prompt.init: class_labels` starts from where there are no label words.
        train_label: Train on rows with this label alone.
    """

    source: Source
    format: Format
    words: tuple[str, ...] | None
    metrics: tuple[str, ...]
    splits: Mapping[str, str] = field(default_factory=lambda: _ON_VALIDATION)
    prefixed: bool = True
    prompt_words: tuple[str, ...] = ()
    train_label: int | None = None


class Transfer(NamedTuple):
    """Trained on one task, tested on another without any more training.

    Args:
        source: Task of train and dev.
        target: Task of test.
        words: Label word of the target -> that of the source which means the same.
    """

    source: str
    target: str
    words: Mapping[str, str] = {}


class _Keys(NamedTuple):
    """A task whose input text is `name key: ... key: ...`.

    Args:
        keys: The keys in order, each the column of its value unless written `key=column`.
        words: Label words in the order of the labels.
        metrics: Scores.
        name: What the text begins with, where that is not the name of the dataset.
        splits: Ours -> the dataset's.
        config: Of the dataset, where that is not its name.
    """

    keys: str
    words: tuple[str, ...]
    metrics: tuple[str, ...] = ("accuracy",)
    name: str | None = None
    splits: Mapping[str, str] = _ON_VALIDATION
    config: str | None = None


_BOOLEAN = ("False", "True")
_ENTAILMENT = ("entailment", "not_entailment")
_CB = ("entailment", "contradiction", "neutral")
_MNLI = ("entailment", "neutral", "contradiction")
_EQUIVALENT, _DUPLICATE = ("not_equivalent", "equivalent"), ("not_duplicate", "duplicate")
_MATCHED = {"train": "train", "dev": "validation_matched", "test": "validation_matched"}
_MISMATCHED = {"train": "train", "dev": "validation_mismatched", "test": "validation_mismatched"}

_SUPER_GLUE = {
    "boolq": _Keys("passage question", _BOOLEAN),
    "cb": _Keys("hypothesis premise", _CB, ("macro_f1", "accuracy")),
    "copa": _Keys("choice1 choice2 premise question", ("choice1", "choice2")),
    "multirc": _Keys("question answer paragraph", _BOOLEAN, ("f1", "group_exact_match")),
    "rte": _Keys("hypothesis premise", _ENTAILMENT),
    "wic": _Keys("sentence1 sentence2 word", _BOOLEAN),
    "axb": _Keys(
        "hypothesis=sentence2 premise=sentence1", _ENTAILMENT, name="rte", splits=_ON_TEST_ONLY
    ),
    "axg": _Keys("hypothesis premise", _ENTAILMENT, name="rte", splits=_ON_TEST_ONLY),
}

_GLUE = {
    "cola": _Keys("sentence", ("unacceptable", "acceptable"), ("matthews",)),
    "sst2": _Keys("sentence", ("negative", "positive")),
    "mrpc": _Keys("sentence1 sentence2", _EQUIVALENT, ("f1", "accuracy")),
    "qqp": _Keys("question1 question2", _DUPLICATE, ("f1", "accuracy")),
    "mnli": _Keys("hypothesis premise", _MNLI, splits=_MATCHED),
    "mnli_mismatched": _Keys(
        "hypothesis premise", _MNLI, name="mnli", splits=_MISMATCHED, config="mnli"
    ),
    "qnli": _Keys("question sentence", _ENTAILMENT),
    "rte": _Keys("sentence1 sentence2", _ENTAILMENT),
    "wnli": _Keys("sentence1 sentence2", ("not_entailment", "entailment")),
    "ax": _Keys("hypothesis premise", _MNLI, name="mnli", splits=_ON_TEST_ONLY),
}

# How the archives of the benchmarks differ from TFDS; what is not here is a table as it is.
_RELEASES = {
    "super_glue/multirc": Release(unfold=releases.multirc),
    "super_glue/record": Release(unfold=releases.record),
    "super_glue/wsc.fixed": Release(unfold=releases.wsc),
    "super_glue/axb": Release({"test": ("AX-b.jsonl",)}),
    "super_glue/axg": Release({"test": ("AX-g.jsonl",)}),
    "glue/cola": Release(columns=("source", "label", "mark", "sentence"), ragged=True),
    "glue/mrpc": Release(
        {"train": ("msr_paraphrase_train.txt",), "validation": ("msr_paraphrase_test.txt",)},
        renamed(label="Quality", sentence1="#1 String", sentence2="#2 String"),
        ragged=True,
        dev_ids=("dev_ids.tsv", "mrpc_dev_ids.tsv"),
    ),
    "glue/qqp": Release(unfold=renamed(label="is_duplicate"), ragged=True),
    "glue/mnli": Release(
        unfold=renamed(premise="sentence1", hypothesis="sentence2", label="gold_label"), ragged=True
    ),
    "glue/stsb": Release(unfold=renamed(label="score"), ragged=True),
    "glue/ax": Release(
        {"test": ("diagnostic.tsv",)}, renamed(premise="sentence1", hypothesis="sentence2")
    ),
    **{f"glue/{name}": Release(ragged=True) for name in ("sst2", "qnli", "rte", "wnli")},
}
_FOLDERS = {"glue/mnli_mismatched": "MNLI", "glue/ax": "diagnostic"}  # of other names than tasks'

_MRQA = {  # name in TFDS -> value of the column `subset` on the Hub
    "bio_asq": "BioASQ",
    "drop": "DROP",
    "duo_rc": "DuoRC.ParaphraseRC",
    "race": "RACE",
    "relation_extraction": "RelationExtraction",
    "textbook_qa": "TextbookQA",
}


def _benchmark(benchmark: str, config: str, task: str | None = None) -> Source:
    path = {"glue": "nyu-mll/glue", "super_glue": "aps/super_glue"}[benchmark]
    tfds = f"{benchmark}/{config}"
    release, folder = _RELEASES.get(tfds, Release()), _FOLDERS.get(f"{benchmark}/{task}")
    return Source(tfds=tfds, hub=Hub(path, config), release=release, folder=folder)


def _keyed(benchmark: str, name: str, row: _Keys) -> PaperTask:
    make = formats.multirc if name == "multirc" else formats.classes
    text = make(row.name or name, row.keys, row.words)
    source = _benchmark(benchmark, row.config or name, name)
    return PaperTask(source, text, row.words, row.metrics, row.splits)


def _mrqa(name: str, subset: str) -> PaperTask:
    hub = Hub("mrqa-workshop/mrqa", where={"subset": subset})
    files = (f"{subset}.jsonl.gz", f"{subset}.jsonl")
    release = Release({"test": files}, releases.mrqa)
    source = Source(tfds=f"mrqa/{name}", hub=hub, release=release)
    return PaperTask(source, formats.mrqa, None, ("squad",), _ON_TEST_ONLY, prefixed=False)


def _summaries(name: str, hub: Hub, article: str, target: str) -> PaperTask:
    """Return a summarization task. Its inputs begin with `summarize:`, also without a prefix."""
    text = formats.summary(article, target)
    splits = {"train": "train", "dev": "validation", "test": "test"}
    return PaperTask(Source(tfds=name, hub=hub), text, None, ("rouge",), splits, prefixed=False)


PAPER_TASKS: dict[str, PaperTask] = {
    **{f"super_glue/{name}": _keyed("super_glue", name, row) for name, row in _SUPER_GLUE.items()},
    "super_glue/record": PaperTask(
        _benchmark("super_glue", "record"),
        formats.record,
        None,
        ("squad_by_group",),
        prompt_words=("commonsense", "reasoning", "reading", "comprehension"),
    ),
    "super_glue/wsc": PaperTask(
        _benchmark("super_glue", "wsc.fixed"),
        formats.wsc,
        None,
        ("wsc",),
        prompt_words=("commonsense", "pronoun", "resolution"),
        train_label=1,
    ),
    **{f"glue/{name}": _keyed("glue", name, row) for name, row in _GLUE.items()},
    "glue/stsb": PaperTask(_benchmark("glue", "stsb"), formats.stsb, None, ("pearson", "spearman")),
    "squad": PaperTask(
        Source(
            tfds="squad/v1.1",
            hub=Hub("rajpurkar/squad"),
            release=Release(
                {"train": ("train-v1.1.json",), "validation": ("dev-v1.1.json",)}, releases.squad
            ),
        ),
        formats.squad,
        None,
        ("squad",),
        prefixed=False,
    ),
    **{f"mrqa/{name}": _mrqa(name, subset) for name, subset in _MRQA.items()},
    "xsum": _summaries("xsum", Hub("EdinburghNLP/xsum"), "document", "summary"),
    "cnn_dailymail": _summaries(
        "cnn_dailymail", Hub("abisee/cnn_dailymail", "3.0.0"), "article", "highlights"
    ),
}


def _text_task(name: str, source: Source, words: tuple[str, ...], **splits: str) -> PaperTask:
    """A dataset of texts and labels, which Google's code does not have: its text as SST-2's."""
    text = formats.classes(name, "sentence=text", words)
    return PaperTask(source, text, words, ("accuracy",), splits)


# The label words of Khashabi et al. 2022, in the order of the labels on the Hub.
_SST5 = ("terrible", "bad", "okay", "good", "great")
_TREC = ("Expression", "Entity", "Description", "Human", "Location", "Number")
_TREC_NAMES = ("ABBR", "ENTY", "DESC", "HUM", "LOC", "NUM")
_TREC_ORDER = ("Description", "Entity", "Expression", "Human", "Location", "Number")
_AG_NEWS = ("World", "Sports", "Business", "Technology")
_SUBJ = ("objective", "subjective")

PAPER_TASKS |= {
    "sst5": _text_task(
        "sst5",
        Source(hub=Hub("SetFit/sst5")),
        _SST5,
        train="train",
        dev="validation",
        test="test",
    ),
    "trec": _text_task(
        "trec",
        Source(
            "trec",
            Hub("CogComp/trec"),
            (
                LabelLines(
                    "label text",
                    "cp1252",
                    {"train": ("train.txt",), "test": ("test.txt",)},
                    dict(zip("012345", _TREC_ORDER, strict=True)),
                ),
                LabelLines(
                    "label text",
                    "cp1252",
                    {"train": ("train_5500.label",), "test": ("TREC_10.label",)},
                    dict(zip(_TREC_NAMES, _TREC, strict=True)),
                    blank=b"\xf0",  # the one byte that is no letter, as TFDS reads it
                ),
            ),
            columns={"tfds": {"label-coarse": "label"}, "hub": {"coarse_label": "label"}},
            labels={"tfds": ("Description", "Entity", "Expression", "Human", "Number", "Location")},
        ),
        _TREC,
        train="train",
        test="test",
    ),
    "ag_news": _text_task(
        "ag_news",
        Source(
            hub=Hub("fancyzhx/ag_news"),
            lines=(
                LabelLines(
                    "text<tab>label",
                    "utf-8",
                    {"train": ("dev.tsv",), "test": ("test.tsv",)},
                    dict(zip(("World", "Sports", "Business", "Sci/Tech"), _AG_NEWS, strict=True)),
                ),
            ),
            release=Release(unfold=releases.ag_news, columns=("class", "title", "description")),
        ),
        _AG_NEWS,
        train="train",
        test="test",
    ),
    "subj": _text_task(
        "subj",
        Source(
            hub=Hub("SetFit/subj"),
            lines=(
                LabelLines(
                    "label text",
                    "cp1252",
                    {"train": ("all.txt",)},
                    {"0": "subjective", "1": "objective"},
                ),
                LabelLines(
                    "text",
                    "cp1252",
                    {"train": ("quote.tok.gt9.5000", "plot.tok.gt9.5000")},
                    {"quote.tok.gt9.5000": "subjective", "plot.tok.gt9.5000": "objective"},
                ),
            ),
            columns={"hub": {"label": "number", "label_text": "label"}},
        ),
        _SUBJ,
        train="train",
    ),
}

TRANSFERS: dict[str, Transfer] = {
    "mrpc_to_qqp": Transfer(
        "glue/mrpc",
        "glue/qqp",
        {"not_duplicate": "not_equivalent", "duplicate": "equivalent"},
    ),
    "qqp_to_mrpc": Transfer(
        "glue/qqp",
        "glue/mrpc",
        {"not_equivalent": "not_duplicate", "equivalent": "duplicate"},
    ),
    **{
        f"squad_to_{name.removeprefix('mrqa/')}": Transfer("squad", name)
        for name in PAPER_TASKS
        if name.startswith("mrqa/")
    },
}
