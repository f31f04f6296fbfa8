"""The training loop, in which prompt tuning, model tuning and pretraining all run.

`step.py` says what one update computes; this module says when it is logged, evaluated and saved.
The batch and the dropout key of a step are functions of (seed, step), so a resumed run repeats the
undisturbed one bit for bit.

The loop trains one run, or several that share a program. Each run has its own files and its own
step, and ends by itself; a run that ends is taken out, and the others go on.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from spt_jax.config.train import LogConfig
from spt_jax.distributed.preemption import poll
from spt_jax.errors import Preempted, RunError
from spt_jax.runs.checkpoints import Checkpoints, Restored
from spt_jax.runs.folder import RunFolder
from spt_jax.runs.log import RunLog
from spt_jax.runs.profiling import StepTrace
from spt_jax.runs.progress import Bar, say
from spt_jax.runs.saver import Saver, was_evaluated
from spt_jax.runs.timing import Clock
from spt_jax.runs.trackers import open_listeners
from spt_jax.step import require_finite
from spt_jax.t5.flops import peak_flops
from spt_jax.train_state import TrainState
from spt_jax.typing import Array

Labels = dict[str, str]
Batch = dict[str, np.ndarray]
Metrics = dict[str, Array]
States = Sequence[TrainState]


@dataclass(frozen=True)
class Job:
    """What one run brings to the loop.

    Args:
        steps: Updates of the whole run.
        batches: `batches(start, stop)` yields (labels, batch) for the updates start + 1 to stop.
            The labels stand in the log line of the update, before its metrics.
        resume: `resume(restored)` fits the state of a checkpoint to the options of now.
        evaluate_every: Steps between evaluations; the last step is evaluated too.
        log: Logging and checkpoints.
        metadata: JSON values that are saved with every checkpoint.
        flops: `flops(batch)` counts the operations of one update.
        stop: Step at which the run is left before its end; None for its end. It is evaluated and
            saved there if `evaluate_every` divides the step.
    """

    steps: int
    batches: Callable[[int, int], Iterator[tuple[Labels, Batch]]]
    resume: Callable[[Restored], TrainState]
    evaluate_every: int
    log: LogConfig
    metadata: Mapping[str, Any]
    flops: Callable[[Batch], float]
    stop: int | None = None

    @property
    def last_step(self) -> int:
        """The step at which the loop ends the run."""
        return self.steps if self.stop is None else min(self.steps, self.stop)


@dataclass(frozen=True)
class Program:
    """What the runs of a loop have in common.

    `update` and `evaluate` get the numbers of the runs that they are called for, which count the
    jobs from 0, and a state of each.

    Args:
        title: Text beside the progress bar.
        update: `update(numbers, states, batches)` dispatches one update of each run, donates the
            states, and returns the next states and the metrics, scalars on the device.
        evaluate: `evaluate(numbers, states)` measures the step of each state. It returns the
            states, with the best evaluation updated if they keep one, and the log records, each of
            which has a "split".
        mesh: The devices; one device where None.
        profile: Steps to trace, in the folder of the first run; 0 traces none.
    """

    title: str
    update: Callable[[Sequence[int], States, Sequence[Batch]], tuple[States, Sequence[Metrics]]]
    evaluate: Callable[[Sequence[int], States], tuple[States, Sequence[dict[str, Any]]]]
    mesh: Mesh | None = None
    profile: int = 0


def run_job(program: Program, job: Job, folder: RunFolder, state: TrainState) -> TrainState:
    """Train one run as `run_jobs` does, and return its last state.

    Raises:
        RunError, Preempted: See `run_jobs`.
    """
    [outcome] = run_jobs(program, [job], [folder], [state])
    if isinstance(outcome, RunError):
        raise outcome
    return outcome


def run_jobs(
    program: Program, jobs: Sequence[Job], folders: Sequence[RunFolder], states: States
) -> list[TrainState | RunError]:
    """Train each run from wherever it stands in its folder.

    Args:
        program: What the runs have in common.
        jobs: What each run is.
        folders: The claimed folder of each run.
        states: The state of each run before its first step.

    Returns:
        The last state of each run, or the error that ended it: its loss is not finite.

    Raises:
        RunError: No checkpoint of a run is whole, or a file cannot be written.
        Preempted: A signal ended the runs, which are saved; see `distributed/preemption.py`.
    """
    # A run starts in one of four modes:
    # 1. Finished: `RunFolder.finished` has returned its result, and it is not given to the loop.
    # 2. New: the folder has no checkpoint. This is also what --overwrite leaves.
    # 3. Resumed: the newest whole checkpoint replaces `state`, fitted to the options of now; the
    #    logs are cut after its step.
    # 4. Resumed before an evaluation: a signal came when that step was due to be evaluated. The
    #    evaluation is done first, and then the run goes on as in 3.
    with contextlib.ExitStack() as files:
        runs = [
            _Run(number, *parts, mesh=program.mesh, files=files)
            for number, parts in enumerate(zip(jobs, folders, states, strict=True))
        ]
        _train(program, runs, folders[0], files)
    return [run.error or run.state for run in runs]


class _Run:
    """One run of the loop: its files, and where it stands."""

    def __init__(
        self,
        number: int,
        job: Job,
        folder: RunFolder,
        state: TrainState,
        *,
        mesh: Mesh | None,
        files: contextlib.ExitStack,
    ):
        checkpoints = files.enter_context(
            Checkpoints(folder.checkpoints, keep=job.log.keep, saved=folder.publish)
        )
        restored = checkpoints.restore_newest(state, added=("best/rank_score",))
        if restored is not None:
            say(f"resumed at step {restored.step} of {job.steps}")
            state = job.resume(restored)
        self.number, self.job, self.folder, self.state = number, job, folder, state
        self.start = self.step = int(state.step)
        self.evaluated = was_evaluated(restored)
        self.error: RunError | None = None
        self.saving = False
        self.shown = _best_score(state)  # what the progress bar says of the run
        self._labels: Labels = {}
        self._pending: list[tuple[Labels, Metrics]] = []
        self._log = files.enter_context(
            RunLog(
                folder.log_file,
                resume_at=self.step,
                evaluated=self.evaluated,
                listeners=lambda: open_listeners(job.log, folder, self.step),
            )
        )
        timing = files.enter_context(RunLog(folder.timing_file, resume_at=self.step))
        devices = jax.devices()[:1] if mesh is None else mesh.devices.flat
        self._clock = Clock(timing, job.flops, peak_flops(devices))
        self._saver = Saver(checkpoints, (self._log, timing), job.log, job.metadata)
        self._batches = self._clock.watch(job.batches(self.step, job.steps))
        self._out_of_patience = int(state.patience_left) == 0

    @property
    def training(self) -> bool:
        """Whether there is a step left to do."""
        return self.error is None and self.step < self.job.last_step and not self._out_of_patience

    @property
    def evaluating(self) -> bool:
        """Whether the newest step is due to be evaluated."""
        at_end = self.step == self.job.steps
        return self.error is None and (at_end or self.step % self.job.evaluate_every == 0)

    def next_batch(self) -> Batch:
        """Return the batch of the next step."""
        self._labels, batch = next(self._batches)
        return batch

    def advance(self, state: TrainState, metrics: Metrics) -> None:
        """Take what an update has returned, and log the metrics that are due."""
        self.state = state
        self.step += 1
        self._pending.append((self._labels, metrics))
        self.saving = self.evaluating or self._saver.due(self.step)
        if self.saving or self.step % self.job.log.every == 0:
            # Fetch the metrics of earlier steps only, so that the device keeps working on the
            # newest one. Before an evaluation or a save, fetch the newest too.
            self._write_metrics(keep_newest=not self.saving)

    def _write_metrics(self, *, keep_newest: bool = False) -> None:
        """Fetch and log the metrics of the pending steps."""
        ahead = [self._pending.pop()] if keep_newest else []
        last = self.step - len(ahead)
        fetched = jax.device_get([metrics for _, metrics in self._pending])
        losses: dict[str, list[float]] = {}
        for number, ((labels, _), metrics) in enumerate(
            zip(self._pending, fetched, strict=True), start=last - len(fetched) + 1
        ):
            try:
                require_finite(number, metrics)
            except RunError as error:
                self.error = error
                return
            self._log.write({"step": number, **labels, **metrics})
            losses.setdefault(labels.get("group", "loss"), []).append(metrics["loss"])
        means = {name: float(np.mean(values)) for name, values in sorted(losses.items())}
        self.shown |= means | self._clock.lap(last, len(fetched))
        self._pending = ahead

    def take_evaluation(self, state: TrainState, record: Mapping[str, Any]) -> None:
        """Take what an evaluation has returned, and log it."""
        self.state = state
        self._log.write({"step": self.step, **record})
        self._out_of_patience = int(state.patience_left) == 0
        self.shown |= _best_score(state)

    def save(self) -> None:
        """Start saving the step. The log already holds all of its lines, so a kill loses none."""
        self._saver.save(self.step, self.state)
        self._clock.restart()

    def leave(self) -> None:
        """Save the step and wait until it is saved. An evaluation that is due is left to do."""
        if self.error is None:
            self._write_metrics()
            self._saver.save_and_wait(self.step, self.state, evaluated=not self.evaluating)


def _train(
    program: Program, runs: Sequence[_Run], folder: RunFolder, files: contextlib.ExitStack
) -> None:
    """Do the steps that the runs have left, with evaluations and checkpoints in between."""
    start, total = sum(run.start for run in runs), sum(run.job.last_step for run in runs)
    bar = files.enter_context(Bar(program.title, total, start))
    trace = files.enter_context(
        StepTrace(
            folder.profile_folder,
            program.profile,
            start=runs[0].start,
            stop=runs[0].job.last_step,
            place=f"{folder}/profile",
        )
    )
    poll()  # A signal that came while the model was loaded ends the runs before they compile.
    _evaluate(program, [run for run in runs if not run.evaluated])
    while training := [run for run in runs if run.training]:
        batches = [run.next_batch() for run in training]
        with trace.step(runs[0].step + 1, runs[0].state):
            numbers, states = _numbers_and_states(training)
            states, metrics = program.update(numbers, states, batches)
        for run, state, of_run in zip(training, states, metrics, strict=True):
            run.advance(state, of_run)
        bar.update(sum(run.step for run in runs), _shown(training))
        try:
            poll()
            if evaluating := [run for run in training if run.evaluating]:
                _evaluate(program, evaluating)
                bar.update(sum(run.step for run in runs), _shown(training))
        except Preempted as notice:
            for run in training:
                run.leave()
            raise Preempted(f"{notice} {_describe_steps(training)} saved") from None
        for run in training:
            if run.error is not None and len(runs) > 1:
                say(f"{run.folder} is given up: {run.error}")
            elif run.error is None and run.saving:
                run.save()


def _evaluate(program: Program, runs: Sequence[_Run]) -> None:
    """Evaluate the step of each run, and log it."""
    if not runs:
        return
    states, records = program.evaluate(*_numbers_and_states(runs))
    for run, state, record in zip(runs, states, records, strict=True):
        run.take_evaluation(state, record)


def _best_score(state: TrainState) -> dict[str, float]:
    """Return the best dev score, once there is one."""
    if state.best is None or int(state.best.step) == 0:
        return {}
    return {"score": float(state.best.score)}


def _numbers_and_states(runs: Sequence[_Run]) -> tuple[tuple[int, ...], tuple[TrainState, ...]]:
    return tuple(run.number for run in runs), tuple(run.state for run in runs)


def _shown(runs: Sequence[_Run]) -> dict[str, float]:
    """Return what the progress bar says of several runs: the means, and the sum of speeds."""
    names = dict.fromkeys(name for run in runs for name in run.shown)
    values = {name: [run.shown[name] for run in runs if name in run.shown] for name in names}
    return {
        name: float(sum(found) if name == "examples/s" else np.mean(found))
        for name, found in values.items()
    }


def _describe_steps(runs: Sequence[_Run]) -> str:
    """Return `at step 12, which is`, or for several runs `at steps 12, 12 and 8, which are`."""
    *others, last = [str(run.step) for run in runs]
    if not others:
        return f"at step {last}, which is"
    return f"at steps {', '.join(others)} and {last}, which are"
