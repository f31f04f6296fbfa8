"""What a training run is made of, and what it leaves: rows and facts, then result and prompt."""

from collections.abc import Mapping
from dataclasses import dataclass

import jax
import numpy as np

from spt_jax.config.train import TrainConfig
from spt_jax.data.pipeline import TokenizedSplit, tokenize_split
from spt_jax.data.tasks import Task, load_task
from spt_jax.distributed.main_process import on_main
from spt_jax.evaluation.evaluate import evaluate
from spt_jax.evaluation.scores import Scores, encode_answers, majority_score
from spt_jax.models.backbone import Backbone, save_backbone
from spt_jax.prompts.file import save_prompt
from spt_jax.pytree import count_params, merge, nbytes
from spt_jax.runs.folder import RunFolder
from spt_jax.runs.log import read_log
from spt_jax.runs.progress import say
from spt_jax.runs.timing import summarize
from spt_jax.step import TrainState
from spt_jax.t5.flops import step_flops
from spt_jax.typing import Key, Params, PyTree


@dataclass(frozen=True)
class Run:
    """What stays the same from the first step to the last.

    Args:
        config: Resolved.
        folder: Where everything is written.
        backbone: The frozen model.
        task: What is learned.
        rows: Each split as token ids.
        identity: What must be the same when it is resumed.
        frozen: The frozen leaves of the params tree.
        key: Of dropout.
        profile: Steps to trace.
    """

    config: TrainConfig
    folder: RunFolder
    backbone: Backbone
    task: Task
    rows: Mapping[str, TokenizedSplit]
    identity: Mapping[str, str]
    frozen: PyTree
    key: Key
    profile: int

    def evaluate(self, params: Params, name: str) -> Scores:
        """Scores on the split `name`."""
        config = self.config
        return evaluate(
            self.backbone,
            params,
            self.rows[name],
            config.data,
            label_words=self.task.label_words,
            batch_size=config.eval.batch_size,
            metrics=self.task.metrics,
            max_rows=config.eval.max_rows if name == "dev" else None,
        )

    def flops(self, batch: Mapping[str, np.ndarray]) -> float:
        """The operations of a step on a batch."""
        rows, inputs = batch["inputs"].shape
        prompt = self.config.prompt
        return step_flops(
            self.backbone.model.config,
            rows=rows,
            inputs=inputs,
            targets=batch["targets"].shape[1],
            prompt=prompt.length if prompt else 0,
            tune=self.config.tune,
        )


def load_rows(config: TrainConfig, backbone: Backbone) -> tuple[Task, dict[str, TokenizedSplit]]:
    """The task of a config, and its splits as token ids.

    Raises:
        FileNotFoundError, ValueError: A file is missing, or the rows do not fit task or model.
    """
    task = load_task(config.task)
    for note in task.notes:
        say(note)
    if task.label_words is not None:  # refuses words that the model cannot write
        encode_answers(task.label_words, backbone.tokenizer, config.data.targets_length)
    rows = {
        name: tokenize_split(examples, backbone.tokenizer, config.data)
        for name, examples in task.splits.items()
    }
    say(
        f"cut to length: {100 * rows['train'].truncated:.1f}% of inputs, "
        f"{100 * rows['train'].truncated_targets:.1f}% of targets"
    )
    return task, rows


def data_facts(task: Task, rows: Mapping[str, TokenizedSplit]) -> dict:
    """What the manifest says of the data."""
    return {
        "task": task.name,
        "rows": {name: len(part.inputs) for name, part in rows.items()},
        "label_words": task.label_words,
        "truncated": {name: part.truncated for name, part in rows.items()},
        "notes": task.notes,
    }


def make_result(run: Run, state: TrainState) -> dict:
    """Scores on test at the best step, beside the baselines and the costs."""
    config = run.config
    test = run.evaluate(merge(state.best.trained, run.frozen), "test")
    plain = None
    if config.eval.baselines:
        plain = run.evaluate({"t5": run.backbone.params}, "test")
    checkpoint = run.folder.checkpoints / str(int(state.step))
    files = on_main(lambda: [f.stat().st_size for f in checkpoint.rglob("*") if f.is_file()])
    return {
        "task": run.task.name,
        "model": run.backbone.name,
        "tune": config.tune,
        "score": test.score,
        "rank_score": test.rank_score,
        "invalid": test.invalid,
        "metrics": dict(test.metrics),
        "majority_score": majority_score(run.task),
        "unprompted_score": plain.score if plain else None,
        "unprompted_rank_score": plain.rank_score if plain else None,
        "dev_score": round(float(state.best.score), 4),  # kept as float32
        "best_step": int(state.best.step),
        "steps": config.steps,
        "steps_done": int(state.step),
        "trained_params": count_params(state.trained),
        "frozen_params": count_params(run.frozen),
        "frozen_unchanged": True if jax.tree.leaves(run.frozen) else None,
        "opt_state_bytes": nbytes(state.opt_state),
        "checkpoint_bytes": sum(files),
        **summarize(on_main(lambda: read_log(run.folder.timing_file))),
        "seed": config.seed,
    }


def write_artifacts(run: Run, best: PyTree, result: Mapping) -> None:
    """The best prompt as a file of its own, and the model where that was trained."""
    config, backbone = run.config, run.backbone
    if config.tune == "model":
        save_backbone(
            run.folder.model_folder,
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
        save_prompt(run.folder.prompt_file, np.asarray(best["prompt"]), metadata)
