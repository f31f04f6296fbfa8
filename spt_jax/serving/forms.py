"""The bodies of requests and answers, in OpenAI's form where it has one.

A field that this server does not know, or a value that it cannot honour, is an error: nothing of a
request is left out in silence. Ranges that depend on the options of the server are checked by
`Engine`.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from spt_jax.errors import require
from spt_jax.serving.answers import Completion, Ranking
from spt_jax.serving.batcher import BatchReport

Name = Annotated[str, Field(max_length=1024)]
Text = str | dict[str, Any]
Texts = Text | Annotated[list[Text], Field(min_length=1)]
"""A text, the fields of a template by name, or a list of these."""

TEXTS = ("prompt", "input")
"""The fields that are `Texts`."""


class _Form(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")


class StreamOptions(_Form):
    """What a stream has beside the answers."""

    include_usage: bool = False


class CompletionForm(_Form):
    """The body of `POST /v1/completions`.

    `temperature` is 0 by default, so that the server writes what `spt-jax predict` writes. `raw`
    is this server's own: whether `prompt` is a finished input, which no template is applied to.
    """

    model: Name
    prompt: Texts
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    n: int | None = None
    seed: int | None = None
    stop: (
        Annotated[str, Field(min_length=1, max_length=256)]
        | Annotated[list[Annotated[str, Field(min_length=1, max_length=256)]], Field(max_length=4)]
        | None
    ) = None
    logprobs: int | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    raw: bool = False
    user: Name | None = None
    echo: bool | None = None
    suffix: str | None = None
    best_of: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, float] | None = None

    def require_honoured(self) -> None:
        """Raise ValueError if the form asks for what no answer of this server has."""
        for name, neutral in (
            ("echo", (None, False)),
            ("suffix", (None, "")),
            ("best_of", (None, 1, self.n)),
            ("presence_penalty", (None, 0)),
            ("frequency_penalty", (None, 0)),
            ("logit_bias", (None, {})),
        ):
            require(
                getattr(self, name) in neutral,
                f"{name} is given, which this server cannot honour; leave it out",
            )
        require(
            self.logprobs in (None, 0) or (self.logprobs == 1 and not self.temperature),
            f"logprobs is {self.logprobs}, expected 0 for the log-probability of each token, or 1 "
            "where temperature is 0; other tokens than the chosen one are not given",
        )
        require(
            self.stream_options is None or bool(self.stream),
            "stream_options is given without stream; leave it out, or set stream to true",
        )

    @property
    def stops(self) -> list[str]:
        return [self.stop] if isinstance(self.stop, str) else self.stop or []


class ClassifyForm(_Form):
    """The body of `POST /v1/classify`: label words of texts, ranked.

    `model` names one prompt or several, which then share batches. `labels` are by default the label
    words of the task of each prompt.
    """

    model: Name | Annotated[list[Name], Field(min_length=1, max_length=1024)]
    input: Texts
    labels: list[Name] | None = None
    raw: bool = False
    user: Name | None = None


class Usage(BaseModel):
    """Tokens, end markers counted; vectors of prompts are no tokens."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class Batch(BaseModel):
    """A batch that rows of the request were in.

    `rows` of its `size` were texts of any clients, with `prompts` different prompts.
    """

    program: Literal["write", "score"]
    rows: int
    size: int
    width: int
    prompts: int
    seconds: float
    waited: float


class LogProbs(BaseModel):
    """The tokens of an answer."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]] | None
    text_offset: list[int]


class Choice(BaseModel):
    """An answer."""

    index: int
    text: str
    finish_reason: Literal["stop", "length"]
    logprobs: LogProbs | None


class CompletionAnswer(BaseModel):
    """The answer to `POST /v1/completions`, and each event of a stream."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[Choice]
    usage: Usage | None = None
    batches: list[Batch] = []


class LabelShare(BaseModel):
    """A label word; the probabilities of all label words of a text sum to one."""

    label: str
    log_probability: float
    probability: float


class Classification(BaseModel):
    """The label words of a text by one prompt, likeliest first."""

    index: int
    model: str
    label: str
    labels: list[LabelShare]


class ClassifyAnswer(BaseModel):
    """The answer to `POST /v1/classify`."""

    id: str
    object: Literal["list"] = "list"
    created: int
    data: list[Classification]
    usage: Usage
    batches: list[Batch]


class ModelCard(BaseModel):
    """A name that `model` may be: the model itself, a prompt or an ensemble."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "spt_jax"
    root: str
    parent: str | None = None
    kind: Literal["model", "prompt", "ensemble"]
    fingerprint: str | None = None
    task: str | None = None
    length: int | None = None
    labels: list[str] = []
    fields: list[str] = []
    score: float | None = None
    dev_score: float | None = None
    members: list[str] = []


class ModelList(BaseModel):
    """The answer to `GET /v1/models`."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


