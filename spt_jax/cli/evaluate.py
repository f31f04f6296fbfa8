"""`spt-jax evaluate`: scores of finished runs."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from spt_jax.cli.options import (
    add_distributed_flags,
    add_fetch_flag,
    add_mesh_flags,
    connected,
    make_parser,
    read_mesh_flags,
    stdout_to_stderr_if,
)
from spt_jax.cli.printing import print_result, print_table
from spt_jax.config.devices import MeshConfig


def evaluate(argv: Sequence[str]) -> None:
    """Score the best prompt of a run, or of several on one model, on a split."""
    parser = make_parser(evaluate)
    parser.add_argument(
        "run",
        nargs="+",
        help="Folder of a training run, such as runs/quickstart. Several that share a frozen model "
        "are evaluated together, rows of all tasks in the same batches; runs of all eight tasks of "
        "SuperGLUE get its score too.",
    )
    parser.add_flag("split", Literal["test", "dev", "train"], "test", "Which rows.")
    parser.add_flag(
        "ensemble",
        Literal["vote", "log_probs"] | None,
        None,
        "Take the runs as an ensemble for the task that they share: by majority vote over what "
        "their prompts write, or by the mean log-probability of each label word.",
    )
    parser.add_flag(
        "task",
        str | None,
        None,
        "Score one run on the test rows of another task of the papers, such as mrqa/drop or "
        "mrpc_to_qqp, without any more training.",
    )
    parser.add_flag(
        "origin", str | None, None, "Where those rows are read from; see `train --task.origin`."
    )
    parser.add_flag(
        "model",
        str | None,
        None,
        "With --task, the frozen model of a prompt that has no run: a .npy file of Google's, the "
        "folder of a PEFT adapter, or a prompt.safetensors, given in place of the run.",
        metavar="M",
    )
    parser.add_flag(
        "output",
        str | None,
        None,
        "File of JSONL to write for one run: each row with its input, target, output and the "
        "log-probabilities of the label words.",
        metavar="FILE",
    )
    add_fetch_flag(parser)
    add_mesh_flags(parser)
    add_distributed_flags(parser)
    flags, _ = parser.read(argv)
    mesh = read_mesh_flags(flags)
    if flags.origin is not None and flags.task is None:
        raise ValueError("--origin is given without --task, whose rows it is about")
    if flags.model is not None and flags.task is None:
        raise ValueError("--model is given without --task, on whose rows its prompt is scored")
    if flags.task is not None and (len(flags.run) > 1 or flags.ensemble is not None):
        raise ValueError("--task works with a single run, not with several or with --ensemble")
    if flags.output is not None and (len(flags.run) > 1 or flags.ensemble is not None):
        raise ValueError("--output works with a single run, not with several or with --ensemble")
    runs = [Path(run) for run in flags.run]
    with connected(flags, "evaluate", argv):
        _evaluate(flags, runs, mesh)


def _evaluate(flags: Any, runs: Sequence[Path], mesh: MeshConfig | None) -> None:
    with stdout_to_stderr_if(flags.json):
        if flags.ensemble is not None:
            from spt_jax.evaluation.ensemble import evaluate_ensemble

            result = evaluate_ensemble(
                runs, flags.split, flags.ensemble, mesh=mesh, fetch=flags.fetch
            )
        elif len(runs) > 1:
            from spt_jax.evaluation.evaluate import evaluate_runs

            of_runs = evaluate_runs(runs, flags.split, mesh=mesh, fetch=flags.fetch)
            result = {**_superglue(of_runs), "runs": of_runs}
        else:
            from spt_jax.evaluation.evaluate import evaluate_run

            result = evaluate_run(
                runs[0],
                flags.split,
                task=flags.task,
                origin=flags.origin,
                model=flags.model,
                mesh=mesh,
                output=None if flags.output is None else Path(flags.output),
                fetch=flags.fetch,
            )
    if flags.json or "runs" not in result:
        return print_result(result, flags.json)
    of_runs = result.pop("runs")
    columns = list(next(iter(of_runs.values())))
    print_table(
        ("run", *columns),
        [(run, *(_cell(scores[name]) for name in columns)) for run, scores in of_runs.items()],
    )
    if result:
        print()
        print_result(result, as_json=False)


def _superglue(of_runs: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """The SuperGLUE score, where the runs are of its tasks; several runs of a task count as one."""
    from spt_jax.evaluation.metrics import SUPERGLUE, superglue_score

    by_task: dict[str, dict[str, float]] = {}
    for run, scores in of_runs.items():
        by_task.setdefault(scores["task"], {})[run] = scores["score"]
    return {"superglue_score": superglue_score(by_task)} if by_task.keys() == {*SUPERGLUE} else {}


def _cell(value: str | float | Mapping[str, float] | None) -> str:
    if value is None:
        return "-"
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_cell(inner)}" for name, inner in value.items())
    return f"{value:.2f}" if isinstance(value, float) else str(value)
