import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spt_jax.decoding.topk import GROUP, top_k

find = jax.jit(top_k, static_argnums=1)
expect = jax.jit(jax.lax.top_k, static_argnums=1)


@pytest.mark.parametrize("width, k", [(9 * GROUP, 4), (9 * GROUP - 5, 1), (2 * GROUP + 1, 3)])
def test_it_is_that_of_jax_with_all_ties(width, k):
    rng = np.random.default_rng(width)
    rows = rng.integers(0, 40, (30, width)).astype(np.float32)  # each value many times
    rows[0] = -np.inf
    rows[1] = 7.0
    rows[2] = np.where(np.arange(width) == width - 1, 0.0, -np.inf)
    rows[3:10] = np.where(rng.random((7, width)) < 2 / width, rows[3:10], -np.inf)
    rows[10:13, ::3] = rows[10:13].max()  # more of the largest than k, in every group
    values, places = find(jnp.asarray(rows), k)
    expected, expected_places = expect(rows, k)
    np.testing.assert_array_equal(values, expected)
    np.testing.assert_array_equal(places, expected_places)


def test_the_first_is_that_of_argmax():
    rows = np.random.default_rng(0).normal(size=(40, 11 * GROUP)).astype(np.float32).round(1)
    np.testing.assert_array_equal(find(jnp.asarray(rows), 1)[1][:, 0], rows.argmax(axis=1))
