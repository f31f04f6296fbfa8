import dataclasses
import json

import jax
import jax.numpy as jnp
import pytest
from support import tiny

from spt_jax.config.pretrain import ArchitectureConfig, MixtureConfig, PretrainConfig
from spt_jax.config.train import LogConfig, OptimizerConfig
from spt_jax.models.backbone import load_backbone
from spt_jax.pretraining.corpus import read_corpus
from spt_jax.pretraining.mixture import make_batches
from spt_jax.pretraining.pretrain import pretrain
from spt_jax.pretraining.probes import PROBE_ROWS, Probes
from spt_jax.runs.log import read_log
from spt_jax.t5 import T5
from spt_jax.tokenizers.bpe import train_tokenizer

WORDS = (
    "river stone bird tree light house road cloud field water garden window letter morning".split()
)


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """A model of a few thousand parameters over a made-up book; no docstrings are read."""
    file = tmp_path_factory.mktemp("text") / "book.txt"
    sentences = [
        f"The {a} of the {b} was near the {c} where a {d} was. {a.capitalize()} and {d} met it."
        for a in WORDS
        for b, c, d in zip(WORDS[1:], WORDS[2:], WORDS[3:])
    ]
    paragraphs = [" ".join(sentences[i : i + 12]) for i in range(0, len(sentences), 12)]
    file.write_text("\f".join(paragraphs))  # a book each, since documents are held out whole
    return PretrainConfig(
        name="mini",
        architecture=ArchitectureConfig(
            d_model=16,
            d_kv=8,
            d_ff=16,
            num_heads=2,
            num_layers=1,
            num_decoder_layers=1,
            vocab_size=300,
        ),
        mixture=MixtureConfig(
            inputs_length=64,
            long_targets_length=24,
            short_targets_length=8,
            batch_size=4,
            pack=2,
            weights={"span_corruption": 1.0, "lm": 1.0, "copy": 1.0, "gap": 1.0},
        ),
        optimizer=OptimizerConfig(name="sgd", learning_rate=0.1),  # a small program of every leaf
        packages=(),
        text_files=(str(file),),
        held_out_share=0.3,
        log=LogConfig(every=2, checkpoint_every=2),
        gap_every=3,
        steps=6,
    )


@pytest.fixture(scope="module")
def finished(config, tmp_path_factory):
    run = tmp_path_factory.mktemp("pretrain") / "run"
    return run, pretrain(config, run)


def test_a_backbone_is_written_that_loads(finished):
    run, result = finished
    backbone = load_backbone(str(run / "model"))
    assert backbone.name == "mini" and result["steps"] == 6
    assert backbone.model.config.vocab_size == 300 >= backbone.tokenizer.vocab_size


def test_the_encoder_gap_is_in_the_log_and_the_result(finished):
    run, result = finished
    measured = [r for r in read_log(run / "log.jsonl") if r.get("split") == "held_out"]
    assert [r["step"] for r in measured] == [3, 6]
    for group in ("long", "short"):
        assert result[f"{group}_gap"] == measured[-1][f"{group}_gap"]
    assert [r["step"] for r in read_log(run / "log.jsonl") if "group" in r] == list(range(1, 7))


def test_resuming_equals_not_stopping(finished, config, tmp_path):
    import shutil

    run, _ = finished
    resumed = tmp_path / "resumed"
    shutil.copytree(run, resumed)
    shutil.rmtree(resumed / "checkpoints" / "6")
    shutil.rmtree(resumed / "model")
    (resumed / "result.json").unlink()
    pretrain(config, resumed)
    for name in ("log.jsonl", "model/model.safetensors", "model/config.json", "result.json"):
        assert (resumed / name).read_bytes() == (run / name).read_bytes(), name


def test_other_text_is_not_resumed_on(finished, config, tmp_path):
    import shutil
    from pathlib import Path

    run, _ = finished
    resumed = tmp_path / "resumed"
    shutil.copytree(run, resumed)
    (resumed / "result.json").unlink()
    manifest = json.loads((resumed / "manifest.json").read_text())
    manifest["identity"]["corpus_fingerprint"] = "0" * 64
    (resumed / "manifest.json").write_text(json.dumps(manifest))
    assert Path(config.text_files[0]).exists()
    with pytest.raises(ValueError, match="holds a run with another corpus fingerprint"):
        pretrain(config, resumed)


def test_a_finished_run_is_read_back(finished, config, monkeypatch):
    run, result = finished
    monkeypatch.setattr("spt_jax.pretraining.pretrain.read_corpus", None)
    assert pretrain(config, run) == result


def test_probes_count_whole_answers(config, finished, monkeypatch):
    _, result = finished
    assert set(result["probes"]) == {"copy", "gap"}
    corpus = read_corpus(packages=(), text_files=config.text_files)
    tokenizer = train_tokenizer(corpus.texts(), 300)
    mixture = make_batches(corpus, tokenizer, config.mixture, seed=0)
    answers = {}
    for name in mixture.tasks:
        for step in range(PROBE_ROWS // config.mixture.batch_size):
            batch = mixture.task_batch(name, step)
            answers[batch["inputs"].tobytes()] = batch["targets"]

    def all_but_one_token(model, params, inputs, *, length):
        ids = answers[inputs.tobytes()].copy()
        ids[2, 0] += 1
        return ids

    monkeypatch.setattr("spt_jax.pretraining.probes._greedy", all_but_one_token)
    assert Probes(T5(tiny.SHAPE), mixture).scores({}) == {"copy": 75.0, "gap": 75.0}


def test_one_kind_of_rows_alone(config, tmp_path):
    mixture = dataclasses.replace(config.mixture, short_share=0.0)
    result = pretrain(dataclasses.replace(config, mixture=mixture, steps=1), tmp_path / "run")
    assert "long_gap" in result and "short_gap" not in result and result["probes"] == {}


def test_going_on_from_a_backbone(config, finished, tmp_path):
    run, result = finished
    more = dataclasses.replace(
        config, init=str(run / "model"), name="adapted", steps=1, gap_every=1,
        optimizer=dataclasses.replace(config.optimizer, learning_rate=1e-9),
        mixture=dataclasses.replace(config.mixture, short_share=0.0, weights={"lm": 1.0}),
    )  # fmt: skip
    adapted = pretrain(more, tmp_path / "run")
    before, after = load_backbone(str(run / "model")), load_backbone(str(tmp_path / "run/model"))
    assert before.tokenizer.fingerprint == after.tokenizer.fingerprint and after.name == "adapted"
    for old, new in zip(jax.tree.leaves(before.params), jax.tree.leaves(after.params), strict=True):
        assert jnp.array_equal(old, new)  # the rate is too small to move them
    assert adapted["long_loss"] != result["long_loss"]
    with pytest.raises(ValueError, match="unknown model 'spt-nona'.*did you mean 'spt-nano'?"):
        pretrain(dataclasses.replace(config, init="spt-nona"), tmp_path / "other")
