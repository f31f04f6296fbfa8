"""Metrics against scikit-learn, scipy, rouge-score and the rules of SQuAD written anew.

Most inputs are awkward.
"""

import collections
import random
import warnings

import numpy as np
import pytest

from spt_jax.data.example import Example
from spt_jax.evaluation.metrics import (
    METRICS,
    SUPERGLUE,
    compute,
    invalid,
    mean_score,
    superglue_score,
)

BINARY, THREE = ("no", "yes"), ("entailment", "contradiction", "neutral")
FREE_TEXT = ("squad", "squad_by_group", "wsc", "pearson", "spearman", "rouge")
WRITTEN = ("", "Yes", "yes no", "<unk>", "not_yes")  # all of them no label word


def draw(words, seed, rows=40, valid=0.7):
    """(targets, predictions): some right, some wrong, some no label word."""
    rng = random.Random(seed)
    targets = [rng.choice(words) for _ in range(rows)]
    predictions = [rng.choice(words if rng.random() < valid else WRITTEN) for _ in targets]
    return targets, predictions


def cases(words):
    yield from (draw(words, seed) for seed in range(20))
    yield from (draw(words, seed, rows) for seed, rows in enumerate((1, 1, 1, 2, 2, 3, 3), 50))
    yield from (draw(words, seed, valid=0.0) for seed in range(80, 83))  # all invalid
    yield from (([w] * 5, [p] * 5) for w in words for p in (*words, ""))  # constant


def examples(targets):
    return [Example("", target) for target in targets]


def indices(texts, words):
    return np.array([words.index(text) if text in words else -1 for text in texts])


@pytest.fixture
def sklearn_metrics():
    sklearn = pytest.importorskip("sklearn.metrics")
    with warnings.catch_warnings():  # of scores that are undefined and called 0
        warnings.simplefilter("ignore")
        yield sklearn


def test_accuracy_and_f1_equal_scikit_learn(sklearn_metrics):
    for targets, predictions in cases(BINARY):
        truth, guess = indices(targets, BINARY), indices(predictions, BINARY)
        found = compute(("f1", "accuracy"), predictions, examples(targets), BINARY)
        assert found["accuracy"] == pytest.approx(
            100 * sklearn_metrics.accuracy_score(truth, guess)
        )
        opposite = np.where(guess == -1, 1 - truth, guess)
        assert found["f1"] == pytest.approx(100 * sklearn_metrics.f1_score(truth, opposite))


def test_macro_f1_equals_scikit_learn(sklearn_metrics):
    for targets, predictions in cases(THREE):
        truth, guess = indices(targets, THREE), indices(predictions, THREE)
        expected = sklearn_metrics.fbeta_score(
            truth, guess, beta=1, labels=range(3), average="macro"
        )
        found = compute(("macro_f1",), predictions, examples(targets), THREE)
        assert found == {"macro_f1": pytest.approx(100 * expected)}


@pytest.mark.parametrize("words", [BINARY, THREE])
def test_matthews_equals_scikit_learn(sklearn_metrics, words):
    for targets, predictions in cases(words):
        truth, guess = indices(targets, words), indices(predictions, words)
        found = compute(("matthews",), predictions, examples(targets), words)
        expected = 100 * sklearn_metrics.matthews_corrcoef(truth, guess)
        assert found["matthews"] == pytest.approx(expected, abs=1e-9)


def test_correlations_equal_scipy():
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(0)
    for round_to, rows in ((1, 40), (0, 40), (0, 5), (2, 2)):
        truth = rng.uniform(0, 5, rows).round(1)
        guess = (truth + rng.normal(size=rows)).round(round_to)  # few digits: many ties
        texts = [f"{value:.2f}" for value in guess]
        if rows > 10:
            texts[3], texts[4], texts[5] = "", "3 .4", "nan"  # count as -1
            guess[3:6] = -1
        targets = examples([f"{value:.1f}" for value in truth])
        found = compute(("pearson", "spearman"), texts, targets, None)
        assert found["pearson"] == pytest.approx(100 * stats.pearsonr(truth, guess)[0])
        assert found["spearman"] == pytest.approx(100 * stats.spearmanr(truth, guess)[0])


