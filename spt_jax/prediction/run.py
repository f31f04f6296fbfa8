"""Answer texts or rows with the best prompt of one run.

What is given goes through the template of the run, as its training rows did. A run of a built-in
task or of a task of the papers has no template: its texts are finished inputs, written as
`spt-jax data show NAME` prints those of the task.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from spt_jax.config.devices import MeshConfig
from spt_jax.prediction.inputs import InputForm, list_rows
from spt_jax.prediction.predictor import Predictor
from spt_jax.prediction.rows import PromptAndText
from spt_jax.prompts.bank import PromptBank
from spt_jax.prompts.load import load_run


class RunAnswers(NamedTuple):
    """What a run answers to rows.

    Args:
        texts: The answer to each row, in order; None if the row cannot be answered.
        problems: Why a row cannot be answered, by its number from 0.
    """

    texts: list[str | None]
    problems: dict[int, str]


def predict_run(
    run: str | Path,
    texts: Iterable[str | Mapping[str, Any]],
    *,
    inputs_length: int | None = None,
    raw: bool = False,
    mesh: MeshConfig | None = None,
    fetch: Sequence[str] = (),
) -> list[str]:
    """Return what a trained run answers to each text or row, in order.

    Args:
        run: Folder of the run, local or in a bucket.
        texts: A list, an array or a generator of rows: mappings with the fields of the template, or
            texts if the template has one field or there is none.
        inputs_length: Most tokens of an input; that of the run by default.
        raw: Whether the texts are finished inputs, which no template is applied to.
        mesh: How devices share the work; `automesh` decides if None.
        fetch: The model of the run, if it may be fetched from the network; see `evaluate_run`.

    Raises:
        FileNotFoundError: The folder holds no run.
        TypeError: One text is given in place of a list.
        ValueError: A row, named by its number from 0, is None, lacks a field or has nothing in it
            (unless `task.missing` of the run is `empty`), has half of a character, or is too long;
            or the model may not be fetched.
    """
    rows = list_rows(texts)
    prepared = _prepare(run, rows, inputs_length, raw, mesh, fetch)
    for number, problem in sorted(prepared.problems.items()):
        raise ValueError(f"row {number}: {problem}")
    return list(_answer(prepared).values())


def answer_run(
    run: str | Path,
    rows: Sequence[Any],
    *,
    inputs_length: int | None = None,
    raw: bool = False,
    mesh: MeshConfig | None = None,
    fetch: Sequence[str] = (),
) -> RunAnswers:
    """Return what a trained run answers to the rows that can be answered, and why others cannot.

    Args:
        run: As in `predict_run`, like all that follow.
        rows: Texts and mappings; anything else is a row that cannot be answered.
        inputs_length: Most tokens of an input.
        raw: Whether the texts are finished inputs.
        mesh: How devices share the work.
        fetch: The model of the run, if it may be fetched.

    Raises:
        FileNotFoundError: The folder holds no run.
        ValueError: The model may not be fetched, or is not that of the prompt.
    """
    prepared = _prepare(run, rows, inputs_length, raw, mesh, fetch)
    answers = _answer(prepared)
    return RunAnswers([answers.get(number) for number in range(len(rows))], prepared.problems)


class _Prepared(NamedTuple):
    """A loaded run, the inputs of the rows that it can answer, and why it cannot answer others."""

    predictor: Predictor
    inputs: dict[int, PromptAndText]
    problems: dict[int, str]


def _prepare(
    run: str | Path,
    rows: Sequence[Any],
    inputs_length: int | None,
    raw: bool,
    mesh: MeshConfig | None,
    fetch: Sequence[str],
) -> _Prepared:
    config, backbone, params, _ = load_run(Path(run), mesh=mesh, fetch=fetch)
    bank, name = PromptBank.of_params(params, backbone.model.config.d_model)
    predictor = Predictor(
        backbone,
        bank,
        inputs_length=config.data.inputs_length if inputs_length is None else inputs_length,
        targets_length=config.data.targets_length,
        batch_size=max(1, min(config.eval.batch_size, len(rows))),
    )
    form = InputForm() if raw else InputForm(config.task.template, config.task.missing)
    inputs, problems = {}, {}
    for number, row in enumerate(rows):
        try:
            inputs[number] = name, form.fill(row)
        except ValueError as error:
            problems[number] = str(error)
    for number, problem in zip(list(inputs), predictor.problems(list(inputs.values()))):
        if problem:
            problems[number] = problem
            del inputs[number]
    return _Prepared(predictor, inputs, problems)


def _answer(prepared: _Prepared) -> dict[int, str]:
    if not prepared.inputs:
        return {}
    answers = prepared.predictor.predict(list(prepared.inputs.values()))
    return {
        number: answer.texts[0] for number, answer in zip(prepared.inputs, answers, strict=True)
    }
