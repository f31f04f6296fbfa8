"""The train loop: `fit` trains a prompt for a frozen T5, or the whole T5 as the paper's baseline.

`fit` reads from top to bottom: check the folder, load the backbone and the task, make the state,
resume, train with evaluations in between, verify, test the best step. What a step computes is in
`step.py`; this module decides when.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

from spt_jax.config.train import TrainConfig, to_dict
from spt_jax.data.pipeline import (
    data_fingerprint,
    prefetch,
    train_batches,
)
from spt_jax.distributed.main_process import (
    is_main,
    main_only,
    on_main,
    process_count,
    require_same,
    to_host,
)
from spt_jax.distributed.preemption import poll
from spt_jax.errors import Preempted, RunError, explain_out_of_memory
from spt_jax.models.backbone import Backbone, load_backbone
from spt_jax.optim import make_tx
from spt_jax.prompts.init import init_prompt
from spt_jax.pytree import count_params, device_digest, label_params, merge, split
from spt_jax.run import Run, data_facts, load_rows, make_result, write_artifacts
from spt_jax.runs.checkpoints import Checkpoints, Restored
from spt_jax.runs.folder import RunFolder
from spt_jax.runs.log import RunLog, write_json_atomic
from spt_jax.runs.profiling import StepTrace
from spt_jax.runs.progress import Bar, print_split, say
from spt_jax.runs.saver import Saver, was_evaluated
from spt_jax.runs.tensorboard import require_tensorboard
from spt_jax.runs.timing import Clock
from spt_jax.runs.workdir import open_workdir
from spt_jax.sharding import place_batch, replicated, require_rows, state_shardings
from spt_jax.step import (
    Best,
    TrainState,
    init_state,
    require_finite,
    step_options,
    train_step,
)
from spt_jax.t5.flops import peak_flops
from spt_jax.typing import Array, Params, PyTree


def fit(
    config: TrainConfig,
    workdir: Path,
    *,
    overwrite: bool = False,
    command: Sequence[str] = (),
    profile: int = 0,
) -> dict:
    """Trains what the config says, in its folder, and returns its result.

    Args:
        config: The run.
        workdir: Its folder, here or as `gs://BUCKET/FOLDER`. A run that was stopped there goes on;
            a finished one is read back.
        overwrite: Delete the run that is there first.
        command: The command line, for the manifest.
        profile: Steps to trace, in the folder `profile` of the run; see `runs/profiling.py`.

    Returns:
        What `train --json` prints: among others `score`, `rank_score` (both on test, at the best
        step of dev), `majority_score`, `unprompted_score`, `trained_params`, `frozen_params`,
        `frozen_unchanged`, `steps`.

    Raises:
        FileNotFoundError: A file of the config does not exist.
        NotADirectoryError: `workdir` lies below a file.
        PermissionError, ConnectionError: `workdir` is in a bucket that cannot be used.
        ValueError: The config does not fit the model, the data, or the run in the folder.
        RunError: The loss is not finite, no checkpoint is whole, the disk is full, another process
            has the folder, or a frozen weight has changed.
        Preempted: A signal came where signals are notices, see `distributed/preemption.py`; the run
            is saved.
    """
    require_tensorboard(config.log.tensorboard)
    with open_workdir(Path(workdir)) as folder:
        return _fit(config, folder, overwrite=overwrite, command=command, profile=profile)


def _fit(
    config: TrainConfig, folder: RunFolder, *, overwrite: bool, command: Sequence[str], profile: int
) -> dict:
    if (result := on_main(lambda: _finished(folder, config, overwrite))) is not None:
        say(f"{folder} is finished; --overwrite trains it again")
        return result

    backbone = load_backbone(
        config.model,
        dtype=config.dtype,
        param_dtype=config.param_dtype,
        dropout_rate=config.dropout_rate,
        remat=config.remat,
        mesh=config.mesh,
        rows=config.data.batch_size // config.optimizer.accumulate,
        tune=config.tune,
    )
    require_rows(backbone.mesh, config.data.batch_size, "data.batch_size")
    task, rows = load_rows(config, backbone)
    identity = {
        "model": backbone.name,
        "model_fingerprint": backbone.fingerprint,
        "data_fingerprint": data_fingerprint(rows),
    }
    require_same(config=repr(config), **identity)
    prompt_key, run_key = jax.random.split(jax.random.key(config.seed))
    params: Params = {"t5": backbone.params}
    if config.prompt is not None:
        table = backbone.params["token_embedder"]["embedding"]
        words = task.label_words or task.prompt_words
        prompt = init_prompt(config.prompt, prompt_key, table, backbone.tokenizer, words)
        params = {**params, "prompt": prompt}
    trained, frozen = split(params, label_params(params, config.tune))
    print_split(trained, frozen)
    digest = device_digest(frozen)
    # Copied, because the state is donated and model tuning would give away the backbone's weights.
    trained = jax.tree.map(jnp.copy, trained)
    tx = make_tx(config.optimizer, config.steps, config.tune)
    make = functools.partial(init_state, tx=tx, patience=config.eval.patience, keep_best=True)
    shardings = state_shardings(jax.eval_shape(make, trained), backbone.mesh)
    state = jax.jit(make, out_shardings=shardings)(trained)
    run = Run(config, folder, backbone, task, rows, identity, frozen, run_key, profile)

    facts = data_facts(task, rows)
    with main_only(
        lambda: folder.claim(to_dict(config), identity, facts, command, overwrite=overwrite)
    ):
        with main_only(
            lambda: Checkpoints(folder.checkpoints, keep=config.log.keep, saved=folder.publish)
        ) as checkpoints:
            if (restored := _restore(checkpoints, state)) is not None:
                state = restored.state
                say(f"resumed at step {int(state.step)} of {config.steps}")
            with explain_out_of_memory(_memory_advice(config, backbone)):
                state = _train(run, state, tx, checkpoints, evaluated=was_evaluated(restored))
        _require_unchanged(frozen, digest)
        result = make_result(run, state)
        best = to_host(state.best.trained)
        on_main(lambda: write_artifacts(run, best, result))
        on_main(lambda: write_json_atomic(folder.result_file, result))
    return result


def _finished(folder: RunFolder, config: TrainConfig, overwrite: bool) -> dict | None:
    """The result of a run that is finished; raises where the folder cannot have this one."""
    folder.check_place()
    if overwrite:
        return None
    folder.check_config(to_dict(config))
    return folder.read_result(to_dict(config))


def _restore(checkpoints: Checkpoints, state: TrainState) -> Restored | None:
    """The newest checkpoint, read by process 0, placed like `state` on all."""
    if process_count() == 1:
        return checkpoints.restore_newest(state)
    host = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), state)
    restored = on_main(lambda: checkpoints.restore_newest(host))

    def place(leaf, value):
        return jax.make_array_from_callback(leaf.shape, leaf.sharding, value.__getitem__)

    return restored and restored._replace(state=jax.tree.map(place, state, restored.state))


def _train(
    run: Run,
    state: TrainState,
    tx: optax.GradientTransformation,
    checkpoints: Checkpoints,
    *,
    evaluated: bool,
) -> TrainState:
    """The steps from `state.step` on, with evaluations and checkpoints; returns the last state.

    `evaluated` is false where a signal kept the run from the evaluation of `state.step`.
    """
    config, frozen, train, mesh = run.config, run.frozen, run.rows["train"], run.backbone.mesh
    update = jax.jit(
        functools.partial(
            train_step,
            model=run.backbone.model,
            tx=tx,
            loss=config.loss,
            accumulate=config.optimizer.accumulate,
        ),
        donate_argnums=0,
        out_shardings=(state_shardings(state, mesh), replicated(mesh)),
        compiler_options=step_options(mesh),
    )
    batches = train_batches(
        train, config.data, seed=config.seed, targets_width=max(map(len, train.targets))
    )
    start = int(state.step)
    events = run.folder.events_folder if config.log.tensorboard else None
    steps = run.profile if is_main() else 0
    with (
        main_only(
            lambda: RunLog(run.folder.log_file, resume_at=start, evaluated=evaluated, events=events)
        ) as log,
        main_only(lambda: RunLog(run.folder.timing_file, resume_at=start)) as timing,
        main_only(lambda: Bar(f"training {run.task.name}", config.steps, start)) as bar,
        StepTrace(
            run.folder.profile_folder,
            steps,
            start=start,
            stop=config.steps,
            place=f"{run.folder}/profile",
        ) as trace,
    ):
        clock = Clock(timing, run.flops, peak_flops(mesh.devices.flat))
        saver = Saver(
            checkpoints, (log, timing), config.log, {"config": to_dict(config), **run.identity}
        )
        poll()  # before the first step is compiled
        if not evaluated:
            state = _evaluate_dev(run, state, log)
        stopped = int(state.patience_left) == 0
        shown = {"score": float(state.best.score)} if int(state.best.step) else {}
        pending: list[dict[str, Array]] = []
        prefetched = clock.watch(prefetch(batches, start, config.steps))
        for step, batch in enumerate(prefetched, start=start + 1):
            if stopped:
                break
            with trace.step(step, state):
                state, metrics = update(state, frozen, place_batch(batch, mesh), run.key)
            pending.append(metrics)
            evaluating = step == config.steps or step % config.eval.every == 0
            saving = evaluating or saver.due(step)
            if saving or step % config.log.every == 0:
                # The step just dispatched stays in flight, unless its result is needed now.
                ahead = [] if saving else [pending.pop()]
                shown |= _write_metrics(log, step - len(ahead), pending)
                shown |= clock.lap(step, len(pending))
                pending = ahead
                bar.update(step, shown)
            try:
                poll()
                if evaluating:
                    state = _evaluate_dev(run, state, log)
                    stopped = int(state.patience_left) == 0
                    bar.update(step, shown := shown | {"score": float(state.best.score)})
            except Preempted as notice:
                _write_metrics(log, step, pending)
                saver.leave(step, state, notice, evaluated=not evaluating)
            if saving:  # after everything of this step is in the log, so that a kill loses no line
                saver.save(step, state)
                clock.restart()
    if stopped:
        say(f"stopped at step {int(state.step)}: {config.eval.patience} evaluations without gain")
    return state


def _evaluate_dev(run: Run, state: TrainState, log: RunLog) -> TrainState:
    """Evaluates a step and logs it; returns the state that knows of it."""
    scores = run.evaluate(merge(state.trained, run.frozen), "dev")
    log.write({"step": int(state.step), "split": "dev", **scores.to_dict()})
    return _keep_best(state, scores.score, run.config.eval.patience)


def _keep_best(state: TrainState, score: float, patience: int | None) -> TrainState:
    """The state after an evaluation of its step."""
    best = state.best
    improved = score > float(best.score)
    if improved:
        best = Best(jnp.copy(state.step), jnp.float32(score), jax.tree.map(jnp.copy, state.trained))
    if patience is None:
        left = -1
    elif improved:
        left = patience
    else:  # a run that is resumed with patience starts to count now
        left = (int(state.patience_left) if state.patience_left >= 0 else patience) - 1
    return dataclasses.replace(state, best=best, patience_left=jnp.int32(left))


def _write_metrics(log: RunLog, step: int, pending: Sequence[Mapping[str, Array]]) -> dict:
    """Logs the steps that are pending, the last of them `step`; returns their mean loss."""
    fetched = jax.device_get(list(pending))
    for number, metrics in enumerate(fetched, start=step - len(fetched) + 1):
        require_finite(number, metrics)
        log.write({"step": number, **metrics})
    return {"loss": float(np.mean([m["loss"] for m in fetched]))} if fetched else {}


def _memory_advice(config: TrainConfig, backbone: Backbone) -> str:
    sizes = backbone.mesh.shape
    return (
        f"try --remat=full, a larger --optimizer.accumulate (now {config.optimizer.accumulate}), a "
        f"smaller --eval.batch_size, or more of --mesh.fsdp or --mesh.model (now {sizes['fsdp']} "
        f"and {sizes['model']}); `spt-jax plan` says what fits"
    )


def _require_unchanged(frozen: PyTree, digest: dict) -> None:
    if device_digest(frozen) != digest:
        raise RunError("a frozen weight changed while training; this is a defect of spt_jax")
    if digest:
        say(f"all {count_params(frozen):,} frozen parameters are bit-identical to the start")