class PromptList(BaseModel):
    """The answer to `GET /v1/prompts`: what is loaded, and how many more find room."""

    loaded: list[str]
    capacity: int
    free: int
    longest: int


class Word(BaseModel):
    """A piece of the vocabulary, and its cosine with a vector."""

    word: str
    cosine: float


class VectorWords(BaseModel):
    """A vector of a prompt: its position from 0, its norm, and the words nearest to it."""

    position: int
    norm: float
    words: list[Word]


class PromptWords(BaseModel):
    """The answer to `GET /v1/prompts/NAME/words`."""

    name: str
    vectors: list[VectorWords]


class Problem(BaseModel):
    """What is wrong with a request, in one sentence."""

    message: str
    type: str
    param: str | None = None
    code: str


class ProblemAnswer(BaseModel):
    """The body of every answer that is an error."""

    error: Problem


def make_batches(reports: Sequence[BatchReport]) -> list[Batch]:
    """Return the different batches among these."""
    return [
        Batch(
            program=report.program,
            rows=len(report.prompts),
            size=report.size,
            width=report.width,
            prompts=len({*report.prompts}),
            seconds=report.seconds,
            waited=report.waited,
        )
        for report in {id(report): report for report in reports}.values()
    ]


def make_completion(
    id: str, created: int, form: CompletionForm, found: Sequence[Completion]
) -> CompletionAnswer:
    """Return the answer to a request for completions."""
    inputs = sum(one.inputs for one in found[:: form.n or 1])  # each text counts once
    tokens = sum(one.tokens for one in found)
    return CompletionAnswer(
        id=f"cmpl-{id}",
        created=created,
        model=form.model,
        choices=[
            Choice(
                index=index,
                text=one.text,
                finish_reason=one.finish_reason,
                logprobs=None if form.logprobs is None else _log_probs(one, form.logprobs),
            )
            for index, one in enumerate(found)
        ],
        usage=Usage(prompt_tokens=inputs, completion_tokens=tokens, total_tokens=inputs + tokens),
        batches=make_batches([one.batch for one in found]),
    )


def make_classification(id: str, created: int, found: Sequence[Ranking]) -> ClassifyAnswer:
    """Return the answer to a request for classification."""
    inputs = sum(one.inputs for one in found)
    return ClassifyAnswer(
        id=f"clsf-{id}",
        created=created,
        data=[
            Classification(
                index=index,
                model=one.model,
                label=one.labels[0].label,
                labels=[
                    LabelShare(label=word, log_probability=log_prob, probability=share)
                    for word, log_prob, share in one.labels
                ],
            )
            for index, one in enumerate(found)
        ],
        usage=Usage(prompt_tokens=inputs, completion_tokens=0, total_tokens=inputs),
        batches=make_batches([one.batch for one in found]),
    )


def make_words(name: str, rows: Sequence[Mapping[str, Any]]) -> PromptWords:
    """Return what `words_of` gives for a prompt as an answer."""
    return PromptWords(
        name=name,
        vectors=[
            VectorWords(
                position=row["position"],
                norm=row["norm"],
                words=[Word(word=word, cosine=cosine) for word, cosine in row["cosine"]],
            )
            for row in rows
        ],
    )


def explain(errors: Sequence[Mapping[str, Any]]) -> tuple[str, str | None]:
    """Return what is wrong with a body in one sentence, and the field that it is about.

    Args:
        errors: The errors that pydantic found.
    """
    first = errors[0]
    path = [str(part) for part in first["loc"] if part not in ("body", "query", "path")]
    if first["type"] == "json_invalid":
        reason, place = first.get("ctx", {}).get("error", "no JSON"), first["loc"][-1]
        return f"the body is not JSON: {reason} at character {place}", None
    if not path:
        return 'the body is no JSON object; expected one such as {"model": "..."}', None
    if first["type"] == "extra_forbidden":
        return f"{path[-1][:80]!a} is no field of this request; leave it out", path[0][:80]
    if path[0] in TEXTS and first["type"] != "missing":
        return (
            f"{path[0]} is neither a text, nor an object with the fields of a template, nor a list "
            "of one or more of these",
            path[0],
        )
    if first["type"] == "missing":
        return f"the field {path[-1]} is missing", path[0]
    message = str(first["msg"])
    return f"{path[0]}: {message[:1].lower()}{message[1:]}", path[0]


def _log_probs(found: Completion, top: int) -> LogProbs:
    pairs = zip(found.pieces, found.log_probs, strict=True)
    return LogProbs(
        tokens=list(found.pieces),
        token_logprobs=list(found.log_probs),
        top_logprobs=[{piece: value} for piece, value in pairs] if top else None,
        text_offset=list(found.offsets),
    )
