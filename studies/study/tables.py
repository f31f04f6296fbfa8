"""Format finished runs as Markdown tables: scores, goals, lengths, inits, steps, costs, tasks.

A number is the mean over the seeds with their sample deviation.

Invariant: a table shows what is missing. The number of seeds follows a score if some are missing,
and a dash means that there is no result.
"""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from study.grid import MODEL, PROMPT, init_method, length_method
from study.runs import Record

DASH = "–"
GAIN_GOAL, SHARE_GOAL = 25.0, 0.8
"""Of the built-in classifications: points over the majority, and share of model tuning's gain."""
SCORE_GOALS = {"sst2": 70.0, "trec": 70.0, "subj": 80.0, "agnews": 75.0}


@dataclass(frozen=True)
class TaskResults:
    """The results of a task.

    Args:
        name: Name of the task.
        title: Its name in the document.
        baselines: Result of `score_baselines`.
        records: Finished runs by method, in the order of their seeds. Runs of prompt tuning are
            also listed under the methods of their length and their init.
        seeds: Number of requested seeds.
    """

    name: str
    title: str
    baselines: Mapping
    records: Mapping[str, Sequence[Record]]
    seeds: int

    def values(self, method: str, name: str) -> list[float]:
        """Return a number of result.json for each seed that has it."""
        found = [record.result.get(name) for record in self.records.get(method, ())]
        return [value for value in found if value is not None]

    def mean(self, method: str, name: str = "score") -> float | None:
        """Return the mean over the seeds, or None without runs."""
        values = self.values(method, name)
        return statistics.mean(values) if values else None

    def show(self, method: str, name: str = "score") -> str:
        """Format the mean, the deviation, and the number of missing seeds."""
        values = self.values(method, name)
        if not values:
            return DASH
        text = f"{statistics.mean(values):.1f}"
        if len(values) > 1:
            text += f" ± {statistics.stdev(values):.1f}"
        return text if len(values) == self.seeds else f"{text} ({len(values)} of {self.seeds})"


def by_task(
    records: Sequence[Record],
    baselines: Mapping[str, Mapping],
    titles: Mapping[str, str],
    seeds: int,
) -> list[TaskResults]:
    """Return the results of each task that has baselines.

    Args:
        records: All finished runs.
        baselines: Results of `score_baselines` by task.
        titles: Names in the document by task, where they differ.
        seeds: Number of requested seeds.
    """
    results = []
    for name, facts in baselines.items():
        methods: dict[str, list[Record]] = {}
        for record in records:
            run, prompt = record.run, record.run.config.prompt
            if run.task == name:
                names = [run.method]
                if run.method == PROMPT and prompt is not None:
                    names += [length_method(prompt.length), init_method(prompt.init)]
                for method in names:
                    methods.setdefault(method, []).append(record)
        results.append(TaskResults(name, titles.get(name, name), facts, methods, seeds))
    return results


def swept(results: Sequence[TaskResults], methods: Iterable[str]) -> list[TaskResults]:
    """Return the tasks that have runs of two or more of these methods."""
    methods = list(methods)
    return [task for task in results if sum(method in task.records for method in methods) > 1]


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Format a Markdown table, the first column left-aligned and the others right-aligned."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def score_table(results: Sequence[TaskResults]) -> str:
    """Format the score and the rank score of every method on every task."""

    def row(task: TaskResults) -> list[str]:
        words = task.baselines["bag_of_words"]
        return [
            task.title,
            f"{task.baselines['majority_score']:.1f}",
            f"{words['score']:.1f}" if words else DASH,
            _first(task.values(PROMPT, "unprompted_score")),
            _first(task.values(PROMPT, "unprompted_rank_score")),
            f"**{task.show(PROMPT)}**",
            task.show(PROMPT, "rank_score"),
            task.show(MODEL),
            task.show(MODEL, "rank_score"),
        ]

    header = ("task", "majority", "bag of words", "unprompted", "rank", "**prompt tuning**")
    return table((*header, "rank", "model tuning", "rank"), map(row, results))


def goal_table(results: Sequence[TaskResults], prompt: str = PROMPT, model: str = MODEL) -> str:
    """Format what the prompt gains, beside the goals of the project.

    Args:
        results: Results, one row for each.
        prompt: Method that trains prompts.
        model: Method whose gain divides the gain of the prompts.
    """
    header = ("task", "prompt", "model", "prompt − majority")
    header += ("(prompt − majority) / (model − majority)", "goal", "met")
    rows = []
    for task in results:
        gain, share = gain_and_share(task, prompt, model)
        gains = (
            DASH if gain is None else f"{gain:.1f}",
            DASH if share is None else f"{share:.2f}",
        )
        scores = task.show(prompt), task.show(model)
        rows.append([task.title, *scores, *gains, *goal(task, prompt, model)])
    return table(header, rows)


