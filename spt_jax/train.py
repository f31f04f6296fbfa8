"""The train loop: `fit` trains a prompt for a frozen T5, or the whole T5 as the paper's baseline.

`fit` reads from top to bottom: check the folder, load the backbone and the task, make the state,
resume, train with evaluations in between, test the best step. Everything that a step computes is in
`step.py`; this module decides when.
"""

import functools
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

from spt_jax.backbone import Backbone, load_backbone, save_backbone
from spt_jax.checkpoint import Checkpoints
from spt_jax.config import TrainConfig, to_dict
from spt_jax.data.pipeline import (
    TokenizedSplit,
    data_fingerprint,
    prefetch,
    tokenize_split,
    train_batches,
)
from spt_jax.data.tasks import Task, load_task, majority_score
from spt_jax.errors import RunError
from spt_jax.evaluate import Scores, encode_answers, evaluate
from spt_jax.optim import make_tx
from spt_jax.progress import Bar, say
from spt_jax.prompt import init_prompt
from spt_jax.prompt_file import save_prompt
from spt_jax.pytree import (
    count_params,
    device_digest,
    label_params,
    merge,
    named_leaves,
    nbytes,
    split,
)
from spt_jax.runfolder import RunFolder
from spt_jax.runlog import RunLog, read_log, write_json_atomic
from spt_jax.step import Best, TrainState, init_state, require_finite, train_step
from spt_jax.typing import Array, Params


def fit(
    config: TrainConfig, workdir: Path, *, overwrite: bool = False, command: Sequence[str] = ()
) -> dict:
    """Trains what the config says, in its folder, and returns its result.

    Args:
        config: The run.
        workdir: Its folder. A run that was stopped there goes on; a finished one is read back.
        overwrite: Delete the run that is there first.
        command: The command line, for the manifest.

    Returns:
        What `train --json` prints: among others `score`, `rank_score` (both on test, at the best
        step of dev), `majority_score`, `unprompted_score`, `trained_params`, `frozen_params`,
        `frozen_unchanged`, `steps`.

    Raises:
        FileNotFoundError: A file of the config does not exist.
        NotADirectoryError: `workdir` lies below a file.
        ValueError: The config does not fit the model, the data, or the run in the folder.
        RunError: The loss is not finite, no checkpoint is whole, the disk is full, or a frozen
            weight has changed.
    """
    folder = RunFolder(Path(workdir))
    if not overwrite:
        folder.check(to_dict(config))
        if (result := folder.read_result(to_dict(config))) is not None:
            say(f"{folder.path} is finished; --overwrite trains it again")
            return result

    backbone = load_backbone(
        config.model,
        dtype=config.dtype,
        dropout_rate=config.dropout_rate,
        remat=config.remat,
    )
    task, rows = _load_rows(config, backbone)
    identity = {
        "model": backbone.name,
        "model_fingerprint": backbone.fingerprint,
        "data_fingerprint": data_fingerprint(rows),
    }
    if not overwrite:
        folder.check_identity(identity)

    key = jax.random.key(config.seed)
    prompt_key, run_key = jax.random.split(key)
    params: Params = {"t5": backbone.params}
    if config.prompt is not None:
        table = backbone.params["token_embedder"]["embedding"]
        prompt = init_prompt(config.prompt, prompt_key, table, backbone.tokenizer, task.label_words)
        params = {**params, "prompt": prompt}
    trained, frozen = split(params, label_params(params, config.tune))
    print_split(trained, frozen)
    frozen_before = device_digest(frozen)

    tx = make_tx(config.optimizer, config.steps, config.tune)
    state = init_state(
        jax.tree.map(jnp.copy, trained), tx, patience=config.eval.patience, keep_best=True
    )
    evaluate_on = functools.partial(_evaluate, config, backbone, task, rows)
    if overwrite:
        folder.clear()
    folder.claim(to_dict(config), identity, _data_facts(task, rows), command)

    with Checkpoints(folder.checkpoints, keep=config.log.keep) as checkpoints:
        if (restored := checkpoints.restore_newest(state)) is not None:
            state = restored.state
            say(f"resumed at step {restored.step} of {config.steps}")
        state = _train(
            config, state, frozen, run_key, rows["train"], tx, backbone, evaluate_on,
            folder, checkpoints, identity,
        )  # fmt: skip
        checkpoints.wait()

    frozen_unchanged = device_digest(frozen) == frozen_before if frozen_before else None
    if frozen_unchanged is False:
        raise RunError("a frozen weight changed while training; this is a defect of spt_jax")
    if frozen_unchanged:
        say(f"all {count_params(frozen):,} frozen parameters are bit-identical to the start")

    best = merge(state.best.trained, frozen)
    test = evaluate_on(best, "test")
    result = {
        "task": task.name,
        "model": backbone.name,
        "tune": config.tune,
        "score": test.score,
        "rank_score": test.rank_score,
        "invalid": test.invalid,
        "majority_score": majority_score(task),
        **_unprompted(config, backbone, evaluate_on, trained),
        "dev_score": float(state.best.score),
        "best_step": int(state.best.step),
        "steps": config.steps,
        "steps_done": int(state.step),
        "trained_params": count_params(trained),
        "frozen_params": count_params(frozen),
        "frozen_unchanged": frozen_unchanged,
        "opt_state_bytes": nbytes(state.opt_state),
        "checkpoint_bytes": _folder_bytes(folder.checkpoints / str(int(state.step))),
        "examples_per_second": _examples_per_second(folder.timing_file),
        "seed": config.seed,
    }
    _write_artifacts(folder, config, backbone, best, result)
    write_json_atomic(folder.result_file, result)
    return result


