"""What a model writes is compared with what it can write: over all of Unicode's blocks.

A model that writes exactly the tokens of the target scores 100, or the run is refused before it
trains.
"""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import tiny

from spt_jax.config.train import DataConfig
from spt_jax.data.example import Example
from spt_jax.data.pipeline import tokenize_split
from spt_jax.evaluation import scores as module
from spt_jax.evaluation.evaluate import evaluate
from spt_jax.evaluation.scores import TaskRows, encode_answers, label_of_text, score
from spt_jax.models.backbone import load_backbone
from spt_jax.models.open import find_tokenizer
from spt_jax.tokenizers.published import ByteTokenizer, load_tokenizer

DATA = DataConfig(inputs_length=16, targets_length=4000)
TEXTS = ("½", "™", "ﬁne", "cafe\u0301", "①", "Ａ", "a\u00a0b", "…", "“x”", "Å", "㎏", "x²", "ö")


@pytest.fixture(scope="module", params=["bundled", "t5", "byt5"])
def tokenizer(request):
    if request.param == "t5":
        import os
        from pathlib import Path

        if not os.environ.get("SPT_JAX_DATA"):
            pytest.skip("SPT_JAX_DATA is not set; it has T5's spiece.model in t5/")
        return load_tokenizer(Path(os.environ["SPT_JAX_DATA"]) / "t5" / "spiece.model")
    return find_tokenizer("spt-nano") if request.param == "bundled" else ByteTokenizer()


def blocks():
    """A text from each 64 characters that are no control, surrogate or blank."""
    for start in range(0, 0x110000, 64):
        letters = map(chr, range(start, start + 64))
        text = "".join(c for c in letters if c.isprintable() and not c.isspace())
        if text:
            yield text


def write(rows, tokenizer, words=None):
    """The score of a model that writes exactly the tokens of the targets."""
    texts = [tokenizer.decode(row.tolist()) for row in rows.targets]
    known = label_of_text(words or (), tokenizer)
    texts = [known.get(module.normalize(text), text) for text in texts]
    task = TaskRows(rows, words, DATA, None)
    return score(task, module.Outputs(tuple(texts), None))


def test_free_text_of_every_block_scores_100_or_is_refused(tokenizer):
    written, refused = [], 0
    for text in blocks():
        try:
            rows = tokenize_split([Example("x", text)], tokenizer, DATA, free_text=True)
        except ValueError as error:
            assert "1 of 1 targets cannot be written" in str(error)
            refused += 1
            continue
        written.append(text)
        assert write(rows, tokenizer).score == 100, text
    assert len(written) > 20 and (refused == 0) == isinstance(tokenizer, ByteTokenizer)
    rows = tokenize_split([Example("x", t) for t in written], tokenizer, DATA, free_text=True)
    assert write(rows, tokenizer).score == 100


def test_labels_of_every_block_score_100_or_are_refused(tokenizer):
    fine = 0
    for text in blocks():
        for label in {text, text[0], f"a{text[-1]}"}:
            try:
                encode_answers([label], tokenizer, DATA.targets_length)
            except ValueError as error:
                assert "does not know" in str(error) or "leaves nothing of it" in str(error)
                continue
            fine += 1
            rows = tokenize_split([Example("x", label)], tokenizer, DATA)
            found = write(rows, tokenizer, (label,))
            assert (found.score, found.invalid) == (100, 0), label
    assert fine > 20


@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(
    texts=st.lists(
        st.one_of(st.text(max_size=8), st.text(st.sampled_from("".join(TEXTS)), max_size=8)),
        min_size=1,
        max_size=3,
        unique=True,
    )
)
def test_any_labels_score_100_or_are_refused(tokenizer, texts):
    texts = [" ".join(t.encode("utf-8", "replace").decode().split()) for t in texts]
    try:
        encode_answers(texts, tokenizer, DATA.targets_length)
    except ValueError:
        return
    rows = tokenize_split([Example("x", text) for text in texts], tokenizer, DATA)
    found = write(rows, tokenizer, tuple(texts))
    assert (found.score, found.invalid) == (100, 0)


def test_two_labels_that_become_one_are_named():
    with pytest.raises(ValueError, match="label words '1⁄2 .' and '½ .' are .* the same text, '"):
        encode_answers(["1⁄2 .", "½ ."], find_known("1⁄2 ."), 100)


def find_known(text):
    """A tokenizer that knows the characters of a text, as the bundled one knows English."""
    from spt_jax.tokenizers.bpe import train_tokenizer

    return train_tokenizer([text] * 3, 200)


def test_targets_with_unknown_characters_are_counted_and_scored_without_them():
    tokenizer = find_tokenizer("spt-nano")
    examples = [Example("x", "a word 漢"), Example("x", "a word"), Example("x", "b", ("漢 b", "b"))]
    rows = tokenize_split(examples, tokenizer, DATA, free_text=True)
    assert rows.unknown_targets == pytest.approx(1 / 3)
    assert [e.targets.strip() for e in rows.examples] == ["a word", "a word", "b"]
    assert [answer.strip() for answer in rows.examples[2].answers] == ["b", "b"]
    examples = [Example("x", "漢字", ("漢字", "字", "b")), *[Example("x", "b")] * 99]
    rows = tokenize_split(examples, tokenizer, DATA, free_text=True)
    assert rows.examples[0].targets == "漢字"  # of which an empty output is not a copy
    assert [answer.strip() for answer in rows.examples[0].answers] == ["b"]
    (row,) = tokenize_split(examples[:1] * 1, ByteTokenizer(), DATA, free_text=True).examples
    assert row == examples[0]
    with pytest.raises(ValueError, match="1 of 2 targets cannot .*, such as '漢字': the tok"):
        tokenize_split([Example("x", "漢字"), examples[1]], tokenizer, DATA, free_text=True)


def test_a_prediction_is_the_label_word_whose_tokens_it_is(tmp_path, monkeypatch):
    tiny.write_backbone(tmp_path / "tiny")
    backbone = load_backbone(str(tmp_path / "tiny"))
    words = ("\uff43at", "dog")  # the first letter is written as a plain c
    data = DataConfig(inputs_length=16, targets_length=6)
    examples = [Example("the oak", words[0]), Example("the cat", words[1])]
    rows = tokenize_split(examples, backbone.tokenizer, data)

    def answer(model, params, bank, inputs, of_rows, data, batch_size):
        ids = np.zeros((2, 1, data.targets_length), np.int32)
        for number, target in enumerate(rows.targets):
            ids[number, 0, : len(target)] = target
        yield np.arange(2), ids, np.zeros((2, 2), np.float32)

    monkeypatch.setattr(module, "answer_batches", answer)
    found = evaluate(
        backbone, {"t5": backbone.params}, rows, data, label_words=words, batch_size=8
    )  # fmt: skip
    assert found.predictions == words and (found.score, found.invalid) == (100, 0)
