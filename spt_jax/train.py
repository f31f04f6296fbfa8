"""The recipe of a training run: `fit` goes from a config to a result.

`fit` trains a prompt for a frozen T5, or with `tune: model` the whole T5, the paper's baseline.
What one update computes is in `step.py`; when the run logs, evaluates and saves is in `loop.py`.
"""

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from spt_jax.config.fields import to_dict
from spt_jax.config.train import TrainConfig
from spt_jax.data.pipeline import (
    TokenizedSplit,
    data_fingerprint,
    describe_lengths,
    prefetch,
    split_fingerprint,
    tokenize_task,
    train_batches,
)
from spt_jax.data.tasks import Task, load_task
from spt_jax.distributed.main_process import main_process, require_same, to_host
from spt_jax.errors import RunError, explain_out_of_memory, shorten
from spt_jax.evaluation.evaluate import evaluate
from spt_jax.evaluation.metrics import check_metrics
from spt_jax.evaluation.scores import Scores, encode_answers, majority_answer, majority_score
from spt_jax.loop import Batch, Job, Labels, run_job
from spt_jax.models.backbone import Backbone, load_backbone, save_backbone
from spt_jax.optim import make_schedule, make_tx
from spt_jax.prompts.file import save_prompt
from spt_jax.prompts.init import init_prompt
from spt_jax.pytree import count_params, device_digest, label_params, merge, nbytes, split
from spt_jax.runs.checkpoints import Restored
from spt_jax.runs.folder import RunFolder
from spt_jax.runs.progress import print_split, say
from spt_jax.runs.tensorboard import require_tensorboard
from spt_jax.runs.timing import summarize
from spt_jax.runs.workdir import open_workdir
from spt_jax.sharding import place_batch, replicated, require_rows, state_shardings
from spt_jax.state import TrainState, init_state, keep_best, patience_left
from spt_jax.step import jit_step
from spt_jax.t5.flops import step_flops
from spt_jax.typing import Key, Params, PyTree


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
    require_tensorboard(config.log.tensorboard)
    with open_workdir(Path(workdir)) as folder:
        if (result := folder.finished(config, overwrite=overwrite)) is not None:
            say(f"{folder} is finished; --overwrite trains it again")
            return result
        run = _prepare(config)
        state = _init_state(run)
        digest = device_digest(run.frozen)
        facts = _data_facts(run.task, run.rows)
        with folder.claim(to_dict(config), run.identity, facts, command, overwrite=overwrite):
            with explain_out_of_memory(_memory_advice(run)):
                state = run_job(_make_job(run, state, profile), folder, state)
            if (steps := int(state.step)) < config.steps:
                say(f"stopped at step {steps}: {config.eval.patience} evaluations without gain")
            _require_unchanged(run.frozen, digest)
            result = _make_result(run, state, folder)
            _write_artifacts(run, to_host(state.best.trained), result, folder)
            folder.write_result(result)
        return result


@dataclass(frozen=True)
class Run:
    """What stays the same from the first step to the last.

    Args:
        config: The resolved config.
        backbone: The frozen model, which is also what model tuning starts from.
        task: The task that is learned.
        rows: Each split of the task as token ids.
        identity: Names and fingerprints that must be the same when the run is resumed.
        trained: The trained leaves of the params tree before the first step.
        frozen: The other leaves.
        tx: The optimizer.
        key: The key that the dropout keys of all steps are derived from.
    """

    config: TrainConfig
    backbone: Backbone
    task: Task
    rows: Mapping[str, TokenizedSplit]
    identity: Mapping[str, str]
    trained: PyTree
    frozen: PyTree
    tx: optax.GradientTransformation
    key: Key

    @functools.cached_property
    def dev_majority_score(self) -> float:
        """The score on dev of always giving the majority class."""
        return majority_score(self.task, "dev")

    def evaluate(self, params: Params, split: str) -> Scores:
        """Score params on a split; on dev, `eval.max_rows` may limit the rows."""
        config = self.config
        return evaluate(
            self.backbone,
            params,
            self.rows[split],
            config.data,
            label_words=self.task.label_words,
            batch_size=config.eval.batch_size,
            metrics=self.task.metrics,
            max_rows=config.eval.max_rows if split == "dev" else None,
        )


