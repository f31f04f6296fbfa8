"""Rows of many callers become batches: a queue, and the one thread that uses the devices.

A row names its prompt and brings its settings, so rows of any tasks and settings share a batch.
A batch starts with the row that has waited longest. It takes rows of the same bucket of length, and
then shorter ones in places that would be padding. Every shape that a batch can have is compiled by
`Batcher.start`, before `ready` is set.

Batches are static: all rows of a batch are answered when the last of them is.

Invariant: a row keeps the bank that its caller saw, so a prompt that is unloaded while the row
waits still answers it.
"""

import functools
import itertools
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from spt_jax.config.serve import EngineConfig
from spt_jax.config.train import DataConfig
from spt_jax.errors import RunError, one_line
from spt_jax.models.backbone import Backbone
from spt_jax.prediction.predictor import run_batches, score_batch, write_batch
from spt_jax.prompts.bank import PromptBank
from spt_jax.sharding import spreadable_rows

Program = Literal["write", "score"]

WORDS = 4
"""Answers that a row scores; a caller gives the row again for more. The number is part of the shape
of the compiled program, and most tasks have two to four label words."""


@dataclass(frozen=True)
class Row:
    """A text and what is asked about it: an answer, or the log-probabilities of given answers.

    Args:
        prompt: Name of the prompt, or None.
        ids: Token ids of the text, its end marker last, int32 [T].
        answers: Given answers to score, int32 [W, U] with W at most `WORDS`; None to write one.
        temperature: See `make_row_sampler`, like all that follow.
        top_p: Top-p.
        seed: Seed.
        number: Number of the row for what it draws.
    """

    prompt: str | None
    ids: np.ndarray
    answers: np.ndarray | None = None
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    number: int = 0

    @property
    def program(self) -> Program:
        return "write" if self.answers is None else "score"


class BatchReport(NamedTuple):
    """What was in a batch.

    Args:
        program: `write` or `score`.
        prompts: Prompt of each row, in the order of the rows.
        size: Rows that were computed, padding included.
        width: Tokens of a row, padding included.
        seconds: Time that the devices took.
        waited: Seconds that the first row waited before.
    """

    program: Program
    prompts: tuple[str | None, ...]
    size: int
    width: int
    seconds: float
    waited: float


class Output(NamedTuple):
    """What a row gets.

    Args:
        values: Ids int32 [U] and log-probabilities float32 [U] of a written answer, or the
            log-probabilities float32 [W] of the given answers.
        batch: The batch that the row was in.
    """

    values: tuple[np.ndarray, ...]
    batch: BatchReport


class QueueFull(RunError):
    """No more rows fit into the queue; `retry_after` is the number of seconds to wait."""

    def __init__(self, message: str, retry_after: int):
        super().__init__(message)
        self.retry_after = retry_after


@dataclass(eq=False)
class _Job:
    """The rows of one call of `Batcher.submit`."""

    bank: PromptBank
    finish: Callable[[Sequence[Output]], Any]
    outputs: list[Output | None]
    future: Future = field(default_factory=Future)


class _Waiting(NamedTuple):
    """A row in the queue: number `place` of its job."""

    row: Row
    job: _Job
    place: int
    since: float


