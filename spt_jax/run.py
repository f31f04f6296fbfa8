"""A prepared training run: its model, its rows, and its params tree cut in two.

Runs that train together hold the same model, and runs of one task hold the same rows.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from spt_jax.config.fields import show
from spt_jax.config.sharing import require_shared
from spt_jax.config.train import TrainConfig
from spt_jax.data.example import Example
from spt_jax.data.pipeline import (
    TokenizedSplit,
    data_fingerprint,
    describe_lengths,
    split_fingerprint,
    tokenize_task,
)
from spt_jax.data.tasks import Task, load_task
from spt_jax.distributed.main_process import require_same
from spt_jax.errors import shorten
from spt_jax.evaluation.evaluate import evaluate, merge_data, sample_split
from spt_jax.evaluation.metrics import METRICS, check_metrics
from spt_jax.evaluation.scores import (
    Scores,
    TaskRows,
    answer_tasks,
    encode_answers,
    majority_answer,
    majority_score,
    score,
)
from spt_jax.models.backbone import Backbone, load_backbone
from spt_jax.optim import make_schedule, make_tx
from spt_jax.prompts.bank import PromptBank
from spt_jax.prompts.init import embed_text, init_prompt
from spt_jax.prompts.parameterization import fold_params, materialize, parameterize
from spt_jax.prompts.wayward import Pull, compare_words, make_pull
from spt_jax.pytree import label_params, merge, split
from spt_jax.runs.checkpoints import Restored
from spt_jax.runs.progress import print_split, say
from spt_jax.sharding import require_rows
from spt_jax.train_state import TrainState, patience_left, put_scalar
from spt_jax.typing import Array, Key, Params, PyTree


@dataclass(frozen=True)
class TaskData:
    """A task and its rows.

    Args:
        task: The task.
        rows: Each split as token ids.
        fingerprint: Fingerprint of all rows, which must be the same when a run is resumed.
        facts: Facts for the manifest.
    """

    task: Task
    rows: Mapping[str, TokenizedSplit]
    fingerprint: str
    facts: Mapping[str, Any]

    @functools.cached_property
    def dev_majority_score(self) -> float:
        """The score on dev of always giving the majority class."""
        return majority_score(self.task, "dev")


@dataclass(frozen=True)
class Run:
    """What stays the same from the first step to the last.

    Args:
        config: The resolved config.
        backbone: The frozen model, which is also what model tuning starts from.
        data: The task that is learned, and its rows.
        trained: The trained leaves of the params tree before the first step.
        frozen: The other leaves.
        tx: The optimizer.
        key: The key that the dropout keys of all steps are derived from.
        pull: Term of the loss that pulls the prompt towards a text, if there is one.
    """

    config: TrainConfig
    backbone: Backbone
    data: TaskData
    trained: PyTree
    frozen: PyTree
    tx: optax.GradientTransformation
    key: Key
    pull: Pull | None = None

    @property
    def identity(self) -> dict[str, str]:
        """Names and fingerprints that must be the same when the run is resumed."""
        return {
            "model": self.backbone.name,
            "model_fingerprint": self.backbone.fingerprint,
            "data_fingerprint": self.data.fingerprint,
        }

    @property
    def dev_rows(self) -> list[str | int | None]:
        """What decides on which rows of dev a prompt is scored, as JSON values."""
        return [self.data.facts["fingerprints"]["dev"], self.config.eval.max_rows]

    def scored_rows(self, split: str) -> TokenizedSplit:
        """Return the rows of a split that are scored; on dev, `eval.max_rows` may limit them."""
        return sample_split(
            self.data.rows[split], self.config.eval.max_rows if split == "dev" else None
        )

    def evaluate(self, params: Params, split: str) -> Scores:
        """Score params on the `scored_rows` of a split."""
        config = self.config
        return evaluate(
            self.backbone,
            params,
            self.scored_rows(split),
            config.data,
            label_words=self.data.task.label_words,
            batch_size=config.eval.batch_size,
            metrics=self.data.task.metrics,
        )


def score_runs(runs: Sequence[Run], trained: Sequence[PyTree], split: str) -> list[Scores]:
    """Score trained leaves of each run on a split of its task.

    The rows of several runs share their batches, each with the prompt of its run.
    """
    if len(runs) == 1:
        [run], [leaves] = runs, trained
        return [run.evaluate(merge(fold_params(leaves), run.frozen), split)]
    backbone = runs[0].backbone
    names = [str(number) for number in range(len(runs))]
    prompts = {n: materialize(leaves["prompt"]) for n, leaves in zip(names, trained, strict=True)}
    rows = [
        TaskRows(
            split=run.scored_rows(split),
            label_words=run.data.task.label_words,
            data=run.config.data,
            prompt=name,
            metrics=run.data.task.metrics,
        )
        for name, run in zip(names, runs)
    ]
    outputs = answer_tasks(
        backbone,
        {"t5": backbone.params},
        PromptBank.from_prompts(prompts, backbone.model.config.d_model),
        rows,
        merge_data([run.config.data for run in runs]),
        min(run.config.eval.batch_size for run in runs),
    )
    return [score(*pair) for pair in zip(rows, outputs)]


def score_baselines(run: Run, known: dict[Any, Scores]) -> dict[str, float | None]:
    """Score the frozen model on test, without a prompt and with a written one.

    Args:
        run: The run, whose config says which of the two it wants.
        known: Scores by the rows and the text, which runs of one task share. New ones are added.
    """
    texts: dict[str, str | None] = {"unprompted": "" if run.config.eval.baselines else None}
    if run.config.eval.hard_prompt is not None:
        texts["hard_prompt"] = run.config.eval.hard_prompt
    found: dict[str, float | None] = {}
    for name, text in texts.items():
        key = id(run.data), text
        if text is not None and key not in known:
            params = {"t5": run.backbone.params}
            if text:
                params["prompt"] = embed_text(text, run.backbone)
            known[key] = run.evaluate(params, "test")
        scores = None if text is None else known[key]
        found[f"{name}_score"] = scores and scores.score
        found[f"{name}_rank_score"] = scores and scores.rank_score
    return found


def read_as_text(run: Run, prompt: Array) -> dict[str, Any]:
    """Compare the nearest words of a prompt with the text that it was pulled towards.

    Returns:
        What `prompts.wayward.compare_words` gives; `distance`, without `gamma`; and `prompt_f1`,
        the F1 of the words of text and nearest words by SQuAD's rules, from 0 to 100: the measure
        of Khashabi et al. 2022.
    """
    assert run.pull is not None and run.config.prompt and run.config.prompt.wayward
    text = run.config.prompt.wayward.text
    ids = run.backbone.tokenizer.encode(text)
    found = compare_words(prompt, ids, run.backbone)
    target = Example("", run.backbone.tokenizer.decode(ids))
    overlap = METRICS["squad"]([found["projection"]], [target], None)["f1"]
    return {**found, "prompt_f1": overlap, "distance": float(run.pull.distance(prompt))}


def describe_dev(run: Run, state: TrainState, scores: Scores, *, named: bool) -> str:
    """Put the score of an evaluation beside that of always answering the majority class.

    Args:
        run: The run.
        state: Its state after the evaluation.
        scores: Its scores on dev.
        named: Whether to say which run it is.
    """
    task, majority = run.data.task, run.data.dev_majority_score
    line = f"{_name(run)}: " if named else ""
    line += (
        f"step {int(state.step)}  dev {scores.score:.1f} (majority {majority:.1f}, "
        f"best {float(state.best.score):.1f} at step {int(state.best.step)})"
    )
    answers = set(scores.predictions)
    if task.label_words and len(answers) == 1 and majority_answer(task) in answers:
        line += (
            f"; every prediction on dev is '{shorten(answers.pop(), 20)}', the majority class: "
            "usually the learning rate, too few steps, or dropout"
        )
    return line


def _name(run: Run) -> str:
    """Return a short name of a run among those it trains with."""
    config = run.config
    length = config.prompt.length if config.prompt else 0
    rate = config.optimizer.learning_rate
    return f"{run.data.task.name}, {length} vectors, rate {rate:g}, seed {config.seed}"


def prepare_runs(configs: Sequence[TrainConfig]) -> list[Run]:
    """Load the model and the tasks, and cut the params tree of each run.

    Raises:
        FileNotFoundError, ValueError: A file is missing, the configs do not fit the model or the
            data, or they cannot train together.
    """
    require_shared(configs)
    first = configs[0]
    backbone = load_backbone(
        first.model,
        dtype=first.dtype,
        param_dtype=first.param_dtype,
        dropout_rate=first.dropout_rate,
        remat=first.remat,
        attention=first.attention,
        mesh=first.mesh,
        rows=len(configs) * first.data.batch_size // first.optimizer.accumulate,
        tune=first.tune,
    )
    require_rows(backbone.mesh, first.data.batch_size, "data.batch_size")
    loaded: dict[tuple, TaskData] = {}
    runs = []
    for config in configs:
        lengths = config.data.inputs_length, config.data.targets_length, config.eval.inputs_length
        key = (repr(config.task), *lengths, config.data.sentinel_targets)
        if key not in loaded:
            loaded[key] = _load_data(config, backbone)
        runs.append(_prepare(config, backbone, loaded[key]))
        require_same(config=repr(config), **runs[-1].identity)
    print_split(runs[0].trained, runs[0].frozen)
    return runs


def _load_data(config: TrainConfig, backbone: Backbone) -> TaskData:
    """Load the task of a config, and tokenize its splits.

    Raises:
        FileNotFoundError, ValueError: A file is missing, or the rows do not fit task or model.
    """
    task = load_task(config.task)
    for note in task.notes:
        say(note)
    check_metrics(task)
    if task.label_words is not None:  # Refuses words that the model cannot write.
        encode_answers(
            task.label_words,
            backbone.tokenizer,
            config.data.targets_length,
            sentinel=config.data.sentinel_targets,
        )
    rows = {
        split: tokenize_task(task, split, config.task, config, backbone.tokenizer)
        for split in task.splits
    }
    for note in describe_lengths(rows):
        say(note)
    facts = {
        "task": task.name,
        "rows": {name: len(part.inputs) for name, part in rows.items()},
        "label_words": task.label_words,
        "truncated": {name: part.truncated for name, part in rows.items()},
        "fingerprints": {name: split_fingerprint(part) for name, part in rows.items()},
        "notes": task.notes,
    }
    return TaskData(task, rows, data_fingerprint(rows, config.data.inputs_length), facts)


def _prepare(config: TrainConfig, backbone: Backbone, data: TaskData) -> Run:
    """Make the initial prompt and the optimizer, and cut the params tree."""
    prompt_key, run_key = jax.random.split(jax.random.key(config.seed))
    params: Params = {"t5": backbone.params}
    pull = None
    if config.prompt is not None:
        words = data.task.label_words or data.task.prompt_words
        start = init_prompt(config.prompt, prompt_key, backbone, words)
        table = backbone.embeddings
        leaves = parameterize(config.prompt, jax.random.fold_in(prompt_key, 1), start, table)
        params = {**params, "prompt": leaves}
        if config.prompt.wayward is not None:
            pull = make_pull(config.prompt.wayward, config.prompt.length, backbone)
    if config.eval.hard_prompt is not None:
        embed_text(config.eval.hard_prompt, backbone)  # refuses what has no vectors
    trained, frozen = split(params, label_params(params, config.tune))
    tx = make_tx(config.optimizer, config.steps, config.tune)
    return Run(config, backbone, data, trained, frozen, tx, run_key, pull)


def resume(run: Run, restored: Restored) -> TrainState:
    """Fit a restored state to the config of now, whose `eval`, `log` and `steps` may be others.

    The current `eval.patience` applies, and evaluations without gain before the stop count against
    it. If dev has other rows now, the best prompt is scored again, so that scores of different rows
    are never compared.
    """
    config, state, then = run.config, restored.state, restored.metadata["config"]
    left = patience_left(
        int(state.patience_left), then["eval"].get("patience"), config.eval.patience
    )
    best = state.best
    if run.data.task.label_words and int(best.step) and jnp.isneginf(best.rank_score):
        # Checkpoints of earlier versions have no rank score. Infinity keeps a later evaluation with
        # an equal score from replacing the best.
        best = dataclasses.replace(best, rank_score=put_scalar(np.inf, best.rank_score))
    # Checkpoints without `dev_rows` are of versions that scored the first `max_rows` rows of dev,
    # which are other rows than any sample of now.
    sampled = then["eval"].get("max_rows") is not None or config.eval.max_rows is not None
    if "dev_rows" in restored.metadata:
        changed = restored.metadata["dev_rows"] != run.dev_rows
    else:
        changed = sampled
    if changed and int(best.step):
        [scores] = score_runs([run], [best.trained], "dev")
        rank = -np.inf if scores.rank_score is None else scores.rank_score
        say(
            f"dev has other rows now (eval.max_rows is {show(config.eval.max_rows)}, "
            f"eval.inputs_length is {show(config.eval.inputs_length)}): the best prompt, of step "
            f"{int(best.step)}, had {float(best.score):.1f} on those of then and has "
            f"{scores.score:.1f} on those of now"
        )
        best = dataclasses.replace(
            best,
            score=put_scalar(scores.score, best.score),
            rank_score=put_scalar(rank, best.rank_score),
        )
    _say_new_rate(run.config, int(state.step), then["steps"])
    left = put_scalar(left, state.patience_left)
    return dataclasses.replace(state, best=best, patience_left=left)


def _say_new_rate(config: TrainConfig, step: int, steps_then: int) -> None:
    """Say so where more steps change the learning rate of the steps to come."""
    old, new = (make_schedule(config.optimizer, steps) for steps in (steps_then, config.steps))
    if not (callable(old) and callable(new)):
        return
    before, now = (np.asarray(rate(step)).item() for rate in (old, new))
    if not np.isclose(before, now):
        say(
            f"steps was {steps_then} and is {config.steps}: the learning rate of step {step + 1} "
            f"is {now:.3g}, where it was to be {before:.3g}, because the "
            f"{config.optimizer.schedule} schedule spans all steps"
        )
