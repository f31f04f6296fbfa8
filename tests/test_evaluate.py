import dataclasses
import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import tiny
from support.fakes import FakeTokenizer
from support.runs import random_prompt, write_run

from spt_jax.cli import main as cli
from spt_jax.config.train import DataConfig
from spt_jax.data.example import sample_rows
from spt_jax.data.pipeline import tokenize_split
from spt_jax.data.tasks import Example
from spt_jax.evaluation.evaluate import evaluate, evaluate_run, sample_split
from spt_jax.evaluation.metrics import exact_match, invalid_share
from spt_jax.evaluation.scores import encode_answers
from spt_jax.models.backbone import load_backbone
from spt_jax.prediction.predictor import Predictor
from spt_jax.prediction.run import answer_run, predict_run
from spt_jax.prompts.bank import PromptBank
from spt_jax.prompts.convert import import_prompt
from spt_jax.prompts.load import load_run
from spt_jax.prompts.words import nearest, nearest_words
from spt_jax.train import fit

DATA = DataConfig(inputs_length=16, targets_length=6, buckets=(12,))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    fit(tiny.train_config(folder, steps=4), folder / "run")
    return folder / "run"


def test_metrics():
    assert exact_match(["a", " b  c", "A"], ["a", "b c", "a"]) == pytest.approx(200 / 3)
    assert invalid_share(["a", "x", ""], ["a", "b"]) == pytest.approx(200 / 3)


def test_scores_do_not_depend_on_batches(run):
    config, backbone, params, _ = load_run(run)
    examples = [Example(text, label) for text, label in tiny.sentences()[:11]]
    rows = tokenize_split(examples, backbone.tokenizer, DATA)

    def scores(batch_size):
        return evaluate(
            backbone, params, rows, DATA,
            label_words=("animal", "plant"), batch_size=batch_size,
        )  # fmt: skip

    assert scores(4) == scores(11) == scores(16)
    assert scores(4).rows == 11 and len(scores(4).predictions) == 11


@pytest.mark.parametrize("sentinel", [False, True])
def test_a_model_that_writes_the_label_scores_100(run, sentinel):
    # A head that always writes 'plant' and ends: right for its rows, valid but wrong for others.
    backbone = load_run(run).backbone
    tokenizer = backbone.tokenizer
    data = dataclasses.replace(DATA, sentinel_targets=sentinel)
    answer = [*tokenizer.encode("plant"), tokenizer.eos_id]
    answer = [tokenizer.sentinel(0), *answer] if sentinel else answer
    t5 = jax.tree.map(jnp.copy, backbone.params)
    # Decoder states that are the embedding of the token read, and a head from it to the next one.
    table = jnp.eye(320, 16) * 0 + jax.random.normal(jax.random.key(0), (320, 16))
    t5["token_embedder"]["embedding"] = table
    for layer in ("self_attention", "encoder_decoder_attention"):
        t5["decoder"]["layers"][layer]["out"]["kernel"] *= 0
    t5["decoder"]["layers"]["mlp"]["wo"]["kernel"] *= 0
    head = jnp.zeros((16, 320))
    for read, write in zip([0, *answer[:-1]], answer, strict=True):
        head = head.at[:, write].add(10 * table[read] / jnp.linalg.norm(table[read]))
    t5["decoder"]["logits_dense"]["kernel"] = head
    examples = [Example("the oak", "plant"), Example("the cat", "animal"), Example("elm", "plant")]
    rows = tokenize_split(examples, tokenizer, data)
    scores = evaluate(
        backbone, {"t5": t5}, rows, data,
        label_words=("animal", "plant"), batch_size=2,
    )  # fmt: skip
    assert scores.predictions == ("plant",) * 3
    assert scores.score == scores.rank_score == pytest.approx(200 / 3) and scores.invalid == 0
    # It is sure of exactly these tokens.
    assert scores.log_probs is not None and (scores.log_probs[:, 1] > -0.5).all()
    predictor = Predictor(
        dataclasses.replace(backbone, params=t5), PromptBank.empty(0, 0, 16),
        inputs_length=16, targets_length=6, batch_size=2,
    )  # fmt: skip
    answers = predictor.predict([(None, example.inputs) for example in examples])
    assert [found.texts for found in answers] == [("plant",)] * 3


