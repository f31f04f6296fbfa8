"""One params tree, cut in two: the trained leaves and the frozen ones.

    params            = {"t5": {"a": 1, "b": 2}, "prompt": 3}
    split(params, ..) = {"t5": {"a": None, "b": None}, "prompt": 3},      trained
                        {"t5": {"a": 1, "b": 2}, "prompt": None}          frozen
    merge(trained, frozen) = params

None is jax's empty subtree, so a gradient or an optimizer state of `trained` has no leaf where a
weight is frozen: the gradient of a frozen model never exists, whatever the compiler does.
"""

import hashlib
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from spt_jax.typing import PyTree

TRAINED, FROZEN = "trained", "frozen"

VECTORS, FACTORS = "vectors", "factors"
"""The two kinds of leaves of a prompt that is not trained directly; `prompts/parameterization.py`
says what they are, and `optim.py` how they are trained."""


def leaf_name(path) -> str:
    """`t5/encoder/layers/attention/query/kernel` for a jax key path."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def named_leaves(tree: PyTree) -> Iterator[tuple[str, jax.Array]]:
    """(name, leaf) of every leaf, sorted by name."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    yield from sorted(((leaf_name(path), leaf) for path, leaf in leaves), key=lambda item: item[0])


def label_params(params: PyTree, tune: str) -> PyTree:
    """Marks every leaf `trained` or `frozen`.

    Args:
        params: The params tree, or one like it with holes.
        tune: `prompt` trains the leaf or the leaves at `prompt` alone, `model` trains every leaf.

    Raises:
        ValueError: `tune` is neither.
    """
    if tune not in ("prompt", "model"):
        raise ValueError(f"tune is {tune!r}, expected 'prompt' or 'model'")

    def label(path, leaf):
        of_prompt = leaf_name(path).split("/")[0] == "prompt"
        return TRAINED if tune == "model" or of_prompt else FROZEN

    return jax.tree_util.tree_map_with_path(label, params)


def split(params: PyTree, labels: PyTree) -> tuple[PyTree, PyTree]:
    """(trained, frozen), each shaped like `params` with None where the other has a leaf."""
    trained = jax.tree.map(lambda leaf, label: leaf if label == TRAINED else None, params, labels)
    frozen = jax.tree.map(lambda leaf, label: leaf if label == FROZEN else None, params, labels)
    return trained, frozen


def merge(trained: PyTree, frozen: PyTree) -> PyTree:
    """The params tree of which `split` made `trained` and `frozen`."""
    return jax.tree.map(
        lambda a, b: b if a is None else a, trained, frozen, is_leaf=lambda leaf: leaf is None
    )


def count_params(tree: PyTree) -> int:
    """Number of scalars in all leaves, without the scales of weights in int8."""
    leaves = ((name.split("/")[-1], leaf) for name, leaf in named_leaves(tree))
    return sum(int(np.prod(leaf.shape)) for name, leaf in leaves if name != "scales")


def nbytes(tree: PyTree) -> int:
    """Bytes of all leaves."""
    return sum(int(np.prod(x.shape)) * np.dtype(x.dtype).itemsize for x in jax.tree.leaves(tree))


def fingerprint(tree: PyTree) -> str:
    """sha256 over the sorted (name, shape, dtype, bytes) of the leaves: the identity of a model.

    Taken once of the source weights, before any cast, so that neither the dtype at load nor
    sharding changes it.
    """
    digest = hashlib.sha256()
    for name, leaf in named_leaves(tree):
        array = np.asarray(leaf)
        digest.update(f"{name} {array.shape} {array.dtype}\n".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


_WORDS = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint64}


@jax.jit
def _bit_sums(tree: PyTree) -> PyTree:
    def bit_sum(leaf):
        if leaf.dtype == jnp.bool_:
            leaf = leaf.astype(jnp.uint8)
        word = _WORDS[leaf.dtype.itemsize]
        bits = jax.lax.bitcast_convert_type(leaf, word).reshape(-1)
        # An odd multiplier for each place: a changed bit, and two swapped words, change the sum.
        place = jax.lax.iota(jnp.uint32, bits.size) * jnp.uint32(2654435761) | jnp.uint32(1)
        low = bits.astype(jnp.uint32)
        high = (bits >> (bits.dtype.itemsize * 4)).astype(jnp.uint32)
        return jnp.stack([jnp.sum(low * place), jnp.sum((high + jnp.uint32(1)) * place)])

    return jax.tree.map(bit_sum, tree)


def device_digest(tree: PyTree) -> dict[str, tuple[int, int]]:
    """A 64-bit checksum of each leaf by name, computed where the leaf lives.

    Two calls agree where the leaf is bit-identical; a single changed word always changes it. It
    costs one pass over the weights and moves eight bytes a leaf, so an 11B model can be checked.
    """
    sums = jax.device_get(_bit_sums(tree))
    return {name: (int(pair[0]), int(pair[1])) for name, pair in named_leaves(sums)}
