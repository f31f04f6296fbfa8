"""Batches are a pure function of (seed, step), hold every row once an epoch, and lose nothing."""

import dataclasses
import subprocess
import sys
import threading
from collections import Counter

import numpy as np
import pytest
from support.fakes import FakeTokenizer

from spt_jax.config.train import DataConfig
from spt_jax.data.pipeline import (
    AHEAD,
    WINDOW,
    TokenizedSplit,
    data_fingerprint,
    describe_lengths,
    eval_batches,
    prefetch,
    tokenize_split,
    train_batches,
)
from spt_jax.data.tasks import Example


def make_split(count, data, length=lambda i: 1 + 7 * i % 40):
    """Row i reads 'iii...' of some length, so that a row can be told from its first token."""
    examples = [Example(chr(0x30 + i) * length(i), f"y{i}") for i in range(count)]
    return tokenize_split(examples, FakeTokenizer(), data)


def row_numbers(batch):
    return [int(token) - 3 - 0x30 for token in batch["inputs"][:, 0]]


def same(a, b):
    return all(np.array_equal(a[name], b[name]) for name in ("inputs", "targets"))


@pytest.fixture(params=[False, True], ids=["plain", "grouped"])
def data(request):
    return DataConfig(
        inputs_length=64,
        targets_length=8,
        batch_size=4,
        buckets=(8, 16, 32),
        group_by_length=request.param,
    )


def test_truncation_keeps_the_end_marker():
    data = DataConfig(inputs_length=4, targets_length=2)
    examples = [Example("abc", "x"), Example("abcd", "xy"), Example("", "z"), Example("ab", "q")]
    split = tokenize_split(examples, FakeTokenizer(), data)
    a, b, c = (ord(letter) + 3 for letter in "abc")
    assert [row.tolist() for row in split.inputs] == [[a, b, c, 1], [a, b, c, 1], [1], [a, b, 1]]
    assert [row.tolist() for row in split.targets] == [[ord(x) + 3, 1] for x in "xxzq"]
    assert (split.truncated, split.truncated_targets) == (0.25, 0.25)
    assert {row.dtype for row in (*split.inputs, *split.targets)} == {np.dtype(np.int32)}


def test_step_is_a_pure_function_of_seed_and_number(data):
    split = make_split(30, data)
    run = list(prefetch(train_batches(split, data, seed=3, targets_width=5), 0, 50))
    again = train_batches(make_split(30, data), data, seed=3, targets_width=5)
    assert len(run) == 50
    for step in (49, 0, 17, 33):  # in no order, and from another dataset
        assert same(again[step], run[step])
    resumed = list(prefetch(again, 20, 50))
    assert len(resumed) == 30
    assert all(same(a, b) for a, b in zip(resumed, run[20:], strict=True))