def test_max_rows_takes_a_fixed_sample(run):
    _, backbone, params, _ = load_run(run)
    examples = [Example(text, label) for text, label in tiny.sentences()[:6]]
    rows = tokenize_split(examples, backbone.tokenizer, DATA)
    kept = [examples[i] for i in sample_rows(examples, 3)]
    assert kept != examples[:3]

    def scores(rows):
        return evaluate(backbone, params, rows, DATA, label_words=None, batch_size=4)

    found = scores(sample_split(rows, 3))
    assert found.rows == 3 and found.rank_score is None and found.invalid is None
    alone = scores(tokenize_split(kept, backbone.tokenizer, DATA))
    assert found.predictions == alone.predictions


def test_evaluate_run_repeats_the_result(run):
    result = json.loads((run / "result.json").read_text())
    found = evaluate_run(run, "test")
    assert (found["score"], found["rank_score"]) == (result["score"], result["rank_score"])
    assert found["cut_inputs"] == result["cut_inputs"]["test"] == 0
    with pytest.raises(ValueError, match="unknown split 'tests'; expected one of train, dev, test"):
        evaluate_run(run, "tests")


def test_evaluate_writes_what_it_made_of_each_row(run, tmp_path):
    result = evaluate_run(run, "test", output=tmp_path / "rows.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert len(rows) == result["rows"]
    assert [list(row) for row in rows] == [["input", "target", "output", "log_probs"]] * len(rows)
    assert predict_run(run, [row["input"] for row in rows]) == [row["output"] for row in rows]
    hits = [row["output"] == row["target"] for row in rows]
    assert result["score"] == pytest.approx(100 * sum(hits) / len(hits))
    ranked = [max(row["log_probs"], key=row["log_probs"].get) == row["target"] for row in rows]
    assert result["rank_score"] == pytest.approx(100 * sum(ranked) / len(ranked))


def test_evaluate_replaces_no_file_but_its_own(run, tmp_path):
    source = Path(load_run(run).config.task.source)
    content = source.read_bytes()
    (tmp_path / "notes.txt").write_text("mine")
    for output in (source, tmp_path / "notes.txt"):
        with pytest.raises(FileExistsError, match=r"is a file that no evaluation has written, and"):
            evaluate_run(run, "test", output=output)
    assert source.read_bytes() == content and (tmp_path / "notes.txt").read_text() == "mine"
    with pytest.raises(FileNotFoundError, match="folder .* of output .*/none/o.jsonl does not exi"):
        evaluate_run(run, "test", output=tmp_path / "none" / "o.jsonl")
    with pytest.raises(IsADirectoryError, match="is a folder; give a file"):
        evaluate_run(run, "test", output=tmp_path)
    (tmp_path / "o.jsonl").touch()
    evaluate_run(run, "dev", output=tmp_path / "o.jsonl")
    first = (tmp_path / "o.jsonl").read_bytes()
    evaluate_run(run, "test", output=tmp_path / "o.jsonl")
    assert (tmp_path / "o.jsonl").read_bytes() != first


def test_evaluate_says_where_the_data_is_other_than_in_training(tmp_path, capsys):
    run = tmp_path / "run"
    fit(tiny.train_config(tmp_path, steps=1), run)
    assert evaluate_run(run, "test")["data_changed"] is False
    assert "are others than when the run was trained" not in capsys.readouterr().err
    rows = tmp_path / "rows.jsonl"
    whole = rows.read_text()
    rows.write_text("\n".join(whole.splitlines()[::2]) + "\n")
    assert evaluate_run(run, "test")["data_changed"] is True
    assert "the test rows or the label words of task 'tiny' are others" in capsys.readouterr().err
    rows.write_text(
        whole.replace('"animal"', '"x"').replace('"plant"', '"animal"').replace('"x"', '"plant"')
    )
    assert evaluate_run(run, "test")["data_changed"] is True
    rows.write_text(whole)
    (run / "manifest.json").unlink()
    assert evaluate_run(run, "test")["data_changed"] is None


def test_predict_run_answers_in_order(run):
    texts = ["the cat likes the garden and the yard", "the oak", "the cat"]
    together = predict_run(run, texts)
    assert together == [predict_run(run, [text])[0] for text in texts]
    assert predict_run(run, []) == []


def test_predict_run_cuts_no_text(run):
    texts = ["the oak", "the cat likes " * 9 + "the garden", "the cat likes " * 9 + "the yard"]
    message = r"row 1: the text has (\d+) tokens with its end marker but inputs_length is 16; set"
    with pytest.raises(ValueError, match=message) as error:
        predict_run(run, texts)
    tokens = int(re.search(message, str(error.value))[1])
    assert len(predict_run(run, texts, inputs_length=tokens)) == 3


def test_what_is_answered_goes_through_the_template_of_the_run(run, tmp_path):
    config, backbone, _, _ = load_run(run)
    pair = dataclasses.replace(config.task, template="the {b} likes {text}", name="pair")
    other = write_run(
        tmp_path / "pair", dataclasses.replace(config, task=pair), random_prompt(3, 0)
    )
    rows = [{"text": text, "b": "cat"} for text in ("the oak", "the elm", "the yard", "the owl")]
    finished = [f"the cat likes {row['text']}" for row in rows]
    found = predict_run(other, rows)
    assert found == predict_run(str(other), np.array(finished), raw=True)

    def tokens(texts, **options):
        with pytest.raises(ValueError, match="has .* tokens with its end marker") as error:
            predict_run(other, texts, inputs_length=2, **options)
        return int(re.search(r"has (\d+) tokens", str(error.value))[1])

    raw = tokens([row["text"] for row in rows], raw=True)
    assert tokens(rows) == tokens(finished, raw=True) > raw  # the template is applied, and once
    # As evaluation sees the same rows.
    examples = [Example(text, "plant") for text in finished]
    params = {"t5": backbone.params, "prompt": jnp.asarray(random_prompt(3, 0))}
    split = tokenize_split(examples, backbone.tokenizer, config.data)
    scores = evaluate(backbone, params, split, config.data, label_words=None, batch_size=4)
    assert found == list(scores.predictions)
    with pytest.raises(ValueError, match="row 1: a text is given, but the template 'the {b} likes"):
        predict_run(other, [rows[0], "the oak"])


def test_what_is_missing_is_served_as_it_was_trained(run, tmp_path, capsys):
    config = load_run(run).config
    rows = [{"text": "the oak", "b": "cat"}, {"text": "", "b": "cat"}, {"text": None, "b": "owl"}]

    def of(missing):
        task = dataclasses.replace(config.task, template="the {b} {text}", missing=missing)
        changed = dataclasses.replace(config, task=task)
        return write_run(tmp_path / missing, changed, random_prompt(3, 0))

    finished = ["the cat the oak", "the cat", "the owl"]
    assert predict_run(of("empty"), rows) == predict_run(of("empty"), finished, raw=True)
    import_prompt(of("empty"), tmp_path / "alone.safetensors")
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for missing in ("error", "skip"):
        with pytest.raises(ValueError, match=f"row 1: .*task.missing of the run is '{missing}'"):
            predict_run(of(missing), rows)
        found = answer_run(of(missing), rows)
        assert found.texts == [*predict_run(of(missing), rows[:1]), None, None]
        assert found.problems.keys() == {1, 2}
        assert cli.main(["predict", str(of(missing)), f"--input={tmp_path}/rows.jsonl"]) == 3
        out, err = capsys.readouterr()
        assert out == f"{found.texts[0]}\n\n\n"
        assert f"spt-jax: {tmp_path}/rows.jsonl:2: field 'text' is \"\", expected" in err
        assert "error: 2 of 3 rows failed; see the lines above" in err
    line = ["predict", f"--model={config.model}", f"--input={tmp_path}/rows.jsonl"]
    for prompt, code in ((tmp_path / "alone.safetensors", 0), (of("empty"), 0), (of("skip"), 3)):
        assert cli.main([*line, f"--prompt=p={prompt}", "--inputs_length=16"]) == code


def test_predict_run_takes_a_list_and_names_what_is_no_text(run):
    with pytest.raises(TypeError, match="texts is 'the oak' of type str, expected a list of texts"):
        predict_run(run, "the oak")
    with pytest.raises(ValueError, match="row 1 is None of type NoneType, expected a text"):
        predict_run(run, ["the oak", None])
    with pytest.raises(ValueError, match="row 1: text has half of a surrogate pair"):
        predict_run(run, ["the oak", "\ud800"])
    texts = ["the oak", "the cat"]
    assert predict_run(str(run), (text for text in texts)) == predict_run(run, texts)


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(
        FileNotFoundError, match="is not the folder of a run: it has no config.yaml"
    ):
        load_run(tmp_path)


def test_a_prompt_of_another_backbone_is_refused(tmp_path):
    fit(tiny.train_config(tmp_path, steps=1), tmp_path / "run")
    tiny.write_backbone(tmp_path / "tiny", seed=5)
    with pytest.raises(
        ValueError, match="was trained on model 'tiny-0' with fingerprint .* but 'ti"
    ):
        load_run(tmp_path / "run")


def test_answers_that_cannot_be_written_are_refused():
    tokenizer = FakeTokenizer()
    found = encode_answers(["ab", "c"], tokenizer, 3)
    assert found.tolist() == [[100, 101, 1], [102, 1, 0]]
    with pytest.raises(ValueError, match="'abc' has 4 tokens with its end marker but data.targets"):
        encode_answers(["abc"], tokenizer, 3)
    tokenizer.encode = lambda text: [100]
    with pytest.raises(ValueError, match="label words 'yes' and 'Yes' are the same tokens"):
        encode_answers(["yes", "Yes"], tokenizer, 3)
    with pytest.raises(ValueError, match="'yes' cannot be written: the tokenizer leaves nothing"):
        tokenizer.encode = lambda text: []
        encode_answers(["yes"], tokenizer, 3)


def test_nearest_rows_by_cosine_and_by_distance():
    table = jnp.array([[1.0, 0.0], [10.0, 0.0], [0.0, 1.0], [3.0, 3.0]])
    found = nearest(jnp.array([[4.0, 0.1], [0.1, 0.2]]), table, 2)
    assert found["cosine"][0].tolist() == [[0, 1], [3, 2]]
    assert found["l2"][0].tolist() == [[0, 3], [2, 0]]
    np.testing.assert_allclose(found["l2"][1][0], [np.hypot(3, 0.1), np.hypot(1, 2.9)], rtol=1e-5)


def test_nearest_words_of_an_untrained_prompt_are_its_start(tmp_path):
    from spt_jax.config.train import OptimizerConfig, PromptConfig

    config = tiny.train_config(
        tmp_path,
        steps=1,
        prompt=PromptConfig(length=3, init="text", text="cat oak"),
        optimizer=OptimizerConfig(learning_rate=1e-6, weight_decay=0.0),
    )
    fit(config, tmp_path / "run")
    backbone = load_backbone(str(tmp_path / "tiny"))
    pieces = [backbone.tokenizer.piece(i) for i in backbone.tokenizer.encode("cat oak")][:3]
    rows = nearest_words(tmp_path / "run", 2)
    for row, piece in zip(rows, pieces):
        assert row["cosine"][0][0] == row["l2"][0][0] == piece
        assert row["cosine"][0][1] == pytest.approx(1, abs=1e-4)
    with pytest.raises(ValueError, match="k is 0 nearest words, expected 1 or more"):
        nearest_words(tmp_path / "run", 0)
