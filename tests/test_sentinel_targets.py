"""With `data.sentinel_targets`, `<extra_id_0>` is in front of what is learned and of no answer.

The scores of label words in a server are in test_engine.py, those of a prompt without a run in
test_paper_runs.py.
"""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import checkpoints, tiny
from support.fakes import FakeTokenizer
from support.runs import random_prompt, write_run

from spt_jax.config.fields import from_dict, to_dict
from spt_jax.config.train import DataConfig, TrainConfig
from spt_jax.data.example import Example, Task
from spt_jax.data.pipeline import tokenize_split
from spt_jax.data.preview import preview
from spt_jax.decoding.loop import answer_log_probs
from spt_jax.evaluation.evaluate import evaluate_run, load_group
from spt_jax.evaluation.scores import encode_answers, label_of_text
from spt_jax.prediction.inputs import InputForm, form_of
from spt_jax.prompts.convert import export_prompt, import_prompt
from spt_jax.prompts.file import load_prompt
from spt_jax.prompts.load import load_run
from spt_jax.prompts.read import read_prompt
from spt_jax.prompts.transfer import recycle
from spt_jax.run import prepare_runs
from spt_jax.tokenizers.published import load_tokenizer
from spt_jax.train import fit

DATA = DataConfig(inputs_length=8, targets_length=4, sentinel_targets=True)
FAKE = FakeTokenizer()
FIRST = FAKE.sentinel(0)


def with_sentinel(config):
    return dataclasses.replace(config, data=dataclasses.replace(config.data, sentinel_targets=True))


def test_targets_begin_with_the_sentinel_which_counts_as_a_token():
    examples = [Example("abc", "xy"), Example("a", "xyz"), Example("", "")]
    split = tokenize_split(examples, FAKE, DATA)
    x, y = FAKE.encode("xy")
    assert [row.tolist() for row in split.targets] == [[FIRST, x, y, 1]] * 2 + [[FIRST, 1]]
    assert split.truncated_targets == pytest.approx(1 / 3)
    plain = tokenize_split(examples, FAKE, dataclasses.replace(DATA, sentinel_targets=False))
    assert [row.tolist() for row in plain.inputs] == [row.tolist() for row in split.inputs]
    assert plain.truncated_targets == 0 and plain.targets[0].tolist() == [x, y, 1]


def test_texts_to_compare_with_have_no_sentinel():
    examples = [Example("a", "xy", answers=("xy", "z"))]
    split = tokenize_split(examples, FAKE, DATA, free_text=True)
    assert list(split.examples) == examples and split.unknown_targets == 0


def test_label_words_begin_with_the_sentinel():
    found = encode_answers(["ab", "c"], FAKE, 4, sentinel=True)
    a, b, c = FAKE.encode("abc")
    assert found.tolist() == [[FIRST, a, b, 1], [FIRST, c, 1, 0]]
    message = "'ab' has 4 tokens with its sentinel and end marker but data.targets_length is 3; set"
    with pytest.raises(ValueError, match=message):
        encode_answers(["ab"], FAKE, 3, sentinel=True)


@pytest.mark.parametrize("kind", ["published", "trained", "bytes"])
def test_an_answer_is_the_same_without_its_sentinel(kind, tmp_path):
    tokenizer = checkpoints.tokenizer_of(kind, tmp_path)
    texts = ["the dog", "a cat", "dog"]
    marked = encode_answers(texts, tokenizer, 100, sentinel=True)
    plain = encode_answers(texts, tokenizer, 100)
    assert (marked[:, 0] == tokenizer.sentinel(0)).all()
    np.testing.assert_array_equal(marked[:, 1:], plain)
    written = [tokenizer.decode(row.tolist()) for row in marked]
    assert written == [tokenizer.decode(row.tolist()) for row in plain]
    assert [label_of_text(texts, tokenizer)[text.strip()] for text in written] == texts


def test_a_tokenizer_without_sentinels_is_refused(tmp_path):
    parts = checkpoints.tokenizer_parts()
    index = next(t["id"] for t in parts["added_tokens"] if t["content"] == "<extra_id_0>")
    parts["model"]["vocab"][index][0] = "x"
    parts["added_tokens"] = [t for t in parts["added_tokens"] if t["id"] != index]
    (tmp_path / "tokenizer.json").write_text(json.dumps(parts))
    tokenizer = load_tokenizer(tmp_path)
    message = (
        "data.sentinel_targets is true, but the tokenizer of the model has no '<extra_id_0>' to "
        "put in front of targets; set it to false, or use a T5 that was pretrained by span corr"
    )
    with pytest.raises(ValueError, match=message):
        tokenize_split([Example("a", "b")], tokenizer, DATA)
    with pytest.raises(ValueError, match=message):
        encode_answers(["b"], tokenizer, 4, sentinel=True)
    assert len(tokenize_split([Example("a", "b")], tokenizer, DataConfig()).targets) == 1


def test_data_show_counts_and_shows_the_sentinel():
    task = Task("t", {"train": [Example("a", "xy"), Example("b", "xyz")]}, None, ())
    shown = preview(task, FAKE, DATA, 1)
    (targets,) = [row for row in shown["lengths"] if row["side"] == "targets"]
    assert (targets["p50"], targets["max"], targets["cut"]) == (4, 5, 50)
    (example,) = shown["examples"]
    assert example["target_tokens"] == [FAKE.piece(i) for i in (FIRST, *FAKE.encode("xy"), 1)]
    assert example["targets"] == "xy"