def _prepare(config: TrainConfig) -> Run:
    """Load the model and the task, and cut the params tree into trained and frozen leaves."""
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
    task, rows = _load_rows(config, backbone)
    identity = {
        "model": backbone.name,
        "model_fingerprint": backbone.fingerprint,
        "data_fingerprint": data_fingerprint(rows, config.data.inputs_length),
    }
    require_same(config=repr(config), **identity)
    prompt_key, run_key = jax.random.split(jax.random.key(config.seed))
    params: Params = {"t5": backbone.params}
    if config.prompt is not None:
        words = task.label_words or task.prompt_words
        prompt = init_prompt(config.prompt, prompt_key, backbone, words)
        params = {**params, "prompt": prompt}
    trained, frozen = split(params, label_params(params, config.tune))
    print_split(trained, frozen)
    tx = make_tx(config.optimizer, config.steps, config.tune)
    return Run(config, backbone, task, rows, identity, trained, frozen, tx, run_key)


def _load_rows(config: TrainConfig, backbone: Backbone) -> tuple[Task, dict[str, TokenizedSplit]]:
    """Load the task of a config, and tokenize its splits.

    Raises:
        FileNotFoundError, ValueError: A file is missing, or the rows do not fit task or model.
    """
    task = load_task(config.task)
    for note in task.notes:
        say(note)
    check_metrics(task)
    if task.label_words is not None:  # Refuses words that the model cannot write.
        encode_answers(task.label_words, backbone.tokenizer, config.data.targets_length)
    rows = {
        split: tokenize_task(task, split, config.task, config, backbone.tokenizer)
        for split in task.splits
    }
    for note in describe_lengths(rows):
        say(note)
    return task, rows


def _init_state(run: Run) -> TrainState:
    """Make the state before the first step, laid out over the devices."""
    # A copy, because the state is donated: model tuning would give the backbone's weights away.
    trained = jax.tree.map(jnp.copy, run.trained)
    make = functools.partial(
        init_state, tx=run.tx, patience=run.config.eval.patience, keep_best=True
    )
    shardings = state_shardings(jax.eval_shape(make, trained), run.backbone.mesh)
    return jax.jit(make, out_shardings=shardings)(trained)


def _make_job(run: Run, state: TrainState, profile: int) -> Job:
    """Hand the run to the loop: its batches, its compiled update, and its evaluation on dev."""
    config, mesh, train = run.config, run.backbone.mesh, run.rows["train"]
    update = jit_step(
        run.backbone.model,
        run.tx,
        config.loss,
        accumulate=config.optimizer.accumulate,
        shardings=(state_shardings(state, mesh), replicated(mesh)),
    )
    dataset = train_batches(
        train, config.data, seed=config.seed, targets_width=max(map(len, train.targets))
    )

    def batches(start: int, stop: int) -> Iterator[tuple[Labels, Batch]]:
        return (({}, batch) for batch in prefetch(dataset, start, stop))

    def evaluate_dev(state: TrainState) -> tuple[TrainState, dict[str, Any]]:
        scores = run.evaluate(merge(state.trained, run.frozen), "dev")
        state = keep_best(state, scores.score, scores.rank_score, config.eval.patience)
        say(_describe_dev(run, state, scores))
        return state, {"split": "dev", **scores.to_dict()}

    return Job(
        title=f"training {run.task.name}",
        steps=config.steps,
        batches=batches,
        update=lambda state, batch: update(state, run.frozen, place_batch(batch, mesh), run.key),
        evaluate=evaluate_dev,
        resume=functools.partial(_resume, run),
        evaluate_every=config.eval.every,
        log=config.log,
        metadata={
            "config": to_dict(config),
            **run.identity,
            "dev_sample": config.eval.max_rows,
        },
        flops=functools.partial(
            step_flops,
            run.backbone.model.config,
            prompt=config.prompt.length if config.prompt else 0,
            tune=config.tune,
        ),
        mesh=mesh,
        profile=profile,
    )


def _resume(run: Run, restored: Restored) -> TrainState:
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
    if run.task.label_words and int(best.step) and jnp.isneginf(best.rank_score):
        # Checkpoints of earlier versions have no rank score. Infinity keeps a later evaluation with
        # an equal score from replacing the best.
        best = dataclasses.replace(best, rank_score=jnp.float32(jnp.inf))
    # Checkpoints without `dev_sample` are of versions that scored the first `max_rows` rows of dev,
    # which are other rows than any sample of now.
    first_rows = "first" if then["eval"].get("max_rows") else None
    if restored.metadata.get("dev_sample", first_rows) != config.eval.max_rows and int(best.step):
        scores = run.evaluate(merge(best.trained, run.frozen), "dev")
        rank = -np.inf if scores.rank_score is None else scores.rank_score
        say(
            f"dev has other rows now (eval.max_rows is {config.eval.max_rows}): the best prompt, "
            f"of step {int(best.step)}, had {float(best.score):.1f} on those of then and has "
            f"{scores.score:.1f} on those of now"
        )
        best = dataclasses.replace(
            best, score=jnp.float32(scores.score), rank_score=jnp.float32(rank)
        )
    _say_new_rate(run.config, int(state.step), then["steps"])
    return dataclasses.replace(state, best=best, patience_left=jnp.int32(left))


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


