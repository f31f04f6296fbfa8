"""Attention beside autodiff of softmax."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from spt_jax.t5.attend import attend, given


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


def autodiff(layout, queries, keys, values, mask, bias, keep):
    """Attention as it is written down, for autodiff."""
    scores = jnp.einsum(f"BTNH,{layout}->BNTS", queries, keys) + (0 if bias is None else bias)
    weights = jax.nn.softmax(jnp.where(mask, scores, -1e9), axis=-1)
    weights = weights if keep is None else weights * keep
    return jnp.einsum(f"BNTS,{layout}->BTNH", weights, values)


@pytest.mark.parametrize("keep_weights", [True, False])
@pytest.mark.parametrize("layout", ["BSNH", "BNHS", "BSH"])
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("drops", [True, False])
def test_values_and_gradients_are_those_of_autodiff(keep_weights, layout, with_bias, drops):
    with jax.enable_x64(True):
        (*inputs, bias), mask, grads = arrays(layout)
        inputs = (*inputs, bias) if with_bias else inputs
        keep = jax.random.bernoulli(jax.random.key(1), 0.5, (2, 3, 1, 7)) / 0.5 if drops else None

        def ours(queries, keys, values, bias=None):
            options = dict(layout=layout, keep_weights=keep_weights)
            return attend(Partial(given), (queries, keys, values), mask, bias, keep, **options)

        def theirs(queries, keys, values, bias=None):
            return autodiff(layout, queries, keys, values, mask, bias, keep)

        (found, vjp), (expected, their_vjp) = jax.vjp(ours, *inputs), jax.vjp(theirs, *inputs)
        np.testing.assert_allclose(found, expected, atol=1e-12)
        for gradient, their_gradient in zip(vjp(grads), their_vjp(grads), strict=True):
            np.testing.assert_allclose(gradient, their_gradient, atol=1e-12)


@pytest.mark.parametrize("keep_weights", [True, False])
@pytest.mark.parametrize("drops", [True, False])
def test_what_is_projected_again_has_the_gradients_of_autodiff(keep_weights, drops):
    with jax.enable_x64(True):
        x = jax.random.normal(jax.random.key(2), (2, 5, 6), jnp.float64)
        kernels = jax.random.normal(jax.random.key(3), (3, 6, 3, 4), jnp.float64)
        mask = (jnp.arange(5)[None] < jnp.array([[4], [0]]))[:, None, None, :]
        keep = jax.random.bernoulli(jax.random.key(1), 0.5, (2, 3, 1, 5)) / 0.5 if drops else None

        def project(kernels, x):
            return tuple(jnp.einsum("BTD,DNH->BTNH", x, kernel) for kernel in kernels)

        def ours(kernels, x):
            options = dict(layout="BSNH", keep_weights=keep_weights)
            return attend(Partial(project, kernels), (x,), mask, None, keep, **options)

        def theirs(kernels, x):
            return autodiff("BSNH", *project(kernels, x), mask, None, keep)

        (found, vjp), (expected, their_vjp) = (jax.vjp(f, kernels, x) for f in (ours, theirs))
        np.testing.assert_allclose(found, expected, atol=1e-12)
        grads = jnp.cos(expected)
        for gradient, their_gradient in zip(vjp(grads), their_vjp(grads), strict=True):
            np.testing.assert_allclose(gradient, their_gradient, atol=1e-12)


def test_nothing_of_the_size_of_the_weights_is_kept():
    (*inputs, bias), mask, _ = arrays("BSNH", jnp.bfloat16)

    def kept(keep_weights):
        def run(*inputs):
            options = dict(layout="BSNH", keep_weights=keep_weights)
            return attend(Partial(given), inputs, mask, bias, None, **options)

        return [
            x.shape for x in jax.tree.leaves(jax.eval_shape(lambda x: jax.vjp(run, *x)[1], inputs))
        ]

    weights = (2, 3, 5, 7)
    assert weights in kept(True) and weights not in kept(False)
