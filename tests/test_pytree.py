import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spt_jax.pytree import (
    count_params,
    device_digest,
    fingerprint,
    label_params,
    merge,
    named_leaves,
    nbytes,
    split,
)

PARAMS = {
    "t5": {"prompt": jnp.arange(3.0), "layers": {"kernel": jnp.ones((2, 2), jnp.bfloat16)}},
    "prompt": jnp.zeros((2, 3)),
}


def test_only_the_leaf_named_prompt_is_trained():
    # A frozen weight that is called prompt too stays frozen.
    labels = label_params(PARAMS, "prompt")
    assert labels == {
        "t5": {"prompt": "frozen", "layers": {"kernel": "frozen"}},
        "prompt": "trained",
    }
    assert set(jax.tree.leaves(label_params(PARAMS, "model"))) == {"trained"}


def test_split_leaves_holes_and_merge_fills_them():
    trained, frozen = split(PARAMS, label_params(PARAMS, "prompt"))
    assert [name for name, _ in named_leaves(trained)] == ["prompt"]
    assert [name for name, _ in named_leaves(frozen)] == ["t5/layers/kernel", "t5/prompt"]
    merged = merge(trained, frozen)
    assert jax.tree.structure(merged) == jax.tree.structure(PARAMS)
    assert all(a is b for a, b in zip(jax.tree.leaves(merged), jax.tree.leaves(PARAMS)))


def test_counts_and_bytes():
    assert count_params(PARAMS) == 3 + 4 + 6
    assert nbytes(PARAMS) == 4 * 3 + 2 * 4 + 4 * 6


def test_fingerprint_sees_names_shapes_dtypes_and_bytes():
    base = {"a": np.zeros((2, 3), np.float32)}
    others = [
        {"b": np.zeros((2, 3), np.float32)},
        {"a": np.zeros((3, 2), np.float32)},
        {"a": np.zeros((2, 3), np.int32)},
        {"a": np.full((2, 3), -0.0, np.float32)},
    ]
    assert fingerprint({"a": np.zeros((2, 3), np.float32)}) == fingerprint(base)
    assert len({fingerprint(tree) for tree in [base, *others]}) == 5


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.int8])
def test_device_digest_sees_one_bit_and_a_swap(dtype):
    base = jnp.arange(1, 13).reshape(3, 4).astype(dtype)
    flipped = base.at[2, 3].set(-base[2, 3])
    swapped = base.at[0, 0].set(base[0, 1]).at[0, 1].set(base[0, 0])
    assert device_digest({"w": base}) == device_digest({"w": jnp.array(base)})
    assert device_digest({"w": base}) != device_digest({"w": flipped})
    assert device_digest({"w": base}) != device_digest({"w": swapped})


def test_device_digest_tells_zero_from_minus_zero():
    zero = jnp.zeros((4,))
    assert device_digest({"w": zero}) != device_digest({"w": -zero})


def test_unknown_tune_is_refused():
    with pytest.raises(ValueError, match="tune is 'all', expected 'prompt' or 'model'"):
        label_params(PARAMS, "all")
