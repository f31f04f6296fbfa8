"""Attention that keeps no weights, beside autodiff of softmax."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spt_jax.t5.attend import attend


def arrays(layout, dtype=jnp.float64):
    sizes = {"B": 2, "N": 3, "S": 7, "H": 4}
    keys = jax.random.split(jax.random.key(0), 5)
    shape = [sizes[axis] for axis in layout]
    queries = jax.random.normal(keys[0], (2, 5, 3, 4), dtype)
    ours, theirs = (jax.random.normal(key, shape, dtype) for key in keys[1:3])
    bias = jax.random.normal(keys[3], (1, 3, 5, 7), dtype)
    # The second row is padding alone.
    mask = (jnp.arange(7)[None] < jnp.array([[4], [0]]))[:, None, None, :]
    grads = jax.random.normal(keys[4], (2, 5, 3, 4), dtype)
    return (queries, ours, theirs, bias), mask, grads


@pytest.mark.parametrize("layout", ["BSNH", "BNHS", "BSH"])
@pytest.mark.parametrize("with_bias", [True, False])
def test_weights_that_are_not_kept_change_nothing(layout, with_bias):
    with jax.enable_x64(True):
        (*inputs, bias), mask, grads = arrays(layout)
        inputs = (*inputs, bias) if with_bias else inputs

        def run(*inputs, keep_weights):
            queries, keys, values, *bias = inputs
            options = dict(layout=layout, keep_weights=keep_weights)
            return attend(queries, keys, values, mask, *(bias or [None]), None, **options)

        (kept, kept_vjp), (found, vjp) = (
            jax.vjp(lambda *x, keep=keep: run(*x, keep_weights=keep), *inputs)
            for keep in (True, False)
        )
        np.testing.assert_allclose(found, kept, atol=1e-12)
        for ours, autodiff in zip(vjp(grads), kept_vjp(grads), strict=True):
            np.testing.assert_allclose(ours, autodiff, atol=1e-12)


def test_nothing_of_the_size_of_the_weights_is_kept():
    (*inputs, bias), mask, _ = arrays("BSNH", jnp.bfloat16)

    def kept(keep_weights):
        def run(*inputs):
            return attend(*inputs, mask, bias, None, layout="BSNH", keep_weights=keep_weights)

        return [
            x.shape for x in jax.tree.leaves(jax.eval_shape(lambda x: jax.vjp(run, *x)[1], inputs))
        ]

    weights = (2, 3, 5, 7)
    assert weights in kept(True) and weights not in kept(False)


def test_dropping_keys_is_the_same_on_weights_and_on_values():
    (queries, keys, values, bias), mask, _ = arrays("BSNH", jnp.float32)
    keep = 2.0 * jax.random.bernoulli(jax.random.key(1), 0.5, (2, 3, 1, 7))
    of_values = attend(queries, keys, values, mask, bias, keep, layout="BSNH", keep_weights=False)
    weights = attend(
        queries,
        keys,
        jnp.broadcast_to(jnp.eye(7)[None, :, None], (2, 7, 3, 7)),
        mask,
        bias,
        None,
        layout="BSNH",
        keep_weights=True,
    )
    of_weights = jnp.einsum("BTNS,BNXS,BSNH->BTNH", weights, keep, values)
    np.testing.assert_allclose(of_values, of_weights, atol=1e-6)
    assert (
        jnp.abs(
            of_values
            - attend(queries, keys, values, mask, bias, None, layout="BSNH", keep_weights=True)
        ).max()
        > 0.1
    )


def test_shared_keys_cannot_be_dropped_without_their_weights():
    (queries, keys, values, bias), mask, _ = arrays("BSH", jnp.float32)
    keep = jnp.ones((2, 3, 1, 7))
    with pytest.raises(ValueError, match=r"layout BSH drops weights, so it must keep them"):
        attend(queries, keys, values, mask, bias, keep, layout="BSH", keep_weights=False)
    found = attend(queries, keys, values, mask, bias, 0 * keep, layout="BSH", keep_weights=True)
    assert not found.any()
