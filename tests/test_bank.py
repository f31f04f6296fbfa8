"""The bank keeps each prompt at the right end of its row, and its shape whatever it holds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import tiny
from support.decoding import INPUTS, MODEL, make_params
from support.runs import random_prompt, write_run

import spt_jax.forward
from spt_jax.models.backbone import load_backbone
from spt_jax.prompts.bank import PromptBank, load_bank

SHORT, LONG = random_prompt(2, 0), random_prompt(5, 1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A backbone, and two runs on it."""
    folder = tmp_path_factory.mktemp("bank")
    config = tiny.train_config(folder)
    write_run(folder / "short", config, SHORT)
    write_run(folder / "long", config, LONG)
    return folder


def test_prompts_stand_at_the_right_end_and_all_else_is_zero():
    bank = PromptBank.empty(2, 5, 16).add("short", SHORT).add("long", jnp.asarray(LONG))
    prompts, mask = bank[bank.task_ids(["long", None, "short"])]
    assert prompts.dtype == jnp.float32 and mask.dtype == bool
    np.testing.assert_array_equal(mask, [[True] * 5, [False] * 5, [False] * 3 + [True] * 2])
    np.testing.assert_array_equal(prompts, [LONG, 0 * LONG, np.pad(SHORT, ((3, 0), (0, 0)))])


def test_a_bank_is_a_value_and_a_removed_prompt_leaves_nothing():
    one = PromptBank.empty(2, 5, 16).add("long", LONG)
    both = one.add("short", SHORT)
    without = both.remove("long")
    assert [name in bank for bank in (one, both, without) for name in ("long", "short")] == [
        *(True, False), *(True, True), *(False, True),
    ]  # fmt: skip
    assert None not in without
    task = both.task_ids(["long"])
    prompts, mask = without[task]
    assert not np.any(prompts) and not np.any(mask)
    np.testing.assert_array_equal(without.add("new", SHORT).task_ids(["new", "short"]), [1, 2])
    np.testing.assert_array_equal(without.add("new", SHORT)[task][0][0, 3:], SHORT)


def test_adding_and_removing_recompile_nothing():
    traces = []

    @jax.jit
    def logits(params, arrays, task_ids):
        traces.append(task_ids)
        params, mask = arrays.prompted(params, task_ids)
        return spt_jax.forward.forward(
            MODEL, params, jnp.asarray(INPUTS), jnp.asarray(INPUTS), prompt_mask=mask
        )

    params, ids = make_params(), np.array([0, 1, 2, 1], np.int32)
    bank = PromptBank.empty(2, 5, 16)
    empty = logits(params, bank.arrays, ids)
    full = logits(params, bank.add("a", SHORT).add("b", LONG).arrays, ids)
    again = logits(params, bank.add("a", SHORT).add("b", LONG).remove("a").arrays, ids)
    assert len(traces) == 1
    changed = [not np.array_equal(x, y) for x, y in ((empty, full), (full, again))]
    assert changed == [True, True]
    np.testing.assert_array_equal(again[1], empty[1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda bank: bank.add("a", SHORT), "the bank has a prompt 'a' already; give the other"),
        (
            lambda bank: bank.add("b", SHORT).add("c", SHORT),
            r"prompt 'c' finds no place: the bank holds 2 prompts \(a, b\) and its capacity is 2; "
            "remove one, or make",
        ),
        (
            lambda bank: bank.add("b", LONG),
            "prompt 'b' has 5 vectors but the bank holds prompts of at most 4; make a bank of "
            "length 5 or more",
        ),
        (
            lambda bank: bank.add("b", SHORT[:, :8]),
            r"prompt 'b' has shape \[2, 8\], expected \[P, 16\]: vectors as wide as those of the",
        ),
        (lambda bank: bank.add("b", SHORT[0]), r"prompt 'b' has shape \[16\], expected \[P, 16\]"),
        (lambda bank: bank.add("b", SHORT[:0]), r"prompt 'b' has shape \[0, 16\], expected \[P"),
        (
            lambda bank: bank.add("sst2", SHORT).task_ids(["a", "sst"]),
            r"unknown prompt 'sst'; the bank has a, sst2 \(did you mean 'sst2'\?\)",
        ),
        (lambda bank: bank.remove("a").remove("a"), "unknown prompt 'a'; the bank has none"),
        (lambda bank: bank.add("", SHORT), "the name of a prompt is '', expected some text"),
        (lambda bank: bank.remove(None), "name is None, which stands for no prompt; give the"),
        (lambda bank: bank.empty(-1, 4, 16), "capacity of the bank is -1, expected 0 or more"),
    ],
)
def test_what_a_bank_refuses(change, message):
    with pytest.raises(ValueError, match=message):
        change(PromptBank.empty(2, 4, 16).add("a", SHORT))


def test_loads_files_and_runs_of_one_backbone(folder):
    backbone = load_backbone(str(folder / "tiny"))
    paths = {"file": folder / "long" / "prompt.safetensors", "run": str(folder / "short")}
    bank = load_bank(backbone, paths)
    assert bank.names == ("file", "run") and bank.arrays.vectors.shape == (3, 5, 16)
    np.testing.assert_array_equal(bank[np.array([1])][0][0], LONG)
    np.testing.assert_array_equal(bank[np.array([2])][0][0, 3:], SHORT)
    roomy = load_bank(backbone, paths, capacity=4, length=7)
    assert roomy.arrays.vectors.shape == (5, 7, 16) and roomy.names == ("file", "run", None, None)
    np.save(folder / "google.npy", SHORT)
    np.testing.assert_array_equal(
        load_bank(backbone, {"a": folder / "google.npy"})[np.array([1])][0][0], SHORT
    )
    none = load_bank(backbone, {})
    assert none.arrays.vectors.shape == (1, 0, 16)


def test_prompts_of_other_models_are_refused(folder, tmp_path):
    backbone = load_backbone(str(tiny.write_backbone(tmp_path / "other", seed=5)))
    with pytest.raises(
        ValueError,
        match="short/prompt.safetensors was trained on model 'tiny-0' with fingerprint .* but "
        "'tiny-5' has .*; give the model that it was trained on",
    ):
        load_bank(backbone, {"a": folder / "short"})
    with pytest.raises(FileNotFoundError, match="prompt file .*missing does not exist"):
        load_bank(backbone, {"a": folder / "missing"})
    tuned = write_run(tmp_path / "tuned", tiny.train_config(tmp_path, tune="model"), SHORT)
    with pytest.raises(
        ValueError, match="run '.*tuned' tuned the model, so its prompt serves no other model; give"
    ):
        load_bank(backbone, {"a": tuned})
