"""Texts that many callers give at a time get what each gets alone, and nothing is compiled then."""

import dataclasses
import functools
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import serving, tiny
from support.serving import CONFIG, LABELS

from spt_jax.config.decode import DecodeConfig
from spt_jax.config.devices import MeshConfig
from spt_jax.decoding.loop import answer_log_probs
from spt_jax.errors import RunError
from spt_jax.evaluation.ensemble import vote
from spt_jax.models.backbone import load_backbone
from spt_jax.prediction.predictor import Predictor
from spt_jax.prompts.bank import load_bank
from spt_jax.prompts.file import load_prompt, save_prompt
from spt_jax.serving.answers import rank
from spt_jax.serving.batcher import QueueFull
from spt_jax.serving.engine import Engine, UnknownModel

TEXTS = [text for text, _ in tiny.sentences()[::9]]


class Counter:
    """Counts the programs that a thread compiles."""

    def __init__(self):
        self.thread, self.count = None, 0
        jax.monitoring.register_event_duration_secs_listener(self)

    def __call__(self, event, seconds, **_):
        ours = threading.current_thread() is self.thread
        self.count += ours and event == "/jax/core/compile/backend_compile_duration"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("serving")


@pytest.fixture(scope="module")
def paths(folder):
    return serving.write_prompts(folder)


@pytest.fixture(scope="module")
def backbone(paths, folder):
    return load_backbone(str(folder / "tiny"), mesh=MeshConfig(data=1))


@pytest.fixture(scope="module")
def compiled():
    return Counter()


@pytest.fixture(scope="module")
def batches():
    return []


@pytest.fixture(scope="module")
def engine(backbone, paths, folder, compiled, batches):
    ensembles = {"both": ["animals", "plants"]}
    with Engine(
        backbone,
        paths,
        CONFIG,
        ensembles=ensembles,
        prompts_dir=folder,
        on_batch=batches.append,
    ) as engine:
        assert not engine.ready
        engine.wait_until_ready(300)
        compiled.thread = engine.batcher._thread
        yield engine
    with pytest.raises(RunError, match="the server is ending and takes no more requests"):
        engine.complete("animals", TEXTS)
    assert compiled.count == 0  # in none of the tests


@pytest.fixture(scope="module")
def predict(backbone, paths):
    """What `Predictor` answers to a row alone."""
    bank = load_bank(backbone, paths)

    def one(name, text, number=0, seed=0, **options):
        predictor = Predictor(
            backbone,
            bank,
            inputs_length=16,
            targets_length=4,
            batch_size=1,
            decode=DecodeConfig(**options),
            seed=seed,
        )
        return predictor.predict([(name, text)], [number])[0].texts[0]

    return one


def test_a_row_among_others_gets_what_it_gets_alone(engine, predict, batches):
    names = ["animals", "plants", "tiny-0", "animals"]
    batches.clear()
    futures = [engine.complete(name, [text], raw=True) for text in TEXTS for name in names]
    answers = [future.result(60)[0].text for future in futures]
    assert len({*answers}) > 4
    for answer, (text, name) in zip(answers, ((t, n) for t in TEXTS for n in names), strict=True):
        assert answer == predict(None if name == "tiny-0" else name, text)
    assert sum(len(batch.prompts) for batch in batches) == len(futures)
    assert any(len({*batch.prompts}) > 1 for batch in batches)  # tasks shared a batch
    assert any(batch.size == len(batch.prompts) == 4 for batch in batches)


def test_a_template_is_applied_unless_the_input_is_raw(engine, predict):
    [found] = engine.complete("animals", [TEXTS[0]]).result(60)
    assert found.text == predict("animals", f"say: {TEXTS[0]}")
    [found] = engine.complete("pairs", [{"first": "the cat", "second": "the oak"}]).result(60)
    assert found.text == predict("pairs", "the cat or the oak")


def test_drawn_answers_are_those_of_predict_whatever_the_neighbours(engine, predict):
    futures = [
        engine.complete("animals", TEXTS[:2], temperature=2.0, top_p=top_p, n=3, seed=5, raw=True)
        for top_p in (1.0, 0.7)
    ]
    drawn, cut = ([found.text for found in future.result(60)] for future in futures)
    options = {"sample": True, "temperature": 2.0, "seed": 5}
    assert drawn[4] == predict("animals", TEXTS[1], 4, **options)
    assert cut[5] == predict("animals", TEXTS[1], 5, **options, top_p=0.7)
    assert len({*drawn}) > 2
    again = engine.complete("animals", TEXTS[:2], temperature=2.0, n=3, raw=True).result(60)
    assert [found.text for found in again] != drawn  # the seed is random by default