@pytest.mark.parametrize(
    ("texts", "truth"),
    [(["", "x", "inf"], ["1.0", "2.0", "3.0"]), (["1", "2"], ["2.0", "2.0"]), (["1"], ["1.0"])],
    ids=["all unreadable", "constant targets", "one row"],
)
def test_correlations_that_are_undefined_are_0(texts, truth):
    # scipy says nan there, by which no best step can be chosen.
    found = compute(("pearson", "spearman"), texts, examples(truth), None)
    assert found == {"pearson": 0.0, "spearman": 0.0}


def test_a_huge_prediction_does_not_overflow():
    found = compute(("pearson",), ["1e300", "-1e300"], examples(["5.0", "1.0"]), None)
    assert found["pearson"] == pytest.approx(100)


def squad_words(text):
    kept = "".join(c for c in text.lower() if c not in "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~")
    return [word for word in kept.split() if word not in ("a", "an", "the")]


def squad_by_the_rules(prediction, answers):
    """(exact match, F1) of one question, from the description of the official script."""
    best = (0.0, 0.0)
    guess = squad_words(prediction)
    for answer in map(squad_words, answers):
        left = list(answer)
        common = 0
        for word in guess:
            if word in left:
                left.remove(word)
                common += 1
        f1 = 0.0
        if common:
            precision, recall = common / len(guess), common / len(answer)
            f1 = 2 * precision * recall / (precision + recall)
        best = max(best[0], float(guess == answer)), max(best[1], f1)
    return best


PIECES = ["the", "a", "An", "cat", "Cat", "cats", "U.S.", "u s", "10%", "'", "-", "é", "", "day's"]


def test_squad_equals_the_rules():
    rng = random.Random(1)
    rows = []
    for _ in range(300):
        texts = [" ".join(rng.choices(PIECES, k=rng.randrange(5))) for _ in range(4)]
        rows.append((texts[0], tuple(texts[1 : rng.randrange(2, 5)])))
    found = compute(("squad",), [p for p, _ in rows], [Example("", a[0], a) for _, a in rows], None)
    exact, f1 = np.mean([squad_by_the_rules(*row) for row in rows], axis=0)
    assert 0.1 < exact < 0.9 and 0.1 < f1 < 0.9
    assert found == {"exact_match": pytest.approx(100 * exact), "f1": pytest.approx(100 * f1)}


@pytest.mark.parametrize(
    ("prediction", "answers", "exact", "f1"),
    [
        ("The Cat!", ("cat",), 100, 100),
        ("a theatre", ("theatre",), 100, 100),  # an article only as a word
        ("", ("the",), 100, 0),  # nothing is left of either: equal, without a common word
        ("", ("cat",), 0, 0),
        ("cat cat", ("cat", "dog dog dog"), 0, 200 / 3),
        ("dog", ("cat", "dog"), 100, 100),
    ],
)
def test_squad_by_hand(prediction, answers, exact, f1):
    found = compute(("squad",), [prediction], [Example("", answers[0], answers)], None)
    assert found == {"exact_match": exact, "f1": pytest.approx(f1)}


ROUGE = ("rouge1", "rouge2", "rougeLsum")
# Prediction, answer, and what rouge-score gives for them.
SUMMARIES = [
    ("", "", (0, 0, 0)),
    ("", "a cat", (0, 0, 0)),
    ("?!", "...", (0, 0, 0)),
    ("Cat", "cat", (100, 0, 100)),
    ("the cat sat", "The cat, sat!", (100, 100, 100)),
    ("cats sat", "cat sat", (50, 0, 50)),  # no stemmer
    ("caf\u00e9 na\u00efve", "caf na ve", (100, 100, 100)),  # a letter beyond a to z ends a word
    ("\u65e5\u672c", "\u65e5\u672c", (0, 0, 0)),
    ("a b c", "c b a", (100, 0, 200 / 6)),
    ("a b\nc d", "c d\na b", (100, 200 / 3, 100)),  # sentences in any order
    ("a b . c d", "c d a b", (100, 200 / 3, 100)),  # " . " ends a sentence, as a line break does
    ("a b. c d", "c d a b", (100, 200 / 3, 50)),  # "." alone does not
    ("a a a", "a", (50, 0, 50)),
    ("a", "a\na\na", (50, 0, 50)),  # a word that was written once counts once
    ("b a", "a b c\nb a", (400 / 7, 40, 400 / 7)),
]


