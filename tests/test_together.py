"""Prompts that train together in one program: each as it would alone."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import tiny
from test_preemption import signal_at_call
from test_train import outcome

from spt_jax.config.devices import MeshConfig
from spt_jax.config.sharing import SHARED, share_program
from spt_jax.config.train import (
    DataConfig,
    EvalConfig,
    LogConfig,
    LossConfig,
    OptimizerConfig,
    PromptConfig,
    TaskConfig,
)
from spt_jax.data.pipeline import stack_batches
from spt_jax.distributed.preemption import listening
from spt_jax.errors import Preempted, RunError
from spt_jax.optim import make_tx
from spt_jax.pytree import label_params, split
from spt_jax.runs.folder import RunFolder
from spt_jax.runs.log import read_log
from spt_jax.sharding import make_mesh, param_shardings, place_batch
from spt_jax.step import jit_step, jit_steps, loss_and_grads
from spt_jax.t5 import T5
from spt_jax.train import fit, fit_together
from spt_jax.train_state import init_state

ROWS = 4
LOSS = LossConfig(label_smoothing=0.1)
OPTIMIZERS = (
    OptimizerConfig(learning_rate=0.3),
    OptimizerConfig(name="sgd", weight_decay=1e-5, learning_rate=0.1, clip_norm=0.5),
    OptimizerConfig(learning_rate=0.05, schedule="cosine", warmup_steps=3, momentum=0.9),
    OptimizerConfig(name="adamw", weight_decay=0.1, learning_rate=0.01),
)
"""Of the runs in turn; the first three are those of the paper's studies, the last is another."""


class Alone:
    """A run in float64 by itself: its state, its optimizer and its batches."""

    def __init__(self, number, params, accumulate, dtype):
        rng = np.random.default_rng(number)
        self.length, self.steps = (3, 7, 5)[number % 3], 20 + number
        self.optimizer = dataclasses.replace(OPTIMIZERS[number % 4], accumulate=accumulate)
        self.tx = make_tx(self.optimizer, self.steps, "prompt")
        prompt = jnp.asarray(rng.standard_normal((self.length, 16)), dtype)
        tree = {"t5": params, "prompt": prompt}
        trained, self.frozen = split(tree, label_params(tree, "prompt"))
        self.state = init_state(trained, self.tx, patience=None, keep_best=True)
        self.key = jax.random.key(number)
        self.widths = (9, 12, 6)[number % 3], (3, 4, 2)[number % 3]

    def batch(self, step):
        rng = np.random.default_rng((step, len(self.state.trained["prompt"]), self.steps))
        inputs, targets = (rng.integers(3, 300, (ROWS, width)) for width in self.widths)
        inputs[1, 4:] = targets[2, 1:] = 0
        return {"inputs": inputs, "targets": targets}


def make_runs(count, *, dropout=0.0, accumulate=1, dtype=jnp.float64, mesh=None):
    model = T5(tiny.SHAPE, dtype=dtype, dropout_rate=dropout, mesh=mesh)
    params = jax.tree.map(lambda x: x.astype(dtype), tiny.random_params(tiny.SHAPE))
    if mesh is not None:
        params = jax.device_put(params, param_shardings(params, mesh))
    return model, [Alone(number, params, accumulate, dtype) for number in range(count)]


def update_together(model, runs, accumulate=1, pulls=None):
    """Return `states, metrics = update(states, step)` of all runs in one program."""
    optimizers = [(run.optimizer, run.steps) for run in runs]
    steps = jit_steps(model, optimizers, LOSS, accumulate=accumulate)
    keys = tuple(run.key for run in runs)
    rates = tuple(run.optimizer.learning_rate for run in runs)

    def update(states, step):
        batch = place_batch(stack_batches([run.batch(step) for run in runs]), model.mesh, ".B")
        return steps(tuple(states), runs[0].frozen, batch, keys, rates, pulls)

    return update


def compare_training(count, updates, dropout, accumulate, mesh=None):
    with jax.enable_x64(True):
        model, runs = make_runs(count, dropout=dropout, accumulate=accumulate, mesh=mesh)
        update = update_together(model, runs, accumulate)
        states = [jax.tree.map(jnp.copy, run.state) for run in runs]
        expected = []
        for run in runs:
            step, state = jit_step(model, run.tx, LOSS, accumulate=accumulate), run.state
            state = jax.tree.map(jnp.copy, state)
            for number in range(updates):
                batch = place_batch(run.batch(number), mesh)
                state, metrics = step(state, run.frozen, batch, run.key)
            expected.append((state, metrics))
        for number in range(updates):
            states, metrics = update(states, number)
        for found, (state, of_step) in zip(zip(states, metrics), expected):
            assert jax.tree.structure(found[0]) == jax.tree.structure(state)
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9), found,
                         (state, of_step))  # fmt: skip


def test_prompts_train_as_they_would_alone():
    compare_training(2, 20, dropout=0.3, accumulate=2)