def test_an_answer_ends_at_its_most_tokens_and_before_a_stop(engine):
    [whole] = engine.complete("plants", TEXTS[:1], log_probs=True).result(60)
    assert whole.finish_reason == ("stop" if whole.tokens < 4 else "length")
    [short] = engine.complete("plants", TEXTS[:1], max_tokens=2, log_probs=True).result(60)
    assert (short.tokens, short.finish_reason) == (2, "length")
    assert whole.text.startswith(short.text) and whole.pieces[:2] == short.pieces
    assert short.log_probs == pytest.approx(whole.log_probs[:2]) and max(whole.log_probs) < 0
    assert whole.offsets[0] == 0 and list(whole.offsets) == sorted(whole.offsets)
    stop = whole.text[1:3]
    [cut] = engine.complete("plants", TEXTS[:1], stop=["nowhere", stop]).result(60)
    assert (cut.text, cut.finish_reason) == (whole.text.partition(stop)[0], "stop")
    assert cut.tokens <= whole.tokens == len(whole.pieces) and not cut.pieces


def test_labels_are_ranked_by_their_log_probability(engine, backbone, paths):
    text = TEXTS[3]
    words = [*LABELS, "cat", "dog", "oak"]  # more than a row of a batch scores
    rankings = engine.classify(["animals", "plants"], [text, TEXTS[4]], labels=words).result(60)
    assert [found.model for found in rankings] == ["animals", "plants"] * 2
    encode = backbone.tokenizer.encode
    bank = load_bank(backbone, paths)
    task_ids = jnp.asarray(bank.task_ids(["animals"]))
    params, mask = bank.arrays.prompted({"t5": backbone.params}, task_ids)
    inputs = jnp.array([[*encode(f"say: {text}"), 1]])
    answers = np.zeros((5, 4), np.int32)
    for number, word in enumerate(words):
        ids = [*encode(word), 1]
        answers[number, : len(ids)] = ids
    score = jax.jit(functools.partial(answer_log_probs, backbone.model))
    [expected] = np.asarray(score(params, inputs, jnp.asarray(answers), prompt_mask=mask))
    for found in rankings[0].labels:
        assert found.log_prob == pytest.approx(expected[words.index(found.label)], abs=1e-4)
    for found in rankings:
        assert sum(label.probability for label in found.labels) == pytest.approx(1)
        assert {label.label for label in found.labels} == {*words}
        values = [label.log_prob for label in found.labels]
        assert values == sorted(values, reverse=True)


def test_label_words_of_a_prompt_with_sentinel_targets_begin_with_the_sentinel(
    engine, backbone, paths, folder
):
    prompt, metadata = load_prompt(folder / "animals" / "prompt.safetensors")
    metadata |= {"template": "say: {text}", "sentinel_targets": "true"}
    (folder / "marked").mkdir()
    save_prompt(folder / "marked" / "prompt.safetensors", prompt, metadata)
    manifest = (folder / "animals" / "manifest.json").read_bytes()
    (folder / "marked" / "manifest.json").write_bytes(manifest)
    engine.load("marked").result(60)
    try:
        text, encode = TEXTS[3], backbone.tokenizer.encode
        found = {
            labels: engine.classify(["animals", "marked", "tiny-0"][: 3 if labels else 2], [text],
                                    labels=labels and [*labels]).result(60)
            for labels in (None, (*LABELS, "oak"))
        }  # fmt: skip
        [written] = engine.complete("marked", [text]).result(60)
        [same] = engine.complete("animals", [text]).result(60)
    finally:
        engine.unload("marked").result(60)
    assert written.text == same.text  # only what is scored differs
    bank = load_bank(backbone, paths)
    score = jax.jit(functools.partial(answer_log_probs, backbone.model))
    for labels, rankings in found.items():
        for ranking in rankings:
            name, template = ("animals", "say: ") if ranking.model != "tiny-0" else (None, "")
            mark = [backbone.tokenizer.sentinel(0)] if ranking.model == "marked" else []
            words = labels or LABELS
            answers = np.zeros((len(words), 5), np.int32)
            for number, word in enumerate(words):
                ids = [*mark, *encode(word), 1]
                answers[number, : len(ids)] = ids
            task_ids = jnp.asarray(bank.task_ids([name]))
            params, mask = bank.arrays.prompted({"t5": backbone.params}, task_ids)
            inputs = jnp.array([[*encode(template + text), 1]])
            [expected] = np.asarray(score(params, inputs, jnp.asarray(answers), prompt_mask=mask))
            values = {label.label: label.log_prob for label in ranking.labels}
            assert values == pytest.approx(dict(zip(words, expected.tolist())), abs=1e-4)
    [of_plain, of_marked] = [{x.label: x.log_prob for x in r.labels} for r in found[None]]
    assert all(abs(of_plain[label] - of_marked[label]) > 0.1 for label in LABELS)