def make_summaries():
    """Texts that rouge-score may be asked about, with one or two answers each."""
    rng = random.Random(2)
    pieces = [*PIECES, "\n", " . ", ".", "\r\n", "\x0b", "\u2028", "\u0130", "\u212a", "\uff11"]
    rows = []
    for number in range(400):
        vocabulary = pieces if number % 2 else ["a", "b", "c", "\n"]
        texts = [" ".join(rng.choices(vocabulary, k=rng.randrange(30))) for _ in range(3)]
        rows.append((texts[0], tuple(texts[1 : rng.randrange(2, 4)])))
    long = [" ".join(rng.choices("abcdefgh", k=600)) for _ in range(2)]
    return [*rows, (long[0], (long[1],)), ("x" * 10_000, ("x" * 10_000 + " y",))]


def rouge(prediction, answers):
    found = compute(("rouge",), [prediction], [Example("", answers[0], answers)], None)
    assert tuple(found) == ROUGE
    return tuple(found.values())


@pytest.mark.parametrize(("prediction", "answer", "expected"), SUMMARIES)
def test_rouge_by_hand(prediction, answer, expected):
    assert rouge(prediction, (answer,)) == pytest.approx(expected)


def test_rouge_equals_rouge_score():
    scorer = pytest.importorskip("rouge_score.rouge_scorer").RougeScorer(ROUGE)

    def theirs(prediction, answers):  # with the line breaks that T5's evaluation puts in
        texts = [text.replace(" . ", " .\n") for text in (prediction, *answers)]
        found = scorer.score_multi(texts[1:], texts[0])
        return tuple(100 * found[name].fmeasure for name in ROUGE)

    rows = make_summaries() + [(prediction, (answer,)) for prediction, answer, _ in SUMMARIES]
    for prediction, answers in rows:
        assert rouge(prediction, answers) == pytest.approx(theirs(prediction, answers))
    found = compute(("rouge",), [p for p, _ in rows], [Example("", a[0], a) for _, a in rows], None)
    mean = np.mean([theirs(*row) for row in rows], axis=0)
    assert tuple(found.values()) == pytest.approx(tuple(mean)) and 5 < min(mean) < max(mean) < 95


def test_record_counts_a_query_once_by_its_first_copy():
    rows = [Example("", a, ("x", "y"), group="0/0") for a in "xy"] + [
        Example("", "z", ("z",), group="0/1")
    ]
    assert compute(("squad_by_group",), ["y", "bad", "no"], rows, None)["exact_match"] == 50
    assert compute(("squad_by_group",), ["no", "y", "z"], rows, None)["exact_match"] == 50


def test_multirc_f1_over_answers_and_exact_match_over_questions():
    words = ("False", "True")
    rows = [
        Example("", words[label], group=group)
        for group, label in (("0/0", 1), ("0/0", 0), ("0/1", 1), ("1/0", 1), ("1/0", 1))
    ]
    predictions = ["True", "False", "true", "False", "True"]  # one is invalid
    found = compute(("f1", "group_exact_match"), predictions, rows, words)
    groups = collections.defaultdict(list)
    for row, prediction in zip(rows, predictions, strict=True):
        groups[row.group].append(row.targets == prediction)
    assert found["group_exact_match"] == pytest.approx(100 * np.mean([*map(all, groups.values())]))
    assert found["group_exact_match"] == pytest.approx(100 / 3)
    assert found["f1"] == pytest.approx(100 * 2 * 2 / (2 + 4))  # precision 1, recall 2 of 4


