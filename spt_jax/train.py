"""The recipe of a training run: `fit` goes from a config to a result.

`fit` trains a prompt for a frozen T5, or with `tune: model` the whole T5, the paper's baseline.
`fit_together` trains the prompts of several runs in one program. What one update computes is in
`step.py`; when a run logs, evaluates and saves is in `loop.py`; `run.py` prepares a run.
"""

import contextlib
import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from spt_jax.config.fields import to_dict
from spt_jax.config.train import TrainConfig
from spt_jax.data.pipeline import prefetch, stack_batches, train_batches
from spt_jax.distributed.main_process import main_process, to_host
from spt_jax.errors import RunError, explain_out_of_memory, require, shorten
from spt_jax.evaluation.scores import Scores, majority_score
from spt_jax.loop import Batch, Job, Labels, Metrics, Program, States, run_jobs
from spt_jax.models.backbone import save_backbone
from spt_jax.prompts.file import row_metadata, save_prompt
from spt_jax.prompts.parameterization import materialize
from spt_jax.pytree import count_params, device_digest, nbytes
from spt_jax.run import (
    Run,
    describe_dev,
    prepare_runs,
    read_as_text,
    resume,
    score_baselines,
    score_runs,
)
from spt_jax.runs.checkpoints import Restored
from spt_jax.runs.folder import RunFolder
from spt_jax.runs.progress import say
from spt_jax.runs.timing import summarize
from spt_jax.runs.trackers import require_packages
from spt_jax.runs.workdir import open_workdir
from spt_jax.sharding import place_batch, replicated, state_shardings
from spt_jax.step import jit_step, jit_steps
from spt_jax.t5.flops import step_flops
from spt_jax.train_state import TrainState, init_state, keep_best
from spt_jax.typing import PyTree


