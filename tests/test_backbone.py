import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from support import tiny

from spt_jax.models.backbone import _precision_note, backbone_names, describe, load_backbone
from spt_jax.pytree import count_params, fingerprint, named_leaves


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.write_backbone(tmp_path_factory.mktemp("backbone") / "tiny")


def test_a_saved_backbone_loads_every_leaf(folder):
    backbone = load_backbone(str(folder))
    stored = load_file(folder / "model.safetensors")
    loaded = dict(named_leaves(backbone.params))
    assert loaded.keys() == stored.keys()
    for name, leaf in loaded.items():
        assert leaf.dtype == jnp.float32
        np.testing.assert_array_equal(np.asarray(leaf), stored[name].astype(np.float32))
    assert backbone.name == "tiny-0" and count_params(backbone.params) == 16_624


def test_fingerprint_is_that_of_the_stored_weights_whatever_the_dtype(folder):
    expected = fingerprint(load_file(folder / "model.safetensors"))
    assert load_backbone(str(folder)).fingerprint == expected
    assert load_backbone(str(folder), param_dtype="bfloat16").fingerprint == expected


def broken(folder, tmp_path, change):
    other = tmp_path / "broken"
    shutil.copytree(folder, other)
    weights = load_file(other / "model.safetensors")
    change(weights)
    save_file(weights, other / "model.safetensors")
    return str(other)


def test_a_missing_leaf_is_not_filled(folder, tmp_path):
    def change(weights):
        del weights["decoder/decoder_norm/scale"]

    with pytest.raises(ValueError, match=r"do not fit its config: missing decoder/decoder_norm/sc"):
        load_backbone(broken(folder, tmp_path, change))


def test_an_unused_tensor_is_not_dropped(folder, tmp_path):
    def change(weights):
        weights["encoder/extra"] = np.zeros(3, np.float32)

    with pytest.raises(ValueError, match=r"unexpected encoder/extra \(3,\)"):
        load_backbone(broken(folder, tmp_path, change))


def test_a_wrong_shape_is_named(folder, tmp_path):
    def change(weights):
        weights["encoder/encoder_norm/scale"] = np.zeros(3, np.float32)

    with pytest.raises(ValueError, match=r"encoder_norm/scale has shape \(3,\), expected \(16,\)"):
        load_backbone(broken(folder, tmp_path, change))


def test_a_truncated_file_is_refused(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "short")
    file = tmp_path / "short" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ValueError, match="weights .*model.safetensors cannot be read"):
        load_backbone(str(tmp_path / "short"))


def test_an_unknown_model_is_refused_with_a_suggestion():
    with pytest.raises(ValueError, match=r"unknown model 'spt-nanno'.*did you mean 'spt-nano'"):
        load_backbone("spt-nanno")


def test_the_bundled_backbone_is_whole_and_within_its_size():
    assert "spt-nano" in backbone_names()
    backbone = load_backbone("spt-nano")
    described = describe("spt-nano", 20)
    assert described["frozen_params"] == count_params(backbone.params)
    assert described["trained_params"] == 20 * backbone.model.config.d_model
    from spt_jax.models.backbone import BUNDLED

    files = [file for file in (BUNDLED / "spt-nano").rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) <= 15_000_000
    stored = load_file(BUNDLED / "spt-nano" / "model.safetensors")
    assert {str(x.dtype) for x in stored.values()} == {"bfloat16"}
    assert fingerprint(stored) == backbone.fingerprint


def test_a_prompt_of_a_published_shape_is_described_without_its_weights():
    described = describe("t5-v1_1-xxl", 100)
    # Lester et al. 2021, table 4.
    assert described["trained_params"] == 409_600
    assert described["frozen_params"] + 409_600 == 11_135_741_952
    assert round(described["trained_percent"], 5) == 0.00368
    assert json.dumps(described)


def test_float32_on_an_accelerator_says_what_products_do(monkeypatch):
    assert _precision_note("float32", "cpu") is None
    assert _precision_note("bfloat16", "tpu") is None
    for platform in ("tpu", "gpu"):
        assert "set JAX_DEFAULT_MATMUL_PRECISION=highest" in _precision_note("float32", platform)
    with jax.default_matmul_precision("highest"):
        assert _precision_note("float32", "tpu") is None