@pytest.mark.slow
@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("count", [3, 8])
def test_any_number_of_prompts_trains_as_alone(count, dropout, accumulate):
    compare_training(count, 20, dropout, accumulate)


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [(4, 1, 2), (1, 4, 2), (2, 2, 2)])
def test_prompts_train_as_alone_over_eight_devices(sizes):
    mesh = make_mesh(MeshConfig(**dict(zip(("data", "fsdp", "model"), sizes))))
    compare_training(3, 20, 0.3, 1, mesh)


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float64, 1e-12), (jnp.float32, 1e-5)])
def test_gradients_are_those_of_each_run_alone(dtype, tolerance):
    with jax.enable_x64(dtype == jnp.float64):
        model, runs = make_runs(3, dropout=0.3, dtype=dtype)
        grads_of = jax.jit(loss_and_grads, static_argnames=("model", "loss"))
        batch, longest = stack_batches([run.batch(0) for run in runs]), 7
        prompts = [np.asarray(run.state.trained["prompt"]) for run in runs]
        padded = jnp.stack([np.pad(p, ((longest - len(p), 0), (0, 0))) for p in prompts])
        masks = np.stack([np.arange(longest) >= longest - len(p) for p in prompts])
        batch["prompt_mask"] = np.repeat(masks[:, None], ROWS, 1)
        trained = {"t5": runs[0].state.trained["t5"], "prompt": padded}

        def of_run(trained, batch, key):
            return loss_and_grads(trained, runs[0].frozen, batch, key, model=model, loss=LOSS)

        keys = jnp.stack([run.key for run in runs])
        _, found = jax.jit(jax.vmap(of_run))(trained, batch, keys)
        for number, run in enumerate(runs):
            _, alone = grads_of(
                run.state.trained, run.frozen, run.batch(0), run.key, model=model, loss=LOSS
            )
            expected = np.asarray(alone["prompt"])
            difference = np.asarray(found["prompt"][number, longest - run.length :]) - expected
            assert np.abs(difference).max() <= tolerance * np.abs(expected).max()
            assert not np.any(found["prompt"][number, : longest - run.length])


def test_runs_that_differ_in_their_rates_share_a_program():
    model, runs = make_runs(2, dtype=jnp.float32)
    optimizers = [(run.optimizer, run.steps) for run in runs]
    slower = [(dataclasses.replace(o, learning_rate=0.7), steps) for o, steps in optimizers]
    assert jit_steps(model, optimizers, LOSS) is jit_steps(model, slower, LOSS)
    longer = [(config, steps + 1) for config, steps in optimizers]
    assert jit_steps(model, optimizers, LOSS) is not jit_steps(model, longer, LOSS)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Three runs that trained together; the second has another task, the third ends first."""
    folder = tmp_path_factory.mktemp("together")
    base = tiny.train_config(folder)
    words = {"animal": "cat", "plant": "oak"}
    rows = [{"text": text, "label": words[label]} for text, label in tiny.sentences()]
    (folder / "other.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    other = TaskConfig(
        name="other", source=str(folder / "other.jsonl"), template="{text}", label="label"
    )
    configs = [
        base,
        dataclasses.replace(
            base,
            seed=1,
            task=other,
            prompt=PromptConfig(length=5),
            data=dataclasses.replace(base.data, targets_length=5),
            eval=EvalConfig(every=6, batch_size=8),
        ),
        dataclasses.replace(
            base,
            seed=2,
            steps=8,
            optimizer=OptimizerConfig(learning_rate=0.1, schedule="linear"),
            log=LogConfig(every=2, checkpoint_every=5),
        ),
    ]
    runs = [folder / f"run_{number}" for number in range(len(configs))]
    return configs, runs, fit_together(configs, runs)


def assert_close(found, expected):
    """Numbers agree to 1e-3, as two programs of float32 do, and all else is equal."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        if isinstance(value, dict):
            assert_close(found[name], value)
        elif isinstance(value, float):
            assert found[name] == pytest.approx(value, rel=1e-3, abs=1e-6), name
        else:
            assert found[name] == value, name


@pytest.mark.slow
def test_a_run_of_several_is_the_run_alone(trained, tmp_path):
    configs, runs, results = trained
    expected = fit(configs[1], tmp_path)
    lines, of_alone = read_log(runs[1] / "log.jsonl"), read_log(tmp_path / "log.jsonl")
    for line, other in zip(lines, of_alone, strict=True):
        assert_close(line, other)
    timed = {"steps_per_second", "examples_per_second", "waiting_share", "mfu", "checkpoint_bytes"}
    assert_close(*({k: v for k, v in r.items() if k not in timed} for r in (results[1], expected)))
    assert {p.name for p in runs[1].iterdir()} == {p.name for p in tmp_path.iterdir()}