def test_every_row_once_an_epoch(data):
    data = dataclasses.replace(data, batch_size=1)
    split = make_split(WINDOW, data)
    ds = train_batches(split, data, seed=0, targets_width=5)
    epochs = [
        [number for step in range(e * WINDOW, (e + 1) * WINDOW) for number in row_numbers(ds[step])]
        for e in range(3)
    ]
    assert all(sorted(epoch) == list(range(len(split.inputs))) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert epochs[0] != sorted(epochs[0])


def test_batches_run_across_epochs():
    data = DataConfig(inputs_length=64, targets_length=8, batch_size=4)
    ds = train_batches(make_split(10, data), data, seed=0, targets_width=5)
    drawn = [number for step in range(5) for number in row_numbers(ds[step])]
    assert sorted(drawn[:10]) == sorted(drawn[10:]) == list(range(10))


def test_split_smaller_than_the_batch(data):
    for count in (1, 3):
        ds = train_batches(make_split(count, data), data, seed=0, targets_width=5)
        steps = range(count * 5)
        counts = Counter(number for step in steps for number in row_numbers(ds[step]))
        assert ds[0]["inputs"].shape[0] == 4
        assert counts == dict.fromkeys(range(count), 4 * 5)


def test_seeds_share_no_epoch():
    data = DataConfig(inputs_length=64, targets_length=8, batch_size=20)
    split = make_split(20, data)
    runs = [train_batches(split, data, seed=seed, targets_width=5) for seed in range(4)]
    epochs = {tuple(row_numbers(ds[step])) for ds in runs for step in range(6)}
    assert len(epochs) == 24


def test_batch_has_the_smallest_bucket_and_whole_rows(data):
    split = make_split(40, data, length=lambda i: 1 + i)
    ds = train_batches(split, data, seed=1, targets_width=6)
    widths = set()
    for step in range(40):
        batch = ds[step]
        numbers = row_numbers(batch)
        longest = max(len(split.inputs[number]) for number in numbers)
        assert batch["inputs"].shape == (4, min(b for b in (8, 16, 32, 64) if b >= longest))
        assert batch["targets"].shape == (4, 6)
        assert batch["inputs"].dtype == batch["targets"].dtype == np.int32
        for name, rows in (("inputs", split.inputs), ("targets", split.targets)):
            for row, number in zip(batch[name], numbers, strict=True):
                assert row[: len(rows[number])].tolist() == rows[number].tolist()
                assert not row[len(rows[number]) :].any()
        widths.add(batch["inputs"].shape[1])
    assert len(widths) > 1


def test_buckets_end_with_the_inputs_length():
    data = DataConfig(inputs_length=20, targets_length=8, batch_size=1, buckets=(8, 32))
    ds = train_batches(make_split(40, data), data, seed=0, targets_width=5)
    assert {ds[step]["inputs"].shape[1] for step in range(40)} == {8, 20}


def test_grouping_makes_batches_of_similar_length():
    def spread(group):
        data = DataConfig(inputs_length=64, targets_length=8, batch_size=4, group_by_length=group)
        ds = train_batches(make_split(64, data), data, seed=0, targets_width=5)
        return np.mean([np.ptp((ds[step]["inputs"] > 0).sum(1)) for step in range(WINDOW)])

    assert spread(True) < spread(False) / 4


@pytest.mark.parametrize("count", [12, 64, 250, 2000])
def test_a_window_of_rows_of_similar_length_lies_in_one_epoch(count):
    data = DataConfig(inputs_length=64, targets_length=8, batch_size=32, group_by_length=True)
    ds = train_batches(make_split(count, data), data, seed=0, targets_width=6)

    def rows(step):  # by their targets, y0, y1, ...
        targets = ds[step]["targets"]
        return [int(FakeTokenizer().decode(row)[1:]) for row in targets]

    steps = range(3 * count // 32)
    drawn = [number for step in steps for number in rows(step)]
    for start in range(0, len(drawn) - count + 1, count):  # an epoch has every row once
        assert sorted(drawn[start : start + count]) == list(range(count))
    whole = [step for step in steps if step * 32 // count == (step * 32 + 31) // count]
    assert all(len(set(rows(step))) == 32 for step in whole)
    assert whole or count < 64


def test_grouped_batches_come_in_no_order_of_length():
    data = DataConfig(inputs_length=64, targets_length=8, batch_size=4, group_by_length=True)
    ds = train_batches(make_split(64, data), data, seed=0, targets_width=5)
    windows = [
        [int((ds[step]["inputs"] > 0).sum()) for step in range(start, start + WINDOW)]
        for start in (0, WINDOW)
    ]
    assert all(lengths != sorted(lengths) for lengths in windows)
    assert np.argsort(windows[0]).tolist() != np.argsort(windows[1]).tolist()


def test_prefetch_works_ahead_in_a_thread_and_stops(data):
    ds = train_batches(make_split(30, data), data, seed=0, targets_width=5)
    seen = []

    def note(batch):
        seen.append(threading.current_thread())
        return batch

    before = set(threading.enumerate())
    batches = prefetch(ds.map(note), 5, 500)
    assert same(next(batches), ds[5])
    assert 1 <= len(seen) <= AHEAD + 2
    assert threading.main_thread() not in seen
    del batches
    for thread in set(threading.enumerate()) - before:
        thread.join(10)
        assert not thread.is_alive()
    assert list(prefetch(ds, 7, 7)) == []


def test_evaluation_sees_every_row_once_longest_first(data):
    split = make_split(30, data)
    indices, rows = [], []
    for numbers, batch in eval_batches(split, data, batch_size=8):
        assert batch["inputs"].shape[0] == batch["targets"].shape[0] == 8
        assert numbers.dtype == np.int32
        assert row_numbers(batch)[: len(numbers)] == numbers.tolist()
        assert not batch["inputs"][len(numbers) :].any()
        assert not batch["targets"][len(numbers) :].any()
        indices += numbers.tolist()
        rows += list(batch["inputs"][: len(numbers)])
    assert sorted(indices) == list(range(30))
    lengths = [(row > 0).sum() for row in rows]
    assert lengths == sorted(lengths, reverse=True)
    assert len(numbers) == 30 % 8


def test_targets_of_evaluation_have_one_width(data):
    split = make_split(30, data)
    longest = max(map(len, split.targets))
    widths = {batch["targets"].shape for _, batch in eval_batches(split, data, batch_size=4)}
    assert widths == {(4, longest)}


def test_fingerprint_sees_every_token_and_boundary():
    data = DataConfig(inputs_length=64, targets_length=8)

    def fingerprint(train, dev):
        splits = {"train": train, "dev": dev}
        return data_fingerprint(
            {
                name: tokenize_split([Example(*pair) for pair in pairs], FakeTokenizer(), data)
                for name, pairs in splits.items()
            }
        )

    cases = [
        ([("ab", "x"), ("c", "y")], [("d", "z")]),
        ([("ab", "y"), ("c", "x")], [("d", "z")]),
        ([("a", "x"), ("bc", "y")], [("d", "z")]),
        ([("c", "y"), ("ab", "x")], [("d", "z")]),
        ([("ab", "x")], [("c", "y"), ("d", "z")]),
        ([("ab", "x"), ("c", "y")], []),
    ]
    assert len({fingerprint(*case) for case in cases}) == len(cases)
    assert fingerprint(*cases[0]) == fingerprint(*cases[0])


def test_fingerprint_sees_where_rows_end():
    def fingerprint(*rows):
        rows = [np.array(row, np.int32) for row in rows]
        return data_fingerprint(
            {"train": TokenizedSplit([], rows, [np.array([1], np.int32)] * 2, 0.0, 0.0)}
        )

    assert fingerprint([3], [4, 1]) != fingerprint([3, 4], [1])


def test_fingerprint_does_not_see_how_long_an_evaluation_reads():
    data = DataConfig(inputs_length=4, targets_length=8)
    examples = [Example("abcdefgh", "x"), Example("ab", "y")]
    cut = tokenize_split(examples, FakeTokenizer(), data)
    whole = tokenize_split(examples, FakeTokenizer(), data, inputs_length=100)
    assert [len(row) for row in whole.inputs] == [9, 3] and whole.truncated == 0
    assert data_fingerprint({"dev": whole}, 4) == data_fingerprint({"dev": cut})
    assert data_fingerprint({"dev": whole}) != data_fingerprint({"dev": cut})


def test_what_is_cut_is_said_of_every_split():
    data = DataConfig(inputs_length=4, targets_length=2)
    examples = [Example("abcdefgh", "x"), Example("ab", "yes")]
    cut = tokenize_split(examples, FakeTokenizer(), data)
    whole = tokenize_split(examples, FakeTokenizer(), data, inputs_length=100)
    assert describe_lengths({"train": cut, "dev": whole}) == [
        "cut to length (inputs/targets): train 50.0%/50.0%, dev 0.0%/50.0%"
    ]
    unknown = dataclasses.replace(whole, unknown_targets=0.25)
    (_, note) = describe_lengths({"train": cut, "dev": unknown})
    assert note.startswith("targets with characters that the tokenizer does not know")
    assert note.endswith(": 25.0% of dev")


def test_evaluation_pads_what_is_longer_than_the_buckets():
    data = DataConfig(inputs_length=20, targets_length=8, buckets=(8, 16))
    lengths = (5, 15, 19, 20, 200, 300)
    examples = [Example("x" * length, "y") for length in lengths]
    split = tokenize_split(examples, FakeTokenizer(), data, inputs_length=1000)
    widths = [batch["inputs"].shape[1] for _, batch in eval_batches(split, data, 1)]
    assert widths == [384, 256, 128, 20, 16, 8]


def test_sentinels_of_a_template_are_ids_and_those_of_a_text_are_not():
    tokenizer, data = FakeTokenizer(), DataConfig()
    text = "a <extra_id_0> b <extra_id_1>"
    example = Example(text, "x", sentinels=(17,))
    (ids,) = (row.tolist() for row in tokenize_split([example], tokenizer, data).inputs)
    own = tokenizer.encode("a <extra_id_0> b ")
    assert ids == [*own, tokenizer.sentinel(1), tokenizer.eos_id]
    (ids,) = tokenize_split([Example(text, "x")], tokenizer, data).inputs
    assert ids.tolist() == [*tokenizer.encode(text), tokenizer.eos_id]
    with pytest.raises(ValueError, match="no sentinel at character 3 of 'a <extra_id_0> b"):
        tokenize_split([Example(text, "x", sentinels=(3,))], tokenizer, data)


def test_empty_split_and_narrow_targets(data):
    with pytest.raises(ValueError, match="train split has no rows"):
        train_batches(make_split(0, data), data, seed=0, targets_width=5)
    with pytest.raises(ValueError, match="target has 3 tokens, expected at most targets_width 2"):
        train_batches(make_split(5, data), data, seed=0, targets_width=2)


def test_import_brings_neither_tensorflow_nor_torch():
    code = "import sys, spt_jax.data.pipeline; print({'tensorflow', 'torch'} & set(sys.modules))"
    output = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    )
    assert output.stdout.strip() == "set()"
