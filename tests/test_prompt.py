import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.decoding import SHAPE
from support.fakes import FakeTokenizer

from spt_jax.config.train import PromptConfig
from spt_jax.models.backbone import Backbone
from spt_jax.prompts.file import save_prompt
from spt_jax.prompts.init import from_labels, from_text, from_vocab, init_prompt
from spt_jax.t5 import T5

KEY = jax.random.key(0)
TABLE = jnp.arange(400 * 6, dtype=jnp.float32).reshape(400, 6)
BACKBONE = Backbone(
    "six",
    T5(dataclasses.replace(SHAPE, d_model=6)),
    {"token_embedder": {"embedding": TABLE}},
    FakeTokenizer(),
    "6" * 64,
)


def init(**options):
    config = PromptConfig(**{"length": 9, **options})
    return init_prompt(config, KEY, BACKBONE, ["ab", "c"])


def rows_of(prompt):
    """The row of TABLE that each vector is; fails where it is none."""
    numbers = np.asarray(prompt)[:, 0] / 6
    np.testing.assert_array_equal(TABLE[numbers.astype(int)], prompt)
    return numbers.astype(int).tolist()


@pytest.mark.parametrize(
    "init_name, low, high", [("uniform_paper", -0.5, 0.5), ("uniform_official", 0.0, 0.5)]
)
def test_uniform_fills_its_range(init_name, low, high):
    prompt = init(length=2000, init=init_name)
    assert prompt.dtype == jnp.float32 and prompt.shape == (2000, 6)
    assert low <= prompt.min() < low + 0.01 and high - 0.01 < prompt.max() <= high


def test_sampled_vocab_draws_different_rows():
    rows = rows_of(init(length=300, init="sampled_vocab"))
    assert len(set(rows)) == 300
    assert rows != sorted(rows)


def test_sampled_vocab_draws_from_the_first_5000_only():
    table = jnp.arange(6000.0)[:, None] * jnp.ones((1, 2))
    drawn = from_vocab(KEY, table, 4900)
    assert float(drawn.max()) < 5000 and len(set(np.asarray(drawn)[:, 0].tolist())) == 4900


def test_sampled_vocab_repeats_only_where_it_must():
    with pytest.warns(UserWarning, match="length 500 exceeds the 400 tokens to sample from"):
        prompt = from_vocab(KEY, TABLE, 500)
    assert len(set(rows_of(prompt))) < 400


def test_class_labels_are_the_mean_of_their_tokens_and_the_rest_is_sampled():
    prompt = init(init="class_labels")
    a, b, c = (TABLE[ord(letter) + 3] for letter in "abc")
    np.testing.assert_array_equal(prompt[0], (a + b) / 2)
    np.testing.assert_array_equal(prompt[1], c)
    np.testing.assert_array_equal(prompt[2:], init(init="sampled_vocab")[2:])


def test_labels_beyond_the_length_are_left_out_with_a_warning():
    with pytest.warns(UserWarning, match="length 1 holds 1 of the 2 label words"):
        prompt = from_labels(KEY, TABLE, 1, [[5], [6]])
    np.testing.assert_array_equal(prompt, TABLE[5:6])


def test_text_starts_the_prompt_without_an_end_marker():
    assert rows_of(init(init="text", text="xyz"))[:3] == [ord(letter) + 3 for letter in "xyz"]
    assert rows_of(from_text(KEY, TABLE, 2, [7, 8, 9])) == [7, 8]
    with pytest.raises(ValueError, match="prompt.text '' has no tokens"):
        init(init="text", text="")


def test_file_takes_safetensors_npy_and_run_folders(tmp_path):
    prompt = np.arange(54, dtype=np.float32).reshape(9, 6)
    save_prompt(tmp_path / "prompt.safetensors", prompt, {"fingerprint": "6" * 64})
    np.save(tmp_path / "official.npy", prompt)
    for name in ("prompt.safetensors", "official.npy", "."):
        loaded = init(init="file", file=str(tmp_path / name))
        assert loaded.dtype == jnp.float32
        np.testing.assert_array_equal(loaded, prompt)


NAN = np.zeros((9, 6), np.float32)
NAN[0, 0] = np.nan


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((9, 8), np.float32), "p.npy has d_model 8 but 'six' has 6; give the model that"),
        (np.zeros((7, 6), np.float32), "has 7 vectors but prompt.length is 9; set prompt.length t"),
        (NAN, "p.npy has 1 of 54 values that are NaN or inf, expected finite ones"),
        (
            np.zeros((9, 6), np.int64),
            r"p.npy holds int64 \[9, 6\]; expected a .npy file",
        ),
        (
            np.zeros((9, 6), np.complex64),
            r"p.npy holds complex64 \[9, 6\]; expected a .npy file",
        ),
        (
            np.zeros((9, 6), np.float64),
            r"p.npy holds float64 \[9, 6\]; expected a .npy file",
        ),
    ],
    ids=["width", "length", "NaN", "int64", "complex", "float64"],
)
def test_files_that_do_not_fit_are_refused(tmp_path, array, message):
    np.save(tmp_path / "p.npy", array)
    with pytest.raises(ValueError, match=message):
        init(init="file", file=str(tmp_path / "p.npy"))


def test_a_file_of_another_model_or_none_is_refused(tmp_path):
    prompt = np.zeros((9, 6), np.float32)
    save_prompt(tmp_path / "prompt.safetensors", prompt, {"model": "b", "fingerprint": "b" * 64})
    with pytest.raises(ValueError, match="was trained on model 'b' with fingerprint bbbbbbbbbbbb "):
        init(init="file", file=str(tmp_path))
    (tmp_path / "config.yaml").write_text("tune: model")
    with pytest.raises(ValueError, match="tuned the model, so its prompt serves no other model"):
        init(init="file", file=str(tmp_path))
    with pytest.raises(FileNotFoundError, match="prompt file .*nothing.npy does not exist"):
        init(init="file", file=str(tmp_path / "nothing.npy"))


def test_the_key_decides_what_is_drawn():
    config = PromptConfig(length=9, init="sampled_vocab")
    one, same, other = (
        rows_of(init_prompt(config, jax.random.key(k), BACKBONE, None)) for k in (1, 1, 2)
    )
    assert one == same != other
