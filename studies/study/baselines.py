# scikit-learn is an extra, so that types are checked without it too.
# pyright: reportMissingImports=false
"""Baselines that a prompt has to beat, and facts of a task for the table of tasks.

The majority class needs no training. A logistic regression over counts of words trains in seconds,
but ignores their order. Both see the same rows as the model, not truncated. The strength of the
regression is chosen on dev, as the model's step is. Nothing is random.
"""

import hashlib
import json
import warnings
from pathlib import Path

from spt_jax.data.tasks import SPLITS, Task
from spt_jax.evaluation.scores import majority_score
from spt_jax.runs.log import write_json_atomic

STRENGTHS = (0.1, 1.0, 10.0)  # inverse regularisation, of which dev chooses


def score_baselines(task: Task, folder: Path) -> dict:
    """Return the baselines and facts of a task, from `folder` if the rows are the same.

    Returns:
        `rows` per split; `label_words`, None for free text; `majority_score`; `seen_in_train`: test
        rows whose input is one of train's; `bag_of_words`, None for free text.
    """
    file, digest = folder / "result.json", _digest(task)
    if file.is_file() and (stored := json.loads(file.read_text()))["data_digest"] == digest:
        return stored
    seen = {example.inputs for example in task.splits["train"]}
    result = {
        "task": task.name,
        "data_digest": digest,
        "rows": {name: len(task.splits[name]) for name in SPLITS},
        "label_words": task.label_words,
        "majority_score": majority_score(task),
        "seen_in_train": sum(example.inputs in seen for example in task.splits["test"]),
        "bag_of_words": None if task.label_words is None else bag_of_words(task),
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_json_atomic(file, result)
    return result


def bag_of_words(task: Task) -> dict:
    """Compute the test accuracy, 0 to 100, of a logistic regression over counts of words.

    Returns:
        `score`, its `strength` (C of scikit-learn, the first that is best on dev), `dev_score`, and
        how many `words` it counts.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import LogisticRegression

    vectorizer = CountVectorizer(token_pattern=r"\w+")
    inputs = {name: [e.inputs for e in task.splits[name]] for name in SPLITS}
    targets = {name: [e.targets for e in task.splits[name]] for name in SPLITS}
    counts = {"train": vectorizer.fit_transform(inputs["train"])}
    counts |= {name: vectorizer.transform(inputs[name]) for name in ("dev", "test")}
    best: dict = {"dev_score": -1.0}
    for strength in STRENGTHS:
        model = LogisticRegression(C=strength, max_iter=1000)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # dev judges what it reached
            model.fit(counts["train"], targets["train"])
        dev = 100 * float(model.score(counts["dev"], targets["dev"]))
        if dev > best["dev_score"]:
            test = 100 * float(model.score(counts["test"], targets["test"]))
            best = {"score": test, "dev_score": dev, "strength": strength}
    return {**best, "words": len(vectorizer.vocabulary_)}


def _digest(task: Task) -> str:
    digest = hashlib.sha256()
    for name in SPLITS:
        for example in task.splits[name]:
            digest.update(f"{name} {example.inputs!r} {example.targets!r}\n".encode())
    return digest.hexdigest()