def _describe_dev(run: Run, state: TrainState, scores: Scores) -> str:
    """Put the score of an evaluation beside that of always answering the majority class."""
    line = (
        f"step {int(state.step)}  dev {scores.score:.1f} (majority {run.dev_majority_score:.1f}, "
        f"best {float(state.best.score):.1f} at step {int(state.best.step)})"
    )
    answers = set(scores.predictions)
    if run.task.label_words and len(answers) == 1 and majority_answer(run.task) in answers:
        line += (
            f"; every prediction on dev is '{shorten(answers.pop(), 20)}', the majority class: "
            "usually the learning rate, too few steps, or dropout"
        )
    return line


def _data_facts(task: Task, rows: Mapping[str, TokenizedSplit]) -> dict:
    """Describe the data for the manifest."""
    return {
        "task": task.name,
        "rows": {name: len(part.inputs) for name, part in rows.items()},
        "label_words": task.label_words,
        "truncated": {name: part.truncated for name, part in rows.items()},
        "fingerprints": {name: split_fingerprint(part) for name, part in rows.items()},
        "notes": task.notes,
    }


def _make_result(run: Run, state: TrainState, folder: RunFolder) -> dict:
    """Score the best step on test, and put the baselines and the costs beside it."""
    config = run.config
    test = run.evaluate(merge(state.best.trained, run.frozen), "test")
    plain = None
    if config.eval.baselines:
        plain = run.evaluate({"t5": run.backbone.params}, "test")
    return {
        "task": run.task.name,
        "model": run.backbone.name,
        "tune": config.tune,
        "score": test.score,
        "rank_score": test.rank_score,
        "invalid": test.invalid,
        "metrics": dict(test.metrics),
        "cut_inputs": {name: 100 * part.truncated for name, part in run.rows.items()},
        "majority_score": majority_score(run.task),
        "unprompted_score": plain.score if plain else None,
        "unprompted_rank_score": plain.rank_score if plain else None,
        "dev_score": round(float(state.best.score), 4),  # kept as float32
        "dev_majority_score": run.dev_majority_score,
        "best_step": int(state.best.step),
        "steps": config.steps,
        "steps_done": int(state.step),
        "trained_params": count_params(state.trained),
        "frozen_params": count_params(run.frozen),
        "frozen_unchanged": True if jax.tree.leaves(run.frozen) else None,
        "opt_state_bytes": nbytes(state.opt_state),
        "checkpoint_bytes": folder.checkpoint_bytes(int(state.step)),
        **summarize(folder.read_timing()),
        "seed": config.seed,
    }


@main_process
def _write_artifacts(run: Run, best: PyTree, result: Mapping, folder: RunFolder) -> None:
    """Write the best prompt as a file of its own, and the model where that was trained."""
    config, backbone = run.config, run.backbone
    if config.tune == "model":
        save_backbone(
            folder.model_folder,
            f"{backbone.name} tuned on {run.task.name}",
            backbone.model.config,
            best["t5"],
            backbone.tokenizer,
            dtype="float32",
        )
    if config.prompt is not None:
        metadata = {
            "model": backbone.name,
            "fingerprint": backbone.fingerprint,
            "task": run.task.name,
            "length": config.prompt.length,
            "init": config.prompt.init,
            "step": result["best_step"],
            "dev_score": result["dev_score"],
            "score": result["score"],
            "rank_score": result["rank_score"],
        }
        if config.task.template is not None:  # so that the file serves inputs of the same form
            metadata["template"] = config.task.template
        if config.task.missing != "error":
            metadata["missing"] = config.task.missing
        save_prompt(folder.prompt_file, np.asarray(best["prompt"]), metadata)


def _memory_advice(run: Run) -> str:
    config, sizes = run.config, run.backbone.mesh.shape
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