def _train(
    config, state, frozen, key, rows, tx, backbone, evaluate_on, folder, checkpoints, identity
) -> TrainState:
    """The steps from `state.step` on; returns the last state."""
    update = jax.jit(
        functools.partial(
            train_step,
            model=backbone.model,
            tx=tx,
            loss=config.loss,
            accumulate=config.optimizer.accumulate,
        ),
        donate_argnums=0,
    )
    targets_width = max(map(len, rows.targets))
    batches = train_batches(rows, config.data, seed=config.seed, targets_width=targets_width)
    start = int(state.step)
    with (
        RunLog(folder.log_file, resume_at=start) as log,
        RunLog(folder.timing_file, resume_at=start) as timing,
        Bar(f"training {config.task.name or 'task'}", config.steps, start) as bar,
    ):
        clock = _Clock(timing, config.data.batch_size)
        pending: list[dict[str, Array]] = []
        shown: dict[str, float] = {}
        if start:
            shown["score"] = float(state.best.score)
        stopped = int(state.patience_left) == 0
        for step, batch in enumerate(prefetch(batches, start, config.steps), start=start + 1):
            if stopped:
                break
            state, metrics = update(state, frozen, batch, key)
            pending.append(metrics)
            last = step == config.steps
            evaluating = last or step % config.eval.every == 0
            saving = evaluating or step % config.log.checkpoint_every == 0
            if step % config.log.every == 0 or saving:
                # The step just dispatched stays in flight, unless its result is needed now.
                ahead = [] if saving else [pending.pop()]
                shown |= _write_metrics(log, step - len(ahead), pending)
                shown |= clock.lap(step, len(pending))
                pending = ahead
                bar.update(step, shown)
            if evaluating:
                scores = evaluate_on(merge(state.trained, frozen), "dev")
                log.write({"step": step, "split": "dev", **scores.to_dict()})
                state = _keep_best(state, scores.score, config.eval.patience)
                stopped = int(state.patience_left) == 0
                shown["score"] = scores.score
                bar.update(step, shown)
                clock.restart()
            if saving:
                checkpoints.save(step, state, {"config": to_dict(config), **identity})
    if stopped:
        say(f"stopped at step {int(state.step)}: {config.eval.patience} evaluations without gain")
    return state


def _keep_best(state: TrainState, score: float, patience: int | None) -> TrainState:
    """The state after an evaluation of its step."""
    improved = score > float(state.best.score)
    best = state.best
    if improved:
        best = Best(jnp.copy(state.step), jnp.float32(score), jax.tree.map(jnp.copy, state.trained))
    if patience is None:
        left = -1
    elif improved:
        left = patience
    else:  # a run resumed with patience starts to count now
        left = (int(state.patience_left) if state.patience_left >= 0 else patience) - 1
    return state.replace(best=best, patience_left=jnp.int32(left))


def _write_metrics(log: RunLog, step: int, pending: Sequence[Mapping[str, Array]]) -> dict:
    """Logs the steps that are pending, the last of them `step`; returns means to show."""
    fetched = jax.device_get(list(pending))
    for number, metrics in enumerate(fetched, start=step - len(fetched) + 1):
        require_finite(number, metrics)
        log.write({"step": number, **metrics})
    return {"loss": float(np.mean([m["loss"] for m in fetched]))} if fetched else {}


