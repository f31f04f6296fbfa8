"""Attention: the plain body beside jax's own, and every faster version beside the plain body."""

import functools
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from spt_jax.t5 import attention, plain_attention
from spt_jax.t5.attention import dot_product_attention, project_and_attend
from spt_jax.t5.masks import seen

B, N, T, S, H = 2, 3, 5, 5, 4

PADDING = (np.arange(S) < np.array([[4], [0]]))[:, None, None, :]  # one row is padding alone
PACKED = np.array([[1, 1, 2, 2, 0], [1, 2, 2, 3, 3]])  # the example of each position
CAUSAL = np.tril(np.ones((T, S), bool))[None, None]
SEGMENTS = seen(PACKED > 0, PACKED, PACKED)
MASKS = np.stack([np.broadcast_to(mask, (B, 1, T, S)) for mask in (PADDING, CAUSAL, SEGMENTS)])


def inputs(layout, with_bias, dtype):
    rng = np.random.default_rng(0)  # numpy's, which is not compiled
    shape = [dict(B=B, S=S, N=N, H=H)[axis] for axis in layout]
    shapes = [(B, T, N, H), shape, shape] + [(1, N, T, S)] * with_bias
    return tuple(jnp.asarray(rng.standard_normal(shape), dtype) for shape in shapes)


def result_and_gradients(attend, arrays):
    result, pull = jax.vjp(attend, *arrays)
    return result, *pull(jnp.cos(3 * result))


def assert_close(found, expected, atol):
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=atol), found, expected)


def test_the_plain_body_is_jax_s_attention_without_its_scale():
    def compare(masks, drawn):
        for arrays in drawn:
            for attend in (
                plain_attention.plain_attention,
                functools.partial(jax.nn.dot_product_attention, scale=1.0),
            ):

                def masked(mask, attend=attend, arrays=arrays):
                    return result_and_gradients(functools.partial(attend, mask=mask), arrays)

                yield masked(None), masked(PADDING), jax.vmap(masked)(masks)

    drawn = [inputs("BSNH", with_bias, jnp.float32) for with_bias in (True, False)]
    found = jax.jit(lambda *arrays: list(compare(*arrays)))(MASKS, drawn)
    for ours, theirs in zip(found[::2], found[1::2], strict=True):
        assert_close(ours, theirs, 1e-6)


def test_the_plain_body_is_short_enough_to_be_read():
    assert len(Path(plain_attention.__file__).read_text().splitlines()) <= 60


@pytest.mark.parametrize("layout", ["BSNH", "BNHS", "BSH"])
@pytest.mark.parametrize("platform, targets", [("cpu", T), ("tpu", T), ("tpu", H - 1)])
def test_every_version_equals_the_plain_body(monkeypatch, platform, targets, layout):
    monkeypatch.setattr(attention, "platform", lambda mesh: platform)

    def compare(masks, drop, drawn):
        for (queries, keys, values, *bias), keep in zip(drawn, (drop, None, None), strict=True):
            arrays = queries[:, :targets], keys, values, *(b[:, :, :targets] for b in bias)
            for attend in (dot_product_attention, plain_attention.plain_attention):

                def masked(mask, attend=attend, arrays=arrays, keep=keep):
                    options = dict(mask=mask, keep=keep, layout=layout)
                    return result_and_gradients(functools.partial(attend, **options), arrays)

                yield jax.vmap(masked)(masks)

    with jax.enable_x64(True):
        drop = jax.random.bernoulli(jax.random.key(1), 0.5, (B, N, 1, S)) / 0.5
        drawn = [inputs(layout, with_bias, jnp.float64) for with_bias in (True, True, False)]
        run = jax.jit(lambda *arrays: list(compare(*arrays)))
        found = run(MASKS[..., :targets, :], drop, drawn)
        for ours, plain in zip(found[::2], found[1::2], strict=True):
            assert all(x.dtype == jnp.float64 for x in ours)
            assert_close(ours, plain, 1e-12)


def test_without_a_mask_every_key_is_seen():
    with jax.enable_x64(True):
        arrays = inputs("BSNH", True, jnp.float64)
        ours, plain = (
            jax.jit(functools.partial(result_and_gradients, attend))(arrays)
            for attend in (dot_product_attention, plain_attention.plain_attention)
        )
        assert_close(ours, plain, 1e-12)


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
def test_what_is_projected_again_has_the_gradients_of_the_plain_body(monkeypatch, platform):
    monkeypatch.setattr(attention, "platform", lambda mesh: platform)

    def project(kernels, x):
        return tuple(jnp.einsum("BTD,DNH->BTNH", x, kernel) for kernel in kernels)

    def ours(kernels, x, bias, keep):
        return project_and_attend(Partial(project, kernels), (x,), bias, PADDING, keep=keep)

    def plain(kernels, x, bias, keep):
        return plain_attention.plain_attention(*project(kernels, x), bias, PADDING, keep=keep)

    @jax.jit
    def compare(kernels, x, bias, drop):
        return [
            result_and_gradients(functools.partial(attend, keep=keep), (kernels, x, bias))
            for keep in (drop, None)
            for attend in (ours, plain)
        ]

    with jax.enable_x64(True):
        keys = jax.random.split(jax.random.key(2), 4)
        kernels = list(jax.random.normal(keys[0], (3, 6, N, H), jnp.float64))
        x = jax.random.normal(keys[1], (B, T, 6), jnp.float64)
        bias = jax.random.normal(keys[2], (1, N, T, S), jnp.float64)
        drop = jax.random.bernoulli(keys[3], 0.5, (B, N, 1, S)) / 0.5
        found = compare(kernels, x, bias, drop)
        assert_close(found[::2], found[1::2], 1e-12)


@pytest.mark.parametrize(
    "platform, targets, kept",
    [("cpu", T, True), ("gpu", T, True), ("tpu", T, False), ("tpu", H - 1, False)],
)
def test_weights_are_kept_for_the_backward_pass_only_off_the_tpu(
    monkeypatch, platform, targets, kept
):
    monkeypatch.setattr(attention, "platform", lambda mesh: platform)
    queries, *arrays, bias = inputs("BSNH", True, jnp.bfloat16)
    bias = bias[:, :, :targets]

    def run(*arrays):
        return dot_product_attention(*arrays, bias, PADDING)

    arrays = queries[:, :targets], *arrays
    saved = jax.tree.leaves(jax.eval_shape(lambda x: jax.vjp(run, *x)[1], arrays))
    assert ((B, N, targets, S) in [x.shape for x in saved]) == kept


def test_another_platform_runs_the_plain_body():
    device = types.SimpleNamespace(platform="METAL")
    mesh = types.SimpleNamespace(devices=np.array([device]), size=1)
    arrays = inputs("BSNH", True, jnp.float32)
    there = jax.make_jaxpr(functools.partial(dot_product_attention, mesh=mesh))(*arrays)
    here = jax.make_jaxpr(dot_product_attention)(*arrays)
    assert "custom_vjp" not in str(there) and "custom_vjp" in str(here)