def test_an_ensemble_votes_and_averages(engine):
    members = [engine.complete(name, TEXTS) for name in ("animals", "plants")]
    texts = [[found.text for found in future.result(60)] for future in members]
    voted = engine.complete("both", TEXTS).result(60)
    assert [found.text for found in voted] == vote(texts)
    of_members = engine.classify(["animals", "plants"], TEXTS[:1]).result(60)
    [averaged] = engine.classify(["both"], TEXTS[:1]).result(60)
    for label in averaged.labels:
        values = [{x.label: x.log_prob for x in found.labels} for found in of_members]
        mean = np.mean([of_member[label.label] for of_member in values])
        assert label.log_prob == pytest.approx(mean, abs=1e-5)


def test_the_shares_of_very_unlikely_labels_are_no_nan():
    found = rank(("a", "b"), np.array([-2000.0, -1000.0], np.float32))
    assert [label[0::2] for label in found] == [("b", 1.0), ("a", 0.0)]


@pytest.mark.parametrize(
    ("model", "texts", "options", "message"),
    [
        ("animal", ["a"], {}, "there is no model 'animal'; expected one of tiny-0, animals, "),
        ("animal", ["a"], {}, r"pairs, both \(did you mean 'animals'\?\)"),
        ("animals", [], {}, "no text is given, expected one or more"),
        ("animals", ["a"], {"n": 25}, "the request has 25 rows .* expected at most 24; send sev"),
        ("animals", ["a"], {"n": 0}, "n is 0, expected 1 or more"),
        ("animals", ["a"], {"max_tokens": 5}, "max_tokens is 5, expected 1 to 4, the targets_len"),
        ("animals", ["a"], {"max_tokens": 0}, "max_tokens is 0, expected 1 to 4, the targets_len"),
        ("animals", ["a"], {"temperature": -1}, "temperature is -1, expected 0 or a number > 0"),
        ("animals", ["a"], {"temperature": np.nan}, "temperature is nan, expected 0 or a number"),
        ("animals", ["a"], {"top_p": 0}, "top_p is 0, expected more than 0 and at most 1"),
        ("animals", ["a"], {"seed": -1}, r"seed is -1, expected 0 or more, and less than 2\*\*32"),
        ("both", ["a"], {"n": 2}, "'both' is an ensemble, whose members vote .* leave out n and"),
        ("animals", ["a", "cat " * 40], {}, "text 1: the text has .* inputs_length is 16; set"),
        ("animals", ["\ud800"], {}, "text has half of a surrogate pair, expected whole charact"),
        ("pairs", ["a"], {}, "a text is given, but the template .* has the fields first, second"),
    ],
)
def test_what_cannot_be_answered_is_refused_at_once(engine, model, texts, options, message):
    error = UnknownModel if model == "animal" else ValueError
    with pytest.raises(error, match=message):
        engine.complete(model, texts, **options)


@pytest.mark.parametrize(
    ("models", "labels", "message"),
    [
        (["pairs"], None, "the label words of 'pairs' are not known; give labels"),
        (["tiny-0"], None, "the label words of 'tiny-0' are not known; give labels"),
        (["animals"], ["cat"], "1 labels are given, expected 2 to 96"),
        (["animals"], ["cat", "\ud800"], "text has half of a surrogate pair, expected whole"),
        (["animals"], ["cat", "cat "], "label words 'cat' and 'cat ' are the same tokens or"),
        ([], None, "no model is given, expected one or more"),
    ],
)
def test_labels_that_cannot_be_ranked_are_refused(engine, models, labels, message):
    text = {"first": "a", "second": "b"} if models == ["pairs"] else "a"
    with pytest.raises(ValueError, match=message):
        engine.classify(models, [text], labels=labels)


def test_a_prompt_is_loaded_by_name_and_unloaded_while_rows_wait_for_it(engine, folder, predict):
    (folder / "more").mkdir(exist_ok=True)
    copied = (folder / "plants" / "prompt.safetensors").read_bytes()
    (folder / "more" / "prompt.safetensors").write_bytes(copied)
    with pytest.raises(UnknownModel, match="there is no model 'more'"):
        engine.complete("more", ["a"])
    assert engine.load("more").result(60).describe()["length"] == 4
    assert "more" in engine.names()
    with pytest.raises(ValueError, match="'more' is loaded already; unload it first"):
        engine.load("more")
    hold = threading.Event()
    engine.batcher.call(hold.wait)  # rows wait in the queue meanwhile
    waiting = engine.complete("more", TEXTS[:1], raw=True)
    unloaded = engine.unload("more")
    hold.set()
    unloaded.result(60)
    assert "more" not in engine.names()
    assert waiting.result(60)[0].text == predict("plants", TEXTS[0])
    with pytest.raises(UnknownModel, match="unknown prompt 'more'; the bank has animals"):
        engine.unload("more")
    with pytest.raises(ValueError, match="prompt 'plants' is a member of the ensemble 'both'"):
        engine.unload("plants")


