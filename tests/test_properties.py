"""Laws that hold for every input: what is taken apart, packed or written comes back, or fails."""

import string

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from support import tiny

from spt_jax.models.backbone import convert_backbone, load_backbone
from spt_jax.pretraining.packing import PackedRows
from spt_jax.prompts.bank import PromptBank
from spt_jax.prompts.file import load_prompt, save_prompt
from spt_jax.pytree import FROZEN, TRAINED, merge, named_leaves, split

names = st.text(string.ascii_lowercase, min_size=1, max_size=3)
finite = st.floats(-1e6, 1e6, width=32)
prompts = arrays.arrays(
    np.float32,
    arrays.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=5),
    elements=finite,
)


# Trees.

labeled = st.recursive(
    st.tuples(st.integers(), st.sampled_from([TRAINED, FROZEN])),
    lambda children: st.dictionaries(names, children, max_size=4),
    max_leaves=12,
)


def pick(tree, part):
    """The tree of the values (0) or of the labels (1)."""
    if isinstance(tree, dict):
        return {name: pick(child, part) for name, child in tree.items()}
    return tree[part]


@given(st.dictionaries(names, labeled, max_size=4))
def test_merge_undoes_split_and_no_leaf_is_on_both_sides(tree):
    params, labels = pick(tree, 0), pick(tree, 1)
    trained, frozen = split(params, labels)
    assert merge(trained, frozen) == merge(frozen, trained) == params
    label_of = dict(named_leaves(labels))
    for side, label in ((trained, TRAINED), (frozen, FROZEN)):
        expected = [name for name, found in label_of.items() if found == label]
        assert [name for name, _ in named_leaves(side)] == expected


# Banks.

CAPACITY, LENGTH, WIDTH = 3, 4, 2
bank_prompts = arrays.arrays(
    np.float32, st.tuples(st.integers(1, LENGTH), st.just(WIDTH)), elements=finite
)
changes = st.lists(st.tuples(st.sampled_from("abcd"), st.none() | bank_prompts), max_size=10)


@given(changes)
def test_a_bank_holds_what_a_dict_would_hold(steps):
    bank, held = PromptBank.empty(CAPACITY, LENGTH, WIDTH), {}
    for name, prompt in steps:
        possible = name in held if prompt is None else name not in held and len(held) < CAPACITY
        if not possible:
            with pytest.raises(ValueError, match="unknown prompt|already|finds no place"):
                bank.remove(name) if prompt is None else bank.add(name, prompt)
        elif prompt is None:
            bank = bank.remove(name)
            del held[name]
        else:
            bank = bank.add(name, prompt)
            held[name] = prompt
    assert {name for name in bank.names if name} == held.keys()
    vectors, mask = (np.asarray(x) for x in bank[bank.task_ids([*held, None])])
    for found, real, prompt in zip(vectors, mask, [*held.values(), np.zeros((0, WIDTH))]):
        free = LENGTH - len(prompt)
        assert real.tolist() == [False] * free + [True] * len(prompt)
        np.testing.assert_array_equal(found[free:], prompt)
    assert not np.any(np.asarray(bank.arrays.vectors)[~np.asarray(bank.arrays.mask)])


@given(bank_prompts, bank_prompts)
def test_removing_undoes_adding(one, other):
    bank = PromptBank.empty(CAPACITY, LENGTH, WIDTH).add("one", one)
    again = bank.add("other", other).remove("other")
    assert again.names == bank.names
    jax.tree.map(np.testing.assert_array_equal, again.arrays, bank.arrays)


# Packed rows.

tokens = st.lists(st.integers(1, 99), min_size=1, max_size=6)


@given(
    st.integers(1, 3), st.integers(1, 9), st.integers(1, 9),
    st.lists(st.tuples(tokens, tokens), max_size=9),
)  # fmt: skip
def test_packed_examples_are_read_back_and_refused_ones_had_no_room(
    rows, inputs, targets, examples
):
    packed, kept = PackedRows(rows, inputs, targets), []
    for example in examples:
        before = {name: ids.copy() for name, ids in packed.batch().items()}
        if packed.add(*example):
            kept.append(example)
            continue
        room = [(before[f"{part}_segments"] == 0).sum(1) for part in ("inputs", "targets")]
        assert all(len(example[0]) > i or len(example[1]) > t for i, t in zip(*room))
        for name, ids in packed.batch().items():
            np.testing.assert_array_equal(ids, before[name])
    batch = packed.batch()
    found = []
    for row in range(rows):
        segments = batch["inputs_segments"][row]
        for number in range(1, segments.max() + 1):
            found.append(
                tuple(
                    batch[part][row][batch[f"{part}_segments"][row] == number].tolist()
                    for part in ("inputs", "targets")
                )
            )
    assert sorted(found) == sorted(kept)
    for part in ("inputs", "targets"):
        assert not batch[part][batch[f"{part}_segments"] == 0].any()


# Files.


@given(prompts, st.dictionaries(names, st.text(max_size=9), max_size=3))
def test_a_prompt_file_gives_back_what_was_written(tmp_path_factory, prompt, metadata):
    path = tmp_path_factory.mktemp("prompt") / "p.safetensors"
    save_prompt(path, prompt, metadata)
    found, read = load_prompt(path)
    assert (found.shape, found.tobytes(), read) == (prompt.shape, prompt.tobytes(), metadata)


def damage(data: bytes, place: float, bit: int | None) -> bytes:
    """The bytes up to a place, a share of them all, or with one bit there flipped."""
    at = int(place * len(data))
    if bit is None:
        return data[:at]
    return data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :]


places = st.floats(0, 1, exclude_max=True)
bits = st.none() | st.integers(0, 7)


@given(places, bits)
def test_a_damaged_prompt_file_is_one_line_or_differs_in_one_value(tmp_path_factory, place, bit):
    path = tmp_path_factory.mktemp("prompt") / "p.safetensors"
    prompt = np.linspace(1, 2, 15, dtype=np.float32).reshape(5, 3)
    save_prompt(path, prompt, {"model": "tiny", "step": 3})
    path.write_bytes(damage(path.read_bytes(), place, bit))
    try:
        found, _ = load_prompt(path)
    except ValueError as error:
        assert str(path) in str(error) and "\n" not in str(error)
    else:
        assert bit is not None and found.shape == prompt.shape
        assert (found != prompt).sum() <= 1


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """(folder of a base checkpoint, the bytes of its files, its parameters)."""
    folder = tmp_path_factory.mktemp("base")
    convert_backbone(str(tiny.write_backbone(folder / "tiny")), folder / "base")
    files = {path: path.read_bytes() for path in (folder / "base").rglob("*") if path.is_file()}
    return folder / "base", files, dict(named_leaves(load_backbone(str(folder / "base")).params))


@given(file=st.integers(0, 10**6), place=places, bit=bits)
def test_a_damaged_base_checkpoint_is_one_line_or_gives_the_same_weights(base, file, place, bit):
    folder, files, expected = base
    filled = sorted(path for path, data in files.items() if data)
    path = filled[file % len(filled)]
    path.write_bytes(damage(files[path], place, bit))
    try:
        backbone = load_backbone(str(folder))
    except (ValueError, FileNotFoundError) as error:
        assert "\n" not in str(error)
    else:
        found = dict(named_leaves(backbone.params))
        assert found.keys() == expected.keys()
        for name, leaf in found.items():
            np.testing.assert_array_equal(leaf, expected[name], err_msg=name)
    finally:
        path.write_bytes(files[path])