class _Clock:
    """Times the steps, without evaluations and without the first step's compilation."""

    def __init__(self, timing: RunLog, batch_size: int):
        self._timing, self._batch_size = timing, batch_size
        self._since: float | None = None

    def lap(self, step: int, steps: int) -> dict[str, float]:
        """Logs the `steps` finished since the last lap; returns their speed."""
        now, since = time.perf_counter(), self._since
        self._since = now
        if since is None or not steps:
            return {}
        examples = steps * self._batch_size
        self._timing.write({"step": step, "examples": examples, "seconds": now - since})
        return {"examples/s": examples / (now - since)}

    def restart(self) -> None:
        """Starts a lap now."""
        self._since = time.perf_counter()


def _examples_per_second(timing_file: Path) -> float | None:
    laps = read_log(timing_file)
    seconds = sum(lap["seconds"] for lap in laps)
    return sum(lap["examples"] for lap in laps) / seconds if seconds else None


def _load_rows(config: TrainConfig, backbone: Backbone) -> tuple[Task, dict[str, TokenizedSplit]]:
    task = load_task(config.task)
    for note in task.notes:
        say(note)
    if task.label_words is not None:
        encode_answers(task.label_words, backbone.tokenizer, config.data.targets_length)
    rows = {
        name: tokenize_split(examples, backbone.tokenizer, config.data)
        for name, examples in task.splits.items()
    }
    train = rows["train"]
    say(
        f"cut to length: {100 * train.truncated:.1f}% of inputs, "
        f"{100 * train.truncated_targets:.1f}% of targets"
    )
    return task, rows


def _evaluate(
    config: TrainConfig,
    backbone: Backbone,
    task: Task,
    rows: Mapping[str, TokenizedSplit],
    params: Params,
    name: str,
) -> Scores:
    return evaluate(
        backbone.model,
        params,
        backbone.tokenizer,
        rows[name],
        config.data,
        label_words=task.label_words,
        batch_size=config.eval.batch_size,
        max_rows=config.eval.max_rows if name == "dev" else None,
    )


def _unprompted(config: TrainConfig, backbone: Backbone, evaluate_on, trained: Params) -> dict:
    """Scores on test of the backbone as it is."""
    names = {"unprompted_score": None, "unprompted_rank_score": None}
    if not config.eval.baselines:
        return names
    scores = evaluate_on({"t5": backbone.params}, "test")
    return dict(zip(names, (scores.score, scores.rank_score), strict=True))


def _write_artifacts(
    folder: RunFolder, config: TrainConfig, backbone: Backbone, best: Params, result: Mapping
) -> None:
    if config.tune == "model":
        tokenizer, shape = backbone.tokenizer, backbone.model.config
        name = f"{backbone.name}, tuned on {result['task']}"
        save_backbone(folder.model_folder, name, shape, best["t5"], tokenizer, dtype="float32")
    if config.prompt is not None:
        metadata = {
            "model": backbone.name,
            "fingerprint": backbone.fingerprint,
            "task": result["task"],
            "length": config.prompt.length,
            "init": config.prompt.init,
            "step": result["best_step"],
            "dev_score": result["dev_score"],
            "score": result["score"],
            "rank_score": result["rank_score"],
        }
        save_prompt(folder.prompt_file, np.asarray(best["prompt"]), metadata)


def _data_facts(task: Task, rows: Mapping[str, TokenizedSplit]) -> dict:
    return {
        "task": task.name,
        "rows": {name: len(part.inputs) for name, part in rows.items()},
        "label_words": task.label_words,
        "truncated": {name: part.truncated for name, part in rows.items()},
        "notes": task.notes,
    }


def _folder_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def print_split(trained: Params, frozen: Params) -> None:
    """A table, on stderr, of which leaves are trained and which are frozen."""
    table = Table("part", "leaves", "parameters", "bytes", "", title="trained and frozen")
    for label, tree in (("trained", trained), ("frozen", frozen)):
        parts: dict[str, list] = {}
        for name, leaf in named_leaves(tree):
            parts.setdefault("/".join(name.split("/")[:2]), []).append(leaf)
        for part, leaves in parts.items():
            numbers = len(leaves), count_params(leaves), nbytes(leaves)
            table.add_row(part, *(f"{number:,}" for number in numbers), label)
    total = count_params(trained) + count_params(frozen)
    share = 100 * count_params(trained) / total
    table.caption = f"{count_params(trained):,} of {total:,} parameters are trained ({share:.3g}%)"
    Console(stderr=True).print(table)