@pytest.mark.slow
def test_each_run_has_its_own_length_intervals_and_end(trained):
    configs, runs, results = trained
    assert [result["steps_done"] for result in results] == [12, 12, 8]
    assert [result["trained_params"] for result in results] == [48, 80, 48]
    dev = [
        [line["step"] for line in read_log(run / "log.jsonl") if line.get("split") == "dev"]
        for run in runs
    ]
    assert dev == [[4, 8, 12], [6, 12], [4, 8]]
    saved = [sorted(int(f.name) for f in (run / "checkpoints").glob("[0-9]*")) for run in runs]
    assert saved == [[8, 9, 12], [6, 9, 12], [4, 5, 8]]
    assert fit(configs[2], runs[2]) == results[2]  # it is finished, alone too


@pytest.mark.slow
def test_runs_at_different_steps_go_on_together_and_alone(trained, tmp_path, monkeypatch):
    configs, _, results = trained
    configs, results = configs[:2], results[:2]
    runs = [tmp_path / "a", tmp_path / "b"]
    with monkeypatch.context() as patched, listening():
        signal_at_call(patched, "spt_jax.train.place_batch", 5)
        with pytest.raises(Preempted, match=r"^ended by SIGTERM at step 5, which is saved$"):
            fit(configs[1], runs[1])
    with monkeypatch.context() as patched, listening():
        signal_at_call(patched, "spt_jax.train.place_batch", 2)
        with pytest.raises(Preempted, match=r"at steps 2 and 7, which are saved$"):
            fit_together(configs, runs)
    found = [*fit_together(configs[:1], runs[:1]), fit(configs[1], runs[1])]
    for result, expected in zip(found, results):
        assert result["score"] == expected["score"] and result["best_step"] == expected["best_step"]
        assert result["dev_score"] == expected["dev_score"]


@pytest.mark.slow
def test_a_run_that_is_left_at_a_stop_goes_on_as_if_it_had_not_been(trained, tmp_path):
    config = trained[0][0]
    runs = [tmp_path / "left", tmp_path / "undisturbed"]
    assert fit_together([config], runs[:1], stops=[8]) == [None]
    assert RunFolder(runs[0]).last_step() == 8 and not (runs[0] / "result.json").exists()
    for run in runs:
        fit(config, run)
    assert outcome(runs[0]) == outcome(runs[1])
    with pytest.raises(
        ValueError, match="^a run is to stop at step 5, but it is evaluated every 4 steps; give a"
    ):
        fit_together([config], [tmp_path / "other"], stops=[5])


@pytest.mark.slow
def test_a_run_that_diverges_does_not_end_the_others(trained, tmp_path, capsys):
    configs, _, results = trained
    wild = OptimizerConfig(name="sgd", weight_decay=1e-5, learning_rate=1e38)
    diverging = dataclasses.replace(configs[0], optimizer=wild)
    runs = [tmp_path / "wild", tmp_path / "calm"]
    error, result = fit_together([diverging, configs[1]], runs)
    assert isinstance(error, RunError) and "lower optimizer.learning_rate" in str(error)
    assert f"{runs[0]} is given up: " in capsys.readouterr().err
    assert not (runs[0] / "result.json").exists()
    assert result["score"] == results[1]["score"]


def test_two_runs_of_one_folder_are_refused(tmp_path):
    config = tiny.train_config(tmp_path)
    with pytest.raises(ValueError, match="^two runs have the folder '.*same'; each needs its own$"):
        fit_together([config, config], [tmp_path / "same"] * 2)


def test_what_runs_must_share_is_said_in_one_line(tmp_path):
    config = tiny.train_config(tmp_path)
    other = dataclasses.replace(config, data=DataConfig(batch_size=16))
    with pytest.raises(
        ValueError,
        match="^runs that train together have one data.batch_size, but here it is 8 and 16; "
        "train them apart$",
    ):
        fit_together([config, other], [tmp_path / "a", tmp_path / "b"])
    tuned = dataclasses.replace(config, tune="model", prompt=None)
    with pytest.raises(ValueError, match="^runs that tune the whole model cannot train together"):
        fit_together([config, tuned], [tmp_path / "a", tmp_path / "b"])


def test_groups_hold_runs_that_may_share_a_program(tmp_path):
    config = tiny.train_config(tmp_path)
    lengths = [
        dataclasses.replace(config, prompt=PromptConfig(length=n), seed=seed)
        for seed in (0, 1)
        for n in (9, 3)
    ]
    tuned = dataclasses.replace(config, tune="model", prompt=None)
    wet = dataclasses.replace(config, dropout_rate=0.5)
    groups = share_program([*lengths, tuned, wet, tuned], together=3)
    assert groups == [[1, 3, 0], [2], [4], [5], [6]]
    with pytest.raises(ValueError, match="^together is 0 runs, expected 1 or more$"):
        share_program(lengths, together=0)
    changed = {"model": "other", "tune": "model", "dtype": "bfloat16", "param_dtype": "bfloat16",
               "dropout_rate": 0.5, "remat": "full", "attention": "plain",
               "mesh": MeshConfig(data=2), "loss": LossConfig(z_loss=0.1)}  # fmt: skip
    assert changed.keys() | {"data.batch_size", "optimizer.accumulate"} == {*SHARED}
    for name, value in changed.items():
        other = dataclasses.replace(config, **{name: value})
        assert share_program([config, other], together=2) == [[0], [1]]