def gain_and_share(
    task: TaskResults, prompt: str = PROMPT, model: str = MODEL
) -> tuple[float | None, float | None]:
    """Return the prompt's points over the majority, and their share of model tuning's gain.

    Each is None if a run is missing. The share is None if model tuning gains less than a point.
    """
    score, best, majority = task.mean(prompt), task.mean(model), task.baselines["majority_score"]
    if score is None:
        return None, None
    if best is None or best < majority + 1:
        return score - majority, None
    return score - majority, (score - majority) / (best - majority)


def goal(task: TaskResults, prompt: str = PROMPT, model: str = MODEL) -> tuple[str, str]:
    """Return the goal of a task and whether it is met: `yes`, or `no` with the reason."""
    score, wanted = task.mean(prompt), SCORE_GOALS.get(task.name)
    if wanted is not None:
        text = f"score ≥ {wanted:g}"
        if score is None:
            return text, DASH
        return text, "yes" if score >= wanted else f"no: score {score:.2f}"
    if task.baselines["label_words"] is None:
        return DASH, DASH
    text = f"gain ≥ {GAIN_GOAL:g}, share ≥ {SHARE_GOAL:g}"
    gain, share = gain_and_share(task, prompt, model)
    if gain is None or task.mean(model) is None:
        return text, DASH
    missed = []
    if gain < GAIN_GOAL:
        missed.append("gain")
    if share is None or share < SHARE_GOAL:
        missed.append("share")
    return text, f"no: {' and '.join(missed)}" if missed else "yes"


def ensemble_table(results: Sequence[TaskResults], ensembles: Mapping[str, Mapping]) -> str:
    """Format every ensemble beside its members."""

    def show(value: float | None) -> str:
        return DASH if value is None else f"{value:.1f}"

    rows = [
        [
            task.title,
            str(len(found["alone"])),
            *(show(found[name]) for name in ("average", "best", "vote", "log_probs")),
        ]
        for task in results
        if (found := ensembles.get(task.name)) is not None
    ]
    return table(("task", "prompts", "average", "best", "vote", "log_probs"), rows)


def method_table(results: Sequence[TaskResults], first: str, methods: Mapping[str, str]) -> str:
    """Format the scores of some methods side by side.

    Args:
        results: Results, one row for each.
        first: Head of the first column.
        methods: Methods by the head of their column.
    """
    rows = ([task.title, *map(task.show, methods.values())] for task in results)
    return table((first, *methods), rows)


def cost_table(results: Sequence[TaskResults]) -> str:
    """Format the settings, steps and time of a run of each task and method."""
    rows = []
    for task in results:
        for method in (PROMPT, MODEL):
            if records := task.records.get(method):
                config, result = records[0].run.config, records[0].result
                length = str(config.prompt.length) if config.prompt else DASH
                seconds = [s for r in records if (s := r.measured.get("seconds")) is not None]
                speed = task.mean(method, "examples_per_second")
                best = statistics.mean(task.values(method, "best_step"))
                rows.append(
                    [
                        task.title,
                        method.replace("_", " "),
                        f"{config.steps:,}",
                        f"{best:,.0f}",
                        f"{config.optimizer.learning_rate:g}",
                        length,
                        str(config.data.batch_size),
                        str(config.data.inputs_length),
                        f"{result['trained_params']:,}",
                        f"{speed:,.0f}" if speed else DASH,
                        f"{statistics.mean(seconds) / 60:.1f}" if seconds else DASH,
                    ]
                )
    header = ("task", "method", "steps", "best step", "rate", "length", "batch", "inputs")
    return table((*header, "trained", "examples/s", "minutes"), rows)


def task_table(results: Sequence[TaskResults]) -> str:
    """Format the rows and answers of each task, and the share of text that was cut off."""

    def row(task: TaskResults) -> list[str]:
        facts, words = task.baselines, task.baselines["label_words"]
        records = task.records.get(PROMPT)
        cut = f"{100 * records[0].manifest['data']['truncated']['test']:.1f}%" if records else DASH
        return [
            task.title,
            *(f"{facts['rows'][split]:,}" for split in ("train", "dev", "test")),
            f"{facts['seen_in_train']:,}",
            cut,
            ", ".join(words) if words else "free text",
        ]

    header = ("task", "train", "dev", "test", "seen", "cut", "answers")
    return table(header, map(row, results))


def _first(values: Sequence[float]) -> str:
    return f"{values[0]:.1f}" if values else DASH