def fit(
    config: TrainConfig,
    workdir: Path,
    *,
    overwrite: bool = False,
    command: Sequence[str] = (),
    profile: int = 0,
) -> dict:
    """Train what the config says, in its folder, and return its result.

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
    [outcome] = fit_together(
        [config], [workdir], overwrite=overwrite, command=command, profile=profile
    )
    if isinstance(outcome, RunError):
        raise outcome
    assert outcome is not None  # only a run with a stop is left
    return outcome


def fit_together(
    configs: Sequence[TrainConfig],
    workdirs: Sequence[Path],
    *,
    overwrite: bool = False,
    command: Sequence[str] = (),
    profile: int = 0,
    stops: Sequence[int] | None = None,
) -> list[dict | RunError | None]:
    """Train several prompts of one frozen model in one program, each as `fit` would alone.

    Each run has its own folder, log, checkpoints and result. It may be resumed alone or together
    with any others; runs need not stand at the same step.

    Args:
        configs: The runs; `config/sharing.py` says which may train together.
        workdirs: Folder of each run. A finished run is read back.
        overwrite: Delete the runs that are there first.
        command: The command line, for the manifests.
        profile: Steps to trace, in the folder of the first run that is not finished.
        stops: Step at which each run is left for now, which `eval.every` divides or at which the
            run ends. So it can be continued as if it had not been left.

    Returns:
        The result of each run as `fit` returns it; the error if its loss was not finite, which does
        not end the other runs; or None if it was left before its end.

    Raises:
        ValueError: Two runs have one folder, the runs cannot train together, a run is not evaluated
            at its stop, or see `fit`.
        FileNotFoundError, NotADirectoryError, PermissionError, ConnectionError: See `fit`.
        RunError, Preempted: See `fit`.
    """
    places = [str(workdir) for workdir in workdirs]
    for place in places:
        require(places.count(place) == 1, f"two runs have the folder '{place}'; each needs its own")
    stops = [config.steps for config in configs] if stops is None else stops
    for config, stop in zip(configs, stops, strict=True):
        require_packages(config.log)
        require(
            stop >= config.steps or stop % config.eval.every == 0,
            f"a run is to stop at step {stop}, but it is evaluated every {config.eval.every} "
            "steps; give a multiple",
        )
    with contextlib.ExitStack() as open_folders:
        folders = [open_folders.enter_context(open_workdir(Path(place))) for place in workdirs]
        outcomes: list[dict | RunError | None] = []
        for config, folder in zip(configs, folders, strict=True):
            outcomes.append(folder.finished(config, overwrite=overwrite))
            if outcomes[-1] is not None:
                say(f"{folder} is finished; --overwrite trains it again")
        left = [number for number, outcome in enumerate(outcomes) if outcome is None]
        if left:
            runs = prepare_runs([configs[number] for number in left])
            unfinished = [folders[number] for number in left]
            with contextlib.ExitStack() as claims:
                states = [_init_state(run) for run in runs]
                digest = device_digest(runs[0].frozen)  # of the model that all runs share
                for run, folder in zip(runs, unfinished):
                    claims.enter_context(
                        folder.claim(
                            to_dict(run.config),
                            run.identity,
                            run.data.facts,
                            command,
                            overwrite=overwrite,
                        )
                    )
                ends = [stops[number] for number in left]
                found = _train(runs, unfinished, states, digest, profile, ends)
            for number, outcome in zip(left, found, strict=True):
                outcomes[number] = outcome
    return outcomes


def _train(
    runs: Sequence[Run],
    folders: Sequence[RunFolder],
    states: States,
    digest: dict,
    profile: int,
    stops: Sequence[int],
) -> list[dict | RunError | None]:
    """Train runs whose folders are claimed, score their best steps on test, and write that."""
    with explain_out_of_memory(_memory_advice(runs)):
        jobs = [_make_job(*parts) for parts in zip(runs, folders, stops, strict=True)]
        outcomes: list[Any] = run_jobs(_make_program(runs, states, profile), jobs, folders, states)
    _require_unchanged(runs[0].frozen, digest)
    for n, outcome in enumerate(outcomes):
        if isinstance(outcome, TrainState) and _is_left(outcome, runs[n].config):
            outcomes[n] = None
    whole = [n for n, outcome in enumerate(outcomes) if isinstance(outcome, TrainState)]
    if not whole:
        return outcomes
    for n in whole:
        if (steps := int(outcomes[n].step)) < runs[n].config.steps:
            patience = runs[n].config.eval.patience
            say(f"stopped at step {steps}: {patience} evaluations without gain")
    results = _make_results(
        [runs[n] for n in whole], [outcomes[n] for n in whole], [folders[n] for n in whole]
    )
    for n, result in zip(whole, results):
        _write_artifacts(runs[n], to_host(outcomes[n].best.trained), result, folders[n])
        folders[n].write_result(result)
        outcomes[n] = result
    return outcomes


def _is_left(state: TrainState, config: TrainConfig) -> bool:
    """Return whether a run has steps left to do after it was stopped."""
    return int(state.step) < config.steps and int(state.patience_left) != 0


def _init_state(run: Run) -> TrainState:
    """Make the state before the first step, laid out over the devices."""
    # A copy, because the state is donated: model tuning would give the backbone's weights away.
    trained = jax.tree.map(jnp.copy, run.trained)
    make = functools.partial(
        init_state, tx=run.tx, patience=run.config.eval.patience, keep_best=True
    )
    shardings = state_shardings(jax.eval_shape(make, trained), run.backbone.mesh)
    return jax.jit(make, out_shardings=shardings)(trained)


def _make_program(runs: Sequence[Run], states: States, profile: int) -> Program:
    """Hand the runs to the loop: their compiled update, and their evaluation on dev."""
    mesh, frozen = runs[0].backbone.mesh, runs[0].frozen
    model, loss = runs[0].backbone.model, runs[0].config.loss
    accumulate = runs[0].config.optimizer.accumulate
    shardings = [state_shardings(state, mesh) for state in states]

    def update(
        numbers: Sequence[int], states: States, batches: Sequence[Batch]
    ) -> tuple[States, Sequence[Metrics]]:
        chosen, whole = [runs[number] for number in numbers], replicated(mesh)
        if len(chosen) == 1:
            [run], [number] = chosen, numbers
            step = jit_step(
                model, run.tx, loss, accumulate=accumulate, shardings=(shardings[number], whole)
            )
            batch = place_batch(batches[0], mesh)
            state, metrics = step(states[0], run.frozen, batch, run.key, run.pull)
            return [state], [metrics]
        steps = jit_steps(
            model,
            [(run.config.optimizer, run.config.steps) for run in chosen],
            loss,
            accumulate=accumulate,
            shardings=(tuple(shardings[number] for number in numbers), whole),
        )
        batch = place_batch(stack_batches(batches), mesh, axes=".B")
        rates = tuple(run.config.optimizer.learning_rate for run in chosen)
        keys, pulls = tuple(run.key for run in chosen), tuple(run.pull for run in chosen)
        return steps(tuple(states), frozen, batch, keys, rates, pulls)

    def evaluate_dev(
        numbers: Sequence[int], states: States
    ) -> tuple[States, Sequence[dict[str, Any]]]:
        chosen = [runs[number] for number in numbers]
        scores = score_runs(chosen, [state.trained for state in states], "dev")
        states = [
            keep_best(state, of_run.score, of_run.rank_score, run.config.eval.patience)
            for run, state, of_run in zip(chosen, states, scores)
        ]
        for run, state, of_run in zip(chosen, states, scores):
            say(describe_dev(run, state, of_run, named=len(runs) > 1))
        return states, [{"split": "dev", **of_run.to_dict()} for of_run in scores]

    names = {run.data.task.name: None for run in runs}
    title = f"training {', '.join(names)}"
    if len(runs) > 1:
        title = f"training {len(runs)} prompts for {shorten(', '.join(names), 30)}"
    return Program(title, update, evaluate_dev, mesh, profile)


def _make_job(run: Run, folder: RunFolder, stop: int) -> Job:
    """Hand a run to the loop: its batches, its intervals, and how it is resumed."""
    config, train = run.config, run.data.rows["train"]
    dataset = train_batches(
        train, config.data, seed=config.seed, targets_width=max(map(len, train.targets))
    )

    def batches(start: int, stop: int) -> Iterator[tuple[Labels, Batch]]:
        return (({}, batch) for batch in prefetch(dataset, start, stop))

    def resume_checked(restored: Restored) -> TrainState:
        folder.check_checkpoint(restored.metadata, config)
        return resume(run, restored)

    return Job(
        steps=config.steps,
        batches=batches,
        resume=resume_checked,
        evaluate_every=config.eval.every,
        log=config.log,
        metadata={
            "config": to_dict(config),
            **run.identity,
            "dev_rows": run.dev_rows,
        },
        flops=functools.partial(
            step_flops,
            run.backbone.model.config,
            prompt=config.prompt.length if config.prompt else 0,
            tune=config.tune,
        ),
        stop=stop,
    )


def _make_results(
    runs: Sequence[Run], states: States, folders: Sequence[RunFolder]
) -> list[dict[str, Any]]:
    """Score the best step of each run on test, and put the baselines and the costs beside it."""
    tests = score_runs(runs, [state.best.trained for state in states], "test")
    known: dict[Any, Scores] = {}
    return [
        _make_result(run, state, folder, test, score_baselines(run, known))
        for run, state, folder, test in zip(runs, states, folders, tests, strict=True)
    ]


def _make_result(
    run: Run,
    state: TrainState,
    folder: RunFolder,
    test: Scores,
    baselines: Mapping[str, float | None],
) -> dict[str, Any]:
    """Return the result of a run."""
    config, task = run.config, run.data.task
    wayward = {}
    if run.pull is not None:
        wayward = {"wayward": read_as_text(run, materialize(state.best.trained["prompt"]))}
    return {
        "task": task.name,
        "model": run.backbone.name,
        "tune": config.tune,
        "score": test.score,
        "rank_score": test.rank_score,
        "invalid": test.invalid,
        "metrics": dict(test.metrics),
        "cut_inputs": {name: 100 * part.truncated for name, part in run.data.rows.items()},
        "majority_score": majority_score(task),
        **baselines,
        "dev_score": round(float(state.best.score), 4),  # kept as float32
        "dev_majority_score": run.data.dev_majority_score,
        "best_step": int(state.best.step),
        "steps": config.steps,
        "steps_done": int(state.step),
        "trained_params": count_params(state.trained),
        "frozen_params": count_params(run.frozen),
        "frozen_unchanged": True if jax.tree.leaves(run.frozen) else None,
        "opt_state_bytes": nbytes(state.opt_state),
        "checkpoint_bytes": folder.checkpoint_bytes(int(state.step)),
        **wayward,
        **summarize(folder.read_timing()),
        "seed": config.seed,
    }


@main_process
def _write_artifacts(run: Run, best: PyTree, result: Mapping, folder: RunFolder) -> None:
    """Write the best prompt and that before training as files, and a model that was trained."""
    config, backbone = run.config, run.backbone
    if config.tune == "model":
        save_backbone(
            folder.model_folder,
            f"{backbone.name} tuned on {run.data.task.name}",
            backbone.model.config,
            best["t5"],
            backbone.tokenizer,
            dtype="float32",
        )
    if config.prompt is not None:
        of_run = {
            "model": backbone.name,
            "fingerprint": backbone.fingerprint,
            "param_dtype": backbone.param_dtype,
            "task": run.data.task.name,
            "length": config.prompt.length,
            "init": config.prompt.init,
        }
        start = np.asarray(materialize(run.trained["prompt"]))
        save_prompt(folder.start_file, start, {**of_run, "step": 0})
        metadata = {
            **of_run,
            "step": result["best_step"],
            "dev_score": result["dev_score"],
            "score": result["score"],
            "rank_score": result["rank_score"],
            **row_metadata(to_dict(config)),
        }
        save_prompt(folder.prompt_file, np.asarray(materialize(best["prompt"])), metadata)


def _memory_advice(runs: Sequence[Run]) -> str:
    config, sizes = runs[0].config, runs[0].backbone.mesh.shape
    fewer = f"fewer runs at once than {len(runs)}, " if len(runs) > 1 else ""
    return (
        f"try {fewer}--remat=full, a larger --optimizer.accumulate (now "
        f"{config.optimizer.accumulate}), a smaller --eval.batch_size, or more of --mesh.fsdp or "
        f"--mesh.model (now {sizes['fsdp']} and {sizes['model']}); `spt-jax plan` says what fits"
    )


def _require_unchanged(frozen: PyTree, digest: dict) -> None:
    if device_digest(frozen) != digest:
        raise RunError("a frozen weight changed while training; this is a defect of spt_jax")
    if digest:
        say(f"all {count_params(frozen):,} frozen parameters are bit-identical to the start")