@pytest.mark.parametrize(
    ("prediction", "candidate", "named"),
    [
        ("the fuzzy bunny", "bunny", True),
        ("Bunny", "His fuzzy bunny", True),
        ("the dog", "the bunny", False),
        ("Bob", "Bob's hat", False),  # an apostrophe on one side
        ("bob's", "Bob's hat", True),
        ("bunny fuzzy", "fuzzy bunny", True),
    ],
)
def test_wsc_compares_with_the_candidate_and_then_with_the_label(prediction, candidate, named):
    for label in (0, 1):
        row = Example("", candidate, label=label)
        assert compute(("wsc",), [prediction], [row], None)["accuracy"] == 100 * (named == label)


@pytest.mark.parametrize("prediction", ["", "  ", "the", "their"])
def test_wsc_naming_nothing_is_wrong_for_either_label(prediction):
    rows = [Example("", "bunny", label=label) for label in (0, 1)]
    assert compute(("wsc",), [prediction] * 2, rows, None)["accuracy"] == 0


@pytest.mark.parametrize("name", METRICS)
def test_all_empty_predictions_score_finitely(name):
    words = None if name in FREE_TEXT else BINARY
    targets = ["1.0", "2.0"] if words is None else BINARY
    rows = [Example("", target, label=1) for target in targets]
    assert set(compute((name,), ["", ""], rows, words).values()) == {0.0}


def test_invalid_predictions_are_counted():
    assert invalid(("f1", "accuracy"), ["yes", "", "Yes", "no"], BINARY) == 50
    assert invalid(("pearson", "spearman"), ["3.4", "", "nan", "1e400", "x"], None) == 80
    assert invalid(("squad",), [""], None) is None


def test_what_cannot_be_scored_is_refused():
    rows = examples(["yes"])
    with pytest.raises(ValueError, match="unknown metric 'acuracy'.*did you mean 'accuracy'"):
        compute(("acuracy",), ["yes"], rows, BINARY)
    with pytest.raises(ValueError, match="0 predictions are given for 0 examples; expected"):
        compute(("accuracy",), [], [], BINARY)
    with pytest.raises(ValueError, match="1 predictions are given for 2 examples"):
        compute(("accuracy",), ["yes"], rows * 2, BINARY)
    with pytest.raises(ValueError, match="f1 is of two label words, given .*; use macro_f1"):
        compute(("f1",), ["yes"], rows, THREE)
    with pytest.raises(ValueError, match="target 'yes' is no label word, expected entailment"):
        compute(("macro_f1",), ["yes"], rows, THREE)


# Table 3 of Lester et al. 2021: a column for the mean of five prompts, the best and their vote.
TABLE_3 = {
    "boolq": ([91.1], [91.3], [91.7]),
    "cb": ([99.3, 99.0], [100.0, 100.0], [100.0, 100.0]),
    "copa": ([98.8], [100.0], [100.0]),
    "multirc": ([65.7, 88.7], [66.3, 89.0], [67.1, 89.4]),
    "record": ([92.7, 93.4], [92.9, 93.5], [93.2, 93.9]),
    "rte": ([92.6], [93.5], [93.5]),
    "wic": ([76.2], [76.6], [77.4]),
    "wsc": ([95.8], [96.2], [96.2]),
}


def test_superglue_score_of_the_papers_table():
    for column, printed in enumerate((90.5, 91.0, 91.3)):
        scores = {
            f"super_glue/{task}": dict(enumerate(columns[column]))
            for task, columns in TABLE_3.items()
        }
        # 91.06 is printed as 91.0 there.
        assert superglue_score(scores) == pytest.approx(printed, abs=0.07)
    assert mean_score({"f1": 99.0, "accuracy": 99.3}) == pytest.approx(99.15)


def test_superglue_score_wants_its_eight_tasks():
    scores = {task: {"accuracy": 1.0} for task in SUPERGLUE}
    assert superglue_score(scores) == 1
    scores["glue/rte"] = scores.pop("super_glue/rte")
    with pytest.raises(ValueError, match="missing: super_glue/rte; too many: glue/rte"):
        superglue_score(scores)
