"""Score ensembles of a task's prompts, as in table 3 of the paper, combined in two ways.

The scores of an ensemble are kept beside its first run, with the scores of its members. If a member
is trained again, the ensemble is scored again.
"""

import json
from collections.abc import Mapping, Sequence

from spt_jax.evaluation.ensemble import evaluate_ensemble
from spt_jax.runs.folder import RunFolder
from spt_jax.runs.log import write_json_atomic
from spt_jax.runs.progress import say
from study.grid import MEMBER, PROMPT
from study.runs import Record

FILE = "ensemble.json"


def score_ensembles(
    records: Sequence[Record], tasks: Sequence[str], size: int
) -> dict[str, Mapping]:
    """Score the ensembles of the tasks whose members are all finished.

    Args:
        records: Finished runs.
        tasks: Tasks that have an ensemble.
        size: Number of members of each.

    Returns:
        Task -> average, best, vote, log_probs (None for free text), and the members' scores.
    """
    found = {}
    for task in tasks:
        members = [r for r in records if r.run.task == task and r.run.method in (PROMPT, MEMBER)]
        members = sorted(members, key=lambda record: record.run.seed)[:size]
        if len(members) < size:
            continue
        file = members[0].run.folder / FILE
        alone = {str(record.run.seed): record.result["score"] for record in members}
        kept = json.loads(file.read_text()) if file.is_file() else {}
        if kept.get("alone") != alone:
            if not all(RunFolder(r.run.folder).prompt_file.is_file() for r in members):
                continue  # archived runs have no prompts
            say(f"ensemble of {task}")
            kept = {"alone": alone, **_score(members)}
            write_json_atomic(file, kept)
        found[task] = kept
    return found


def _score(members: Sequence[Record]) -> dict[str, float | None]:
    folders = [record.run.folder for record in members]
    scores = evaluate_ensemble(folders, "test")
    free_text = members[0].result["rank_score"] is None
    return {
        "average": scores["average"],
        "best": scores["best"],
        "vote": scores["ensemble"],
        "log_probs": None
        if free_text
        else evaluate_ensemble(folders, "test", by="log_probs")["ensemble"],
    }