class Batcher:
    """Answers rows in batches, in a thread of its own.

    Args:
        backbone: The frozen model.
        config: Lengths, sizes and waits.
        on_batch: Called in that thread with the report of each batch.
        on_failure: Called in that thread with the error that ends it.
    """

    def __init__(
        self,
        backbone: Backbone,
        config: EngineConfig,
        *,
        on_batch: Callable[[BatchReport], None] = lambda report: None,
        on_failure: Callable[[BaseException], None] = lambda error: None,
    ):
        self.backbone, self.config = backbone, config
        self.ready = threading.Event()
        self.failure: BaseException | None = None
        self._on_batch, self._on_failure = on_batch, on_failure
        longest = config.inputs_length
        self.widths = (*(b for b in config.buckets if b < longest), longest)
        self.sizes = batch_sizes(config.batch_size, backbone)
        self._data = DataConfig(
            inputs_length=longest, targets_length=config.targets_length, buckets=self.widths
        )
        self._changed = threading.Condition()
        self._queue: deque[_Waiting] = deque()
        self._calls: deque[tuple[Callable[[], Any], Future]] = deque()
        self._stopping = False
        self._seconds_of_row = 0.01  # a first guess, for the time until there is room
        self._thread = threading.Thread(target=self._run, name="batches", daemon=True)

    def start(self, bank: PromptBank) -> None:
        """Start the thread. It compiles everything for banks of this shape, then sets `ready`."""
        self._bank = bank
        self._thread.start()

    def stop(self) -> None:
        """Answer the rows that wait, take no others, and end the thread."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join()

    def submit(
        self,
        rows: Sequence[Row],
        bank: PromptBank,
        finish: Callable[[Sequence[Output]], Any] = list,
    ) -> Future:
        """Put rows into the queue.

        Args:
            rows: One or more rows, of any programs.
            bank: The bank that has their prompts.
            finish: Function of the outputs in the order of the rows. The future gets its result.

        Returns:
            A future. Cancelling it takes the rows that still wait out of the queue.

        Raises:
            QueueFull: The rows do not fit.
            RunError: The thread has failed or is stopping.
        """
        job, now = _Job(bank, finish, [None] * len(rows)), time.monotonic()
        with self._changed:
            self._require_running()
            waiting = len(self._queue)
            if waiting + len(rows) > self.config.queue:
                seconds = max(1, math.ceil(self._seconds_of_row * waiting))
                raise QueueFull(
                    f"{waiting} rows wait and {len(rows)} more do not fit into the queue of "
                    f"{self.config.queue}; send the request again in {seconds} s",
                    seconds,
                )
            self._queue += [_Waiting(row, job, i, now) for i, row in enumerate(rows)]
            self._changed.notify_all()
        job.future.add_done_callback(self._forget_cancelled)
        return job.future

    def call(self, function: Callable[[], Any]) -> Future:
        """Run a function in the thread of the devices, before the next batch.

        Raises:
            RunError: The thread has failed or is stopping.
        """
        future: Future = Future()
        with self._changed:
            self._require_running()
            self._calls.append((function, future))
            self._changed.notify_all()
        return future

    @property
    def waiting(self) -> int:
        """The number of rows in the queue."""
        return len(self._queue)

    def shapes(self) -> Iterator[tuple[Program, int, int]]:
        """Yield the program, size and width of every batch that can be."""
        programs: tuple[Program, ...] = ("write", "score")
        yield from itertools.product(programs, self.sizes, self.widths)

    def _require_running(self) -> None:
        if self.failure is not None:
            raise RunError(f"the device failed: {one_line(self.failure)}; start the server again")
        if self._stopping:
            raise RunError("the server is ending and takes no more requests")

    def _forget_cancelled(self, future: Future) -> None:
        if future.cancelled():
            with self._changed:
                kept = [waiting for waiting in self._queue if waiting.job.future is not future]
                self._queue = deque(kept)

    def _run(self) -> None:
        try:
            self._warm_up()
            self.ready.set()
            while (work := self._next()) is not None:
                work()
        except BaseException as error:
            self._fail(error)

    def _warm_up(self) -> None:
        """Answer a batch of every shape."""
        answers = np.ones((WORDS, 1), np.int32)
        for program, size, width in self.shapes():
            row = Row(None, np.ones(width, np.int32), answers if program == "score" else None)
            self._answer([row] * size, self._bank)

    def _next(self) -> Callable[[], None] | None:
        """Wait for work and return it: a call or a batch; None when there will be no more."""
        with self._changed:
            while True:
                if self._calls:
                    return functools.partial(_call, *self._calls.popleft())
                if self._queue:
                    batch, since = self._choose(), self._queue[0].since
                    left = since + self.config.max_wait / 1000 - time.monotonic()
                    if len(batch) == self.sizes[-1] or left <= 0 or self._stopping:
                        self._take(batch)
                        return functools.partial(self._answer_batch, batch)
                    self._changed.wait(left)
                elif self._stopping:
                    return None
                else:
                    self._changed.wait()

    def _choose(self) -> list[_Waiting]:
        """Return the next batch: the first row of the queue, and rows that go with it."""
        first = self._queue[0]
        width = self._width(first.row)
        alike = [
            waiting
            for waiting in self._queue
            if waiting.row.program == first.row.program and waiting.job.bank is first.job.bank
        ]
        batch = [waiting for waiting in alike if self._width(waiting.row) == width]
        batch = batch[: self.sizes[-1]]
        shorter = [waiting for waiting in alike if self._width(waiting.row) < width]
        return batch + shorter[: self._size(len(batch)) - len(batch)]

    def _take(self, batch: Sequence[_Waiting]) -> None:
        taken = {id(waiting) for waiting in batch}
        self._queue = deque(waiting for waiting in self._queue if id(waiting) not in taken)

    def _width(self, row: Row) -> int:
        return next(width for width in self.widths if len(row.ids) <= width)

    def _size(self, rows: int) -> int:
        return next(size for size in self.sizes if rows <= size)

    def _answer_batch(self, batch: Sequence[_Waiting]) -> None:
        jobs = {id(waiting.job): waiting.job for waiting in batch}
        rows = [waiting.row for waiting in batch]
        started = time.monotonic()
        try:
            found = self._answer(rows, batch[0].job.bank)
        except BaseException as error:
            for job in jobs.values():
                _settle(job.future, error=error)
            if isinstance(error, Exception) and not isinstance(error, jax.errors.JaxRuntimeError):
                return  # the devices work; what these rows met need not meet others
            raise
        seconds = time.monotonic() - started
        self._seconds_of_row += (seconds / len(rows) - self._seconds_of_row) / 8
        report = BatchReport(
            program=rows[0].program,
            prompts=tuple(row.prompt for row in rows),
            size=self._size(len(rows)),
            width=max(map(self._width, rows)),
            seconds=seconds,
            waited=started - batch[0].since,
        )
        self._on_batch(report)
        for waiting, values in zip(batch, found, strict=True):
            waiting.job.outputs[waiting.place] = Output(values, report)
        for job in jobs.values():
            outputs = [output for output in job.outputs if output is not None]
            if len(outputs) == len(job.outputs):
                _settle(job.future, functools.partial(job.finish, outputs))

    def _answer(self, rows: Sequence[Row], bank: PromptBank) -> list[tuple[np.ndarray, ...]]:
        """Return the values of the rows of one batch, in their order."""
        of_rows: dict[str, np.ndarray] = {"task_ids": bank.task_ids([row.prompt for row in rows])}
        options: dict[str, Any] = {}
        if rows[0].program == "score":
            program, length = score_batch, self.config.targets_length
            of_rows["answers"] = np.zeros((len(rows), WORDS, length), np.int32)
            for number, row in enumerate(rows):
                assert row.answers is not None
                words, tokens = row.answers.shape
                of_rows["answers"][number, :words, :tokens] = row.answers
        else:
            program, options = write_batch, {"length": self.config.targets_length}
            of_rows |= {
                "temperatures": np.array([row.temperature for row in rows], np.float32),
                "top_ps": np.array([row.top_p for row in rows], np.float32),
                "seeds": np.array([row.seed for row in rows], np.uint32),
                "row_numbers": np.array([row.number for row in rows], np.int32),
            }
        values: list[tuple[np.ndarray, ...]] = [()] * len(rows)
        for indices, *found in run_batches(
            program,
            self.backbone.model,
            {"t5": self.backbone.params},
            bank.arrays,
            [row.ids for row in rows],
            of_rows,
            self._data,
            self._size(len(rows)),
            **options,
        ):
            for index, *of_row in zip(indices, *found, strict=True):
                values[index] = tuple(of_row)
        return values

    def _fail(self, error: BaseException) -> None:
        with self._changed:
            self.failure = error
            self.ready.clear()
            jobs = {id(waiting.job): waiting.job for waiting in self._queue}
            futures = [job.future for job in jobs.values()] + [call[1] for call in self._calls]
            self._queue.clear()
            self._calls.clear()
        for future in futures:
            _settle(future, error=error)
        self._on_failure(error)


def batch_sizes(batch_size: int, backbone: Backbone) -> tuple[int, ...]:
    """Return the numbers of rows that batches are padded to, each a quarter of the next.

    The devices of the mesh share the rows of each evenly.
    """
    sizes = {batch_size}
    while min(sizes) > 1:
        sizes.add(max(1, min(sizes) // 4))
    return tuple(sorted({spreadable_rows(backbone.model.mesh, size) for size in sizes}))


def _call(function: Callable[[], Any], future: Future) -> None:
    _settle(future, function)


def _settle(
    future: Future,
    function: Callable[[], Any] | None = None,
    *,
    error: BaseException | None = None,
) -> None:
    """Give a future the result of a function or an error, unless it is cancelled or settled."""
    if future.done() or not future.set_running_or_notify_cancel():
        return
    try:
        if error is not None:
            raise error
        future.set_result(None if function is None else function())
    except BaseException as raised:
        future.set_exception(raised)