def test_a_full_queue_refuses_and_a_cancelled_request_frees_its_places(engine):
    batcher, hold = engine.batcher, threading.Event()
    batcher.call(hold.wait)
    config = batcher.config
    batcher.config = dataclasses.replace(config, queue=3)
    try:
        first = engine.complete("animals", TEXTS[:2])
        with pytest.raises(QueueFull, match="2 rows wait and 2 more do not fit .* of 3; send") as e:
            engine.complete("animals", TEXTS[:2])
        assert e.value.retry_after >= 1
        last = engine.complete("animals", TEXTS[:1])
        assert batcher.waiting == 3 and first.cancel() and batcher.waiting == 1
        second = engine.complete("plants", TEXTS[:2])
    finally:
        batcher.config = config
        hold.set()
    assert len(last.result(60)) == 1 and len(second.result(60)) == 2 and first.cancelled()


def test_an_error_of_one_batch_is_told_to_its_callers_alone(engine, monkeypatch):
    def broken(rows, bank):
        raise KeyError("a mistake")

    with monkeypatch.context() as patch:
        patch.setattr(engine.batcher, "_answer", broken)
        with pytest.raises(KeyError, match="a mistake"):
            engine.complete("animals", TEXTS[:1]).result(60)
    assert len(engine.complete("animals", TEXTS[:1]).result(60)) == 1 and engine.ready


def test_a_failure_of_the_device_ends_everything_with_its_cause(backbone, paths, monkeypatch):
    failures = []
    engine = Engine(backbone, paths, CONFIG, on_failure=failures.append)
    monkeypatch.setattr(engine.batcher, "_warm_up", lambda: None)
    hold = threading.Event()
    with engine:
        engine.wait_until_ready(60)
        engine.batcher.call(hold.wait)

        def lost(rows, bank):
            raise jax.errors.JaxRuntimeError("DATA_LOSS: the device is gone")

        monkeypatch.setattr(engine.batcher, "_answer", lost)
        futures = [engine.complete("animals", TEXTS[:3]) for _ in range(3)]
        hold.set()
        for future in futures:
            with pytest.raises(jax.errors.JaxRuntimeError, match="the device is gone"):
                future.result(60)
        assert [str(error) for error in failures] == ["DATA_LOSS: the device is gone"]
        with pytest.raises(RunError, match="the device failed: .*the device is gone; start the"):
            engine.complete("animals", TEXTS[:1])
        with pytest.raises(RunError, match="the warm-up failed: DATA_LOSS: the device is gone"):
            engine.wait_until_ready(1)


@pytest.mark.parametrize(
    ("names", "ensembles", "message"),
    [
        (["../a"], {}, "the name of a prompt is '../a', expected 1 to 64 letters, digits"),
        (["tiny-0"], {}, "two of model, prompts and ensembles are 'tiny-0'"),
        (["a"], {"e": ["a"]}, "ensemble 'e' has 1 prompts, expected 2"),
        (["a"], {"e": ["a", "b"]}, "ensemble 'e': unknown prompt 'b'; the bank has a"),
        (["a", "b"], {"e": ["a", "b"]}, "the prompts of ensemble 'e' have different label words"),
        (["a", "b"], {"a": ["a", "b"]}, "have different label words|are 'a'"),
    ],
)
def test_names_that_cannot_be_told_apart_are_refused(backbone, paths, names, ensembles, message):
    given = dict(zip(names, (paths["animals"], paths["pairs"])))
    with pytest.raises(ValueError, match=message):
        Engine(backbone, given, CONFIG, ensembles=ensembles)


def test_an_engine_without_a_folder_loads_nothing(backbone, paths):
    engine = Engine(backbone, paths, CONFIG)
    for change in (engine.load, engine.unload):
        with pytest.raises(
            ValueError, match="prompts cannot be loaded or unloaded here; start the"
        ):
            change("animals")


@pytest.mark.slow
def test_a_mesh_of_eight_devices_gives_the_same_answers(engine, paths, folder):
    mesh = MeshConfig(data=4, model=2)
    spread = load_backbone(str(folder / "tiny"), mesh=mesh)
    config = dataclasses.replace(CONFIG, buckets=())
    with Engine(spread, paths, config, ensembles={"both": ["animals", "plants"]}) as other:
        for name in ("animals", "both", "tiny-0"):
            expected = engine.complete(name, TEXTS).result(60)
            found = other.complete(name, TEXTS).result(300)
            assert [answer.text for answer in found] == [answer.text for answer in expected]
        labels = [
            [ranking.labels for ranking in of.classify(["animals", "both"], TEXTS).result(60)]
            for of in (engine, other)
        ]
        for ours, theirs in zip(*labels, strict=True):
            assert [x.label for x in ours] == [x.label for x in theirs]
