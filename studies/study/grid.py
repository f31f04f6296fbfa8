"""List the runs of the results: each has a task, a method, a seed and its whole config.

The methods are prompt tuning, the paper's model tuning, prompt tuning with another length or init,
both with more steps, and more prompts for ensembles.

Invariant: runs of the same method differ only in task and seed.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from spt_jax.config.train import (
    DataConfig,
    EvalConfig,
    LogConfig,
    OptimizerConfig,
    PromptConfig,
    TaskConfig,
    TrainConfig,
)

PROMPT, MODEL = "prompt_tuning", "model_tuning"
MEMBER = "ensemble"  # prompt tuning with seeds beside those asked for
BUCKETS = (32, 48, 64, 96)
DEV_ROWS = 500
"""Rows of dev, a fixed sample, that a step is chosen by; test is always scored whole."""

# What a run costs on two cores: examples per second at 64 inputs behind 20 vectors, the cost of a
# scored row in such examples, rows of a test split, and seconds of reading and compiling.
EXAMPLES_PER_SECOND, POSITIONS, SCORED_ROW, TEST_ROWS, STARTUP = 100, 84, 0.5, 1500, 45


class Settings(NamedTuple):
    """The settings that differ between methods and tasks; `length` is 0 without a prompt."""

    steps: int
    rate: float
    length: int
    batch: int
    inputs: int
    targets: int
    every: int


class Sweep(NamedTuple):
    """Prompt tuning with other lengths and inits, for some of the tasks."""

    tasks: tuple[str, ...]
    lengths: tuple[int, ...]
    inits: tuple[str, ...]


class Longer(NamedTuple):
    """Prompt tuning or model tuning with more steps, for some of the tasks and seeds.

    `length` is the length of the prompt, if it differs from the task's.
    """

    tune: str
    steps: int
    tasks: tuple[str, ...]
    seeds: tuple[int, ...]
    length: int | None = None

    @property
    def method(self) -> str:
        """The name of the method."""
        name = f"steps_{self.steps}" if self.tune == PROMPT else f"{self.tune}_steps_{self.steps}"
        return name if self.length is None else f"{name}_length_{self.length}"


class Ensembles(NamedTuple):
    """Tasks whose prompts are combined, and the seeds of their prompts."""

    tasks: tuple[str, ...]
    seeds: tuple[int, ...]


@dataclass(frozen=True)
class Run:
    """One training run and its folder, `<workdir>/<task>/<method>/seed<k>`."""

    task: str
    method: str
    seed: int
    config: TrainConfig
    folder: Path

    def __str__(self) -> str:
        return f"{self.task} {self.method} seed {self.seed}"


def length_method(length: int) -> str:
    """Return the method that trains prompts of this length."""
    return f"length_{length}"


def init_method(init: str) -> str:
    """Return the method that trains prompts with this init."""
    return f"init_{init}"


def settings_of(
    table: Mapping[tuple[str, str], Settings], task: str, method: str, steps: int | None = None
) -> Settings:
    """Return the settings of a task, or of `*`; `steps` replaces theirs for a trial."""
    settings = table.get((task, method)) or table["*", method]
    if steps is None:
        return settings
    return settings._replace(steps=steps, every=min(steps, settings.every))


def plan(
    tasks: Mapping[str, TaskConfig],
    table: Mapping[tuple[str, str], Settings],
    sweep: Sweep,
    seeds: Sequence[int],
    workdir: Path,
    *,
    longer: Sequence[Longer],
    ensembles: Ensembles,
    model: str,
    steps: int | None = None,
) -> list[Run]:
    """Return all runs in the order of training: task by task, then the figures', then the longest.

    Args:
        tasks: Configs by name.
        table: Settings by (task or `*`, method).
        sweep: Runs of the figures.
        seeds: Seeds of all runs. The run of the first one scores the unprompted model, too.
        workdir: Folder of all runs.
        longer: Runs of more steps, which are left out if `steps` is given.
        ensembles: More prompts, with other seeds.
        model: Name of the backbone.
        steps: Steps of every run. By default those of the table.
    """
    runs = []

    def add(
        name: str, method: str, settings: Settings, init: str, seeds: Sequence[int] = seeds
    ) -> None:
        common = _config(tasks[name], settings, init, model)
        for seed in seeds:
            baselines = method == PROMPT and seed == seeds[0]
            scored = dataclasses.replace(common.eval, baselines=baselines)
            config = dataclasses.replace(common, seed=seed, eval=scored)
            runs.append(Run(name, method, seed, config, workdir / name / method / f"seed{seed}"))

    first = PromptConfig().init
    more = [seed for seed in ensembles.seeds if seed not in seeds]
    for name in tasks:
        for method in (PROMPT, MODEL):
            add(name, method, settings_of(table, name, method, steps), first)
        if name in ensembles.tasks:
            add(name, MEMBER, settings_of(table, name, PROMPT, steps), first, more)
    for name in sweep.tasks:
        if name in tasks:
            settings = settings_of(table, name, PROMPT, steps)
            for length in sweep.lengths:
                if length != settings.length:
                    changed = settings._replace(length=length)
                    add(name, length_method(length), changed, first)
            for init in sweep.inits:
                if init != first:
                    add(name, init_method(init), settings, init)
    for name in tasks:
        for more_steps in longer if steps is None else ():
            if name in more_steps.tasks:
                settings = settings_of(table, name, more_steps.tune)
                changed = settings._replace(
                    steps=more_steps.steps,
                    every=settings.every * more_steps.steps // settings.steps,  # as often in a run
                    length=more_steps.length or settings.length,
                )
                chosen = [seed for seed in seeds if seed in more_steps.seeds]
                add(name, more_steps.method, changed, first, chosen)
    return runs


def expected_minutes(config: TrainConfig) -> float:
    """Return roughly the minutes that a run takes on two cores."""
    length = config.prompt.length if config.prompt else 0
    rows = config.steps / config.eval.every * DEV_ROWS + TEST_ROWS
    examples = config.steps * config.data.batch_size + SCORED_ROW * rows
    positions = (config.data.inputs_length + length) / POSITIONS
    return (examples * positions / EXAMPLES_PER_SECOND + STARTUP) / 60


def _config(task: TaskConfig, settings: Settings, init: str, model: str) -> TrainConfig:
    common = TrainConfig(
        task=task,
        model=model,
        data=DataConfig(
            inputs_length=settings.inputs,
            targets_length=settings.targets,
            batch_size=settings.batch,
            buckets=BUCKETS,
        ),
        eval=EvalConfig(every=settings.every, max_rows=DEV_ROWS),
        log=LogConfig(keep=1),
        steps=settings.steps,
        dropout_rate=0.0,
    )
    if not settings.length:
        optimizer = OptimizerConfig(
            preset="fresh",
            learning_rate=settings.rate,
            multiply_by_parameter_scale=True,
            weight_decay=0.0,
        )
        return dataclasses.replace(common, tune="model", prompt=None, optimizer=optimizer)
    return dataclasses.replace(
        common,
        prompt=PromptConfig(length=settings.length, init=init),  # type: ignore[arg-type]
        optimizer=OptimizerConfig(learning_rate=settings.rate, schedule="linear"),
    )
