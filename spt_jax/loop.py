"""The training loop, in which prompt tuning, model tuning and pretraining all run.

`step.py` says what one update computes; this module says when it is logged, evaluated and saved.
The batch and the dropout key of a step are functions of (seed, step), so a resumed run repeats the
undisturbed one bit for bit.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from spt_jax.config.train import LogConfig
from spt_jax.distributed.preemption import poll
from spt_jax.errors import Preempted
from spt_jax.runs.checkpoints import Checkpoints, Restored
from spt_jax.runs.folder import RunFolder
from spt_jax.runs.log import RunLog
from spt_jax.runs.profiling import StepTrace
from spt_jax.runs.progress import Bar, say
from spt_jax.runs.saver import Saver, was_evaluated
from spt_jax.runs.timing import Clock
from spt_jax.state import TrainState
from spt_jax.t5.flops import peak_flops
from spt_jax.train_metrics import require_finite
from spt_jax.typing import Array

Labels = dict[str, str]
Batch = dict[str, np.ndarray]


@dataclass(frozen=True)
class Job:
    """What one kind of training brings to the loop.

    Args:
        title: Text beside the progress bar.
        steps: Updates of the whole run.
        batches: `batches(start, stop)` yields (labels, batch) for the updates start + 1 to stop.
            The labels stand in the log line of the update, before its metrics.
        update: `update(state, batch)` dispatches one update, donates the state, and returns the
            next state and the metrics, scalars on the device.
        evaluate: `evaluate(state)` measures the step of a state. It returns the state, with the
            best evaluation updated if it keeps one, and the log record, which has a "split".
        resume: `resume(restored)` fits the state of a checkpoint to the options of now.
        evaluate_every: Steps between evaluations; the last step is evaluated too.
        log: Logging and checkpoints.
        metadata: JSON values that are saved with every checkpoint.
        flops: `flops(batch)` counts the operations of one update.
        mesh: The devices of the run; one device where None.
        profile: Steps to trace; 0 traces none.
    """

    title: str
    steps: int
    batches: Callable[[int, int], Iterator[tuple[Labels, Batch]]]
    update: Callable[[TrainState, Batch], tuple[TrainState, dict[str, Array]]]
    evaluate: Callable[[TrainState], tuple[TrainState, dict[str, Any]]]
    resume: Callable[[Restored], TrainState]
    evaluate_every: int
    log: LogConfig
    metadata: Mapping[str, Any]
    flops: Callable[[Batch], float]
    mesh: Mesh | None = None
    profile: int = 0


def run_job(job: Job, folder: RunFolder, state: TrainState) -> TrainState:
    """Train from wherever the run in the folder stands, and return the last state.

    Args:
        job: What is trained.
        folder: The claimed folder of the run.
        state: The state before the first step.

    Raises:
        RunError: The loss is not finite, no checkpoint is whole, or a file cannot be written.
        Preempted: A signal ended the run, which is saved; see `distributed/preemption.py`.
    """
    # A run starts in one of four modes:
    # 1. Finished: `RunFolder.finished` has returned its result, and this function is not called.
    # 2. New: the folder has no checkpoint. This is also what --overwrite leaves.
    # 3. Resumed: the newest whole checkpoint replaces `state`, fitted to the options of now; the
    #    logs are cut after its step.
    # 4. Resumed before an evaluation: a signal came when that step was due to be evaluated. The
    #    evaluation is done first, and then the run goes on as in 3.
    with Checkpoints(folder.checkpoints, keep=job.log.keep, saved=folder.publish) as checkpoints:
        restored = checkpoints.restore_newest(state, added=("best/rank_score",))
        if restored is not None:
            say(f"resumed at step {restored.step} of {job.steps}")
            state = job.resume(restored)
        return _train(job, folder, checkpoints, state, evaluated=was_evaluated(restored))


def _train(
    job: Job, folder: RunFolder, checkpoints: Checkpoints, state: TrainState, *, evaluated: bool
) -> TrainState:
    """Do the steps after `state.step`, with evaluations and checkpoints in between."""
    start = int(state.step)
    events = folder.events_folder if job.log.tensorboard else None
    with (
        RunLog(folder.log_file, resume_at=start, evaluated=evaluated, events=events) as log,
        RunLog(folder.timing_file, resume_at=start) as timing,
        Bar(job.title, job.steps, start) as bar,
        StepTrace(
            folder.profile_folder,
            job.profile,
            start=start,
            stop=job.steps,
            place=f"{folder}/profile",
        ) as trace,
    ):
        devices = jax.devices()[:1] if job.mesh is None else job.mesh.devices.flat
        clock = Clock(timing, job.flops, peak_flops(devices))
        saver = Saver(checkpoints, (log, timing), job.log, job.metadata)
        poll()  # A signal that came while the model was loaded ends the run before it compiles.
        if not evaluated:
            state = _evaluate(job, state, log)
        shown = _best_score(state)
        pending: list[tuple[Labels, dict[str, Array]]] = []
        stopped = _out_of_patience(state)
        for step, (labels, batch) in enumerate(
            clock.watch(job.batches(start, job.steps)), start=start + 1
        ):
            if stopped:
                break
            with trace.step(step, state):
                state, metrics = job.update(state, batch)
            pending.append((labels, metrics))
            evaluating = step == job.steps or step % job.evaluate_every == 0
            saving = evaluating or saver.due(step)
            if saving or step % job.log.every == 0:
                # Fetch the metrics of earlier steps only, so that the device keeps working on the
                # newest one. Before an evaluation or a save, fetch the newest too.
                ahead = [] if saving else [pending.pop()]
                shown |= _write_metrics(log, step - len(ahead), pending)
                shown |= clock.lap(step, len(pending))
                pending = ahead
                bar.update(step, shown)
            try:
                poll()
                if evaluating:
                    state = _evaluate(job, state, log)
                    stopped = _out_of_patience(state)
                    bar.update(step, shown := shown | _best_score(state))
            except Preempted as notice:
                _write_metrics(log, step, pending)
                saver.leave(step, state, notice, evaluated=not evaluating)
            if saving:  # The log already holds all lines of this step, so that a kill loses none.
                saver.save(step, state)
                clock.restart()
    return state


def _evaluate(job: Job, state: TrainState, log: RunLog) -> TrainState:
    """Evaluate the step of a state, and log it."""
    state, record = job.evaluate(state)
    log.write({"step": int(state.step), **record})
    return state


def _out_of_patience(state: TrainState) -> bool:
    return int(state.patience_left) == 0


def _best_score(state: TrainState) -> dict[str, float]:
    """Return the best dev score for the progress bar, once there is one."""
    if state.best is None or int(state.best.step) == 0:
        return {}
    return {"score": float(state.best.score)}


def _write_metrics(
    log: RunLog, step: int, pending: Sequence[tuple[Labels, dict[str, Array]]]
) -> dict[str, float]:
    """Fetch and log the metrics of the pending steps, the last of which is `step`.

    Returns:
        Their mean loss for the progress bar: one by group where steps have a "group".
    """
    fetched = jax.device_get([metrics for _, metrics in pending])
    losses: dict[str, list[float]] = {}
    for number, ((labels, _), metrics) in enumerate(
        zip(pending, fetched, strict=True), start=step - len(pending) + 1
    ):
        require_finite(number, metrics)
        log.write({"step": number, **labels, **metrics})
        losses.setdefault(labels.get("group", "loss"), []).append(metrics["loss"])
    return {name: float(np.mean(values)) for name, values in sorted(losses.items())}