def test_runs_that_train_together_do_not_share_targets(tmp_path):
    plain = tiny.train_config(tmp_path)
    runs = prepare_runs([plain, with_sentinel(plain), plain])
    sentinel = runs[0].backbone.tokenizer.sentinel(0)
    begin = [{int(row[0]) for row in run.data.rows["train"].targets} for run in runs]
    assert begin[1] == {sentinel} and sentinel not in begin[0]
    assert runs[2].data is runs[0].data
    assert runs[0].identity["data_fingerprint"] != runs[1].identity["data_fingerprint"]


def test_a_label_that_the_sentinel_makes_too_long_is_refused_before_training(tmp_path):
    plain = tiny.train_config(tmp_path)
    plain = dataclasses.replace(plain, data=dataclasses.replace(plain.data, targets_length=2))
    assert len(prepare_runs([plain])) == 1
    with pytest.raises(ValueError, match="'animal' has 3 tokens with its sentinel and end marker"):
        prepare_runs([with_sentinel(plain)])


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sentinel")
    fit(with_sentinel(tiny.train_config(folder, steps=2)), folder / "run")
    return folder / "run"


def test_a_run_scores_label_words_behind_the_sentinel(run, tmp_path):
    result = evaluate_run(run, output=tmp_path / "rows.jsonl")
    assert result["score"] == json.loads((run / "result.json").read_text())["score"]
    _, backbone, params, _ = load_run(run)
    encode, sentinel = backbone.tokenizer.encode, backbone.tokenizer.sentinel(0)
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    words = list(rows[0]["log_probs"])
    answers = jnp.array([[sentinel, *encode(word), 1] for word in words])
    inputs = [[*encode(row["input"]), 1] for row in rows]
    padded = np.zeros((len(rows), max(map(len, inputs))), np.int32)
    for number, ids in enumerate(inputs):
        padded[number, : len(ids)] = ids
    score = jax.jit(lambda ids: answer_log_probs(backbone.model, params, ids, answers))
    found = [[row["log_probs"][word] for word in words] for row in rows]
    np.testing.assert_allclose(found, score(padded), atol=1e-4)
    assert not any("<extra_id_" in row["output"] + row["target"] for row in rows)


def test_each_run_of_a_group_keeps_its_own_targets(run):
    plain = dataclasses.replace(load_run(run).config, data=DataConfig(targets_length=4))
    other = write_run(run.parent / "plain", plain, random_prompt(3, 0))
    group = load_group([run, other], "test")
    assert [rows.data.sentinel_targets for rows in group.rows] == [True, False]
    marked, unmarked = group.answer()
    assert marked.log_probs is not None and unmarked.log_probs is not None
    assert marked.log_probs.shape == unmarked.log_probs.shape


def test_the_prompt_file_keeps_how_its_targets_begin(run, tmp_path):
    _, metadata = load_prompt(run / "prompt.safetensors")
    assert metadata["sentinel_targets"] == "true" and form_of(metadata).sentinel_targets
    import_prompt(run, tmp_path / "alone.safetensors")
    export_prompt(run, tmp_path / "peft", format="peft")
    model = str(run.parent / "tiny")
    recycle(run, tmp_path / "recycled.safetensors", old=model, new=model)
    for place in ("alone.safetensors", "peft", "recycled.safetensors"):
        assert form_of(read_prompt(tmp_path / place).metadata).sentinel_targets, place
    # Where the file says nothing, the config of its run does.
    config = with_sentinel(tiny.train_config(tmp_path))
    other = write_run(tmp_path / "run", config, random_prompt(3, 0))
    assert "sentinel_targets" not in load_prompt(other / "prompt.safetensors")[1]
    assert form_of(read_prompt(other).metadata).sentinel_targets


def test_an_export_that_cannot_keep_it_says_so(run, tmp_path):
    for format in ("peft", "npy"):
        note = export_prompt(run, tmp_path / format, format=format)["note"]
        assert note == (
            "trained with data.sentinel_targets, which other programs do not read from this file: "
            "put <extra_id_0> in front of targets and label words, and leave it out of what the "
            "model writes"
        )
    assert "note" not in export_prompt(run, tmp_path / "p.safetensors", format="safetensors")


def test_runs_and_prompts_of_earlier_versions_have_no_sentinel(tmp_path):
    config = tiny.train_config(tmp_path)
    saved = to_dict(config)
    assert saved["data"].pop("sentinel_targets") is False
    assert from_dict(TrainConfig, saved, saved=True) == config
    run = write_run(tmp_path / "run", config, random_prompt(3, 0))
    assert "sentinel_targets" not in read_prompt(run).metadata
    assert "note" not in export_prompt(run, tmp_path / "peft", format="peft")
    assert form_of({"template": "{a}"}) == InputForm("{a}") and not InputForm().sentinel_targets
    assert not form_of({"sentinel_targets": "false"}).sentinel_targets
    message = "the prompt keeps sentinel_targets 'yes', expected true or false; get another copy"
    with pytest.raises(ValueError, match=message):
        form_of({"sentinel_targets": "yes"})
