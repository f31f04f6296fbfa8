"""A prompt file loads as it was written, or says what is wrong with it."""

import json
import os
import struct

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from spt_jax.prompts.file import load_prompt, save_prompt

PROMPT = np.random.default_rng(0).normal(size=(5, 8)).astype(np.float32)


def test_round_trip(tmp_path):
    path = tmp_path / "prompt.safetensors"
    save_prompt(path, np.zeros((2, 2), np.float32), {})
    save_prompt(path, jnp.asarray(PROMPT), {"model": "spt-nano", "length": 5, "score": 81.25})
    prompt, metadata = load_prompt(path)
    assert prompt.dtype == np.float32 and prompt.flags.writeable
    assert prompt.tobytes() == PROMPT.tobytes()
    assert metadata == {"model": "spt-nano", "length": "5", "score": "81.25"}
    assert list(load_file(path)) == ["prompt"]
    assert os.listdir(tmp_path) == ["prompt.safetensors"]


def test_a_transposed_prompt_keeps_its_rows(tmp_path):
    save_prompt(tmp_path / "p", PROMPT.T, {})
    np.testing.assert_array_equal(load_prompt(tmp_path / "p")[0], PROMPT.T)


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="no.safetensors does not exist; expected a file"):
        load_prompt(tmp_path / "no.safetensors")
    with pytest.raises(FileNotFoundError, match="is a folder; expected a file"):
        load_prompt(tmp_path)


@pytest.mark.parametrize("data", [b"", b"hello", b"\x00" * 64, struct.pack("<Q", 2**60) + b"{}"])
def test_not_a_safetensors_file(tmp_path, data):
    (tmp_path / "p").write_bytes(data)
    with pytest.raises(ValueError, match="p is not a whole safetensors file .*give a prompt"):
        load_prompt(tmp_path / "p")


def test_a_truncated_file(tmp_path):
    save_prompt(tmp_path / "p", PROMPT, {})
    (tmp_path / "p").write_bytes((tmp_path / "p").read_bytes()[:-1])
    with pytest.raises(ValueError, match="p is not a whole safetensors file"):
        load_prompt(tmp_path / "p")


def test_another_tensor_name(tmp_path):
    save_file({"prompt_embeddings": PROMPT}, tmp_path / "p")
    with pytest.raises(ValueError, match=r"\['prompt_embeddings'\], expected one named 'prompt'"):
        load_prompt(tmp_path / "p")


@pytest.mark.parametrize(
    "array, shown",
    [
        (PROMPT[0], r"float32\[8\]"),
        (PROMPT[None], r"float32\[1, 5, 8\]"),
        (PROMPT[:0], r"float32\[0, 8\]"),
        (PROMPT.astype(np.float64), r"F64\[5, 8\]"),
        (PROMPT.astype(np.float16), r"F16\[5, 8\]"),
    ],
)
def test_another_shape_or_dtype(tmp_path, array, shown):
    save_file({"prompt": array}, tmp_path / "p")
    with pytest.raises(ValueError, match=f"p is {shown}, expected float32"):
        load_prompt(tmp_path / "p")


def test_bfloat16_is_named(tmp_path):
    header = json.dumps({"prompt": {"dtype": "BF16", "shape": [1, 2], "data_offsets": [0, 4]}})
    (tmp_path / "p").write_bytes(struct.pack("<Q", len(header)) + header.encode() + b"\x00" * 4)
    with pytest.raises(ValueError, match=r"p is BF16\[1, 2\], expected float32"):
        load_prompt(tmp_path / "p")


def test_values_that_are_not_finite(tmp_path):
    bad = PROMPT.copy()
    bad[1, 2], bad[3, 4] = np.nan, np.inf
    save_file({"prompt": bad}, tmp_path / "p")
    with pytest.raises(ValueError, match="p has 2 of 40 values that are NaN or inf, expected fin"):
        load_prompt(tmp_path / "p")


def test_a_bad_prompt_is_not_written(tmp_path):
    save_prompt(tmp_path / "p", PROMPT, {})
    for bad, match in (
        (PROMPT * np.float32(np.nan), "40 of 40 values that are NaN or inf, expected finite"),
        (PROMPT.astype(np.float64), r"float64\[5, 8\], expected float32"),
        (PROMPT[0], r"float32\[8\], expected float32"),
    ):
        with pytest.raises(ValueError, match=match):
            save_prompt(tmp_path / "p", bad, {})
    np.testing.assert_array_equal(load_prompt(tmp_path / "p")[0], PROMPT)
