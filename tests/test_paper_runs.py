"""Runs on tasks of the papers: their metrics, their prompt's words, and tests on other tasks."""

import json

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from safetensors.numpy import load_file
from support import tiny

from spt_jax.config.train import DataConfig, OptimizerConfig, PromptConfig, TaskConfig
from spt_jax.evaluation.evaluate import evaluate_run
from spt_jax.evaluation.metrics import mean_score
from spt_jax.models.backbone import load_backbone, save_backbone
from spt_jax.prompts.convert import export_prompt
from spt_jax.prompts.file import save_prompt
from spt_jax.tokenizers.bpe import train_tokenizer
from spt_jax.train import fit
from spt_jax.train_state import init_state, keep_best

TEXTS = ("the oak", "the cat", "the dog", "the fern", "the elm", "the owl")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Folders of MRPC, QQP and WSC, and a backbone that knows their words."""
    folder = tmp_path_factory.mktemp("papers")
    rows = {
        "mrpc": [
            {"sentence1": t, "sentence2": u, "label": int(t < u)} for t in TEXTS for u in TEXTS
        ],
        "qqp": [{"question1": t, "question2": t, "label": n % 2} for n, t in enumerate(TEXTS)],
        "wsc": [
            {
                "text": f"{t} saw it",
                "span1_text": t,
                "span2_text": "it",
                "span2_index": 3,
                "label": n % 2,
            }
            for n, t in enumerate(TEXTS)
        ],
    }
    for name, of_task in rows.items():
        (folder / name).mkdir()
        text = "".join(json.dumps(row) + "\n" for row in of_task)
        for split in ("train", "validation"):
            (folder / name / f"{split}.jsonl").write_text(text)
    words = ["not_equivalent", "duplicate", "commonsense", "pronoun", "resolution", "*it*"]
    words += ["sentence1:", "sentence2:", "question1:", "question2:", "saw"]
    tokenizer = train_tokenizer([*words, *TEXTS] * 2, 320)
    save_backbone(folder / "t5", "t5", tiny.SHAPE, tiny.random_params(tiny.SHAPE), tokenizer)
    return folder


def config(folder, task, **changes):
    settings = {
        "model": str(folder / "t5"),
        "task": TaskConfig(name=task, origin=str(folder / task.rpartition("/")[2])),
        "data": DataConfig(inputs_length=48, targets_length=16, batch_size=4, buckets=()),
        "steps": 1,
        "dropout_rate": 0.0,
    }
    return tiny.train_config(folder / "unused", **(settings | changes))


@pytest.fixture(scope="module")
def run(folder):
    fit(config(folder, "glue/mrpc"), folder / "run")
    return folder / "run"


def test_the_score_is_the_mean_of_the_metrics(run):
    result = json.loads((run / "result.json").read_text())
    assert set(result["metrics"]) == {"f1", "accuracy"}
    assert result["cut_inputs"] == {"train": 0, "dev": 0, "test": 0}
    assert result["score"] == mean_score(result["metrics"])
    # MRPC here has 15 of 36 rows with the label 1; always answering 0 gives accuracy alone.
    assert result["majority_score"] == pytest.approx((100 * 21 / 36 + 0) / 2)
    found = evaluate_run(run)
    assert (found["metrics"], found["invalid"]) == (result["metrics"], result["invalid"])


def test_a_run_is_tested_on_another_task_in_its_own_words(run, folder, monkeypatch):
    seen = {}

    def answer_tasks(backbone, params, bank, tasks, data, batch_size):
        seen["words"], seen["rows"] = tasks[0].label_words, tasks[0].split.examples
        log_probs = np.array([[-2.0, -1.0]] * 5 + [[-1.0, -2.0]])  # not_equivalent in the last row
        return [Outputs(tuple(["equivalent"] * len(seen["rows"])), log_probs)]

    from spt_jax.evaluation import evaluate as module
    from spt_jax.evaluation.scores import Outputs

    monkeypatch.setattr(module, "answer_tasks", answer_tasks)
    found = evaluate_run(run, task="mrpc_to_qqp", origin=str(folder))
    assert found["task"] == "mrpc_to_qqp" and found["split"] == "test" and found["rows"] == 6
    assert seen["words"] == ("not_equivalent", "equivalent")
    assert seen["rows"][0].inputs == "question1: the oak question2: the oak"
    assert found["metrics"] == {"f1": pytest.approx(200 / 3), "accuracy": 50}
    assert found["score"] == pytest.approx((200 / 3 + 50) / 2) and found["invalid"] == 0
    # The last row has label 1: two hits, three false alarms, one miss.
    assert found["rank_score"] == pytest.approx((100 * 2 * 2 / (4 + 3 + 1) + 100 * 2 / 6) / 2)


@pytest.mark.parametrize("format", ["npy", "peft"])
def test_a_prompt_without_a_run_scores_as_its_run(run, folder, tmp_path, format):
    export_prompt(run, tmp_path / "prompt", format=format)
    place, origin = tmp_path / "prompt", str(folder / "mrpc")
    found = evaluate_run(place, task="glue/mrpc", origin=origin, model=str(folder / "t5"))
    expected = evaluate_run(run, task="glue/mrpc", origin=origin)
    assert found == expected | {"rank_score": pytest.approx(expected["rank_score"])}
    if format == "peft":
        other = str(tiny.write_backbone(tmp_path / "other", seed=1))
        with pytest.raises(ValueError, match="prompt was trained on model 't5' with fingerprint"):
            evaluate_run(place, task="glue/mrpc", origin=origin, model=other)
    else:
        place = tmp_path / "prompt.npy"
        np.save(place, np.ones((4, 24), np.float32))
        with pytest.raises(
            ValueError, match="prompt.npy has d_model 24 but 't5' has 16; give the mo"
        ):
            evaluate_run(place, task="glue/mrpc", origin=origin, model=str(folder / "t5"))


def test_a_prompt_without_a_run_keeps_how_its_targets_begin(folder, tmp_path, monkeypatch):
    seen = []

    def answer_tasks(backbone, params, bank, tasks, data, batch_size):
        seen.append((tasks[0].data.sentinel_targets, int(tasks[0].split.targets[0][0])))
        rows = len(tasks[0].split.examples)
        return [Outputs(("equivalent",) * rows, np.zeros((rows, 2), np.float32))]

    from spt_jax.evaluation import evaluate as module
    from spt_jax.evaluation.scores import Outputs

    monkeypatch.setattr(module, "answer_tasks", answer_tasks)
    model, place = str(folder / "t5"), tmp_path / "prompt.safetensors"
    for metadata in ({"sentinel_targets": "true"}, {}):
        save_prompt(place, np.ones((4, 16), np.float32), metadata)
        evaluate_run(place, task="glue/mrpc", origin=str(folder / "mrpc"), model=model)
    sentinel = load_backbone(model).tokenizer.sentinel(0)
    assert seen[0] == (True, sentinel)
    assert seen[1][0] is False and seen[1][1] != sentinel


def test_a_test_on_another_task_that_is_refused(run):
    with pytest.raises(
        ValueError, match="'mrqa/dorp' is given; expected .*did you mean 'mrqa/drop"
    ):
        evaluate_run(run, task="mrqa/dorp")
    with pytest.raises(
        ValueError, match="split 'dev' of task 'mrqa/drop' is given; expected the t"
    ):
        evaluate_run(run, "dev", task="mrqa/drop")
    with pytest.raises(ValueError, match="task 'subj' has no test set of its own"):
        evaluate_run(run, task="subj", origin="hub")


def test_free_text_starts_from_the_words_of_the_paper(folder):
    still = OptimizerConfig(learning_rate=1e-9, weight_decay=0.0)
    prompt = PromptConfig(length=5)
    result = fit(
        config(folder, "super_glue/wsc", prompt=prompt, optimizer=still), folder / "wsc_run"
    )
    assert result["rank_score"] is None and set(result["metrics"]) == {"accuracy"}
    backbone = load_backbone(str(folder / "t5"))
    table = np.asarray(backbone.params["token_embedder"]["embedding"])
    rows = load_file(folder / "wsc_run" / "prompt.safetensors")["prompt"]
    for number, word in enumerate(("commonsense", "pronoun", "resolution")):
        expected = table[backbone.tokenizer.encode(word)].mean(axis=0)
        np.testing.assert_allclose(rows[number], expected, atol=1e-5)


def test_the_worst_correlation_is_still_better_than_no_evaluation():
    trained = {"prompt": jnp.zeros((2, 3))}
    state = init_state(trained, optax.sgd(1.0), patience=None, keep_best=True)
    assert float(keep_best(state, -100.0, None, None).best.score) == -100
