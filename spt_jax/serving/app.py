"""The routes of the server. Each reads a form, asks the engine, and waits without blocking others.

While a request waits for its answer, its connection is watched: a client that leaves cancels its
rows. So does the time limit.
"""

import asyncio
import contextlib
import functools
import json
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import CancelledError, Future
from typing import IO, Any, TypeVar

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, StreamingResponse
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from spt_jax import __version__
from spt_jax.config.serve import ServeConfig
from spt_jax.errors import RunError, one_line
from spt_jax.serving.batcher import QueueFull
from spt_jax.serving.engine import Engine, UnknownModel
from spt_jax.serving.forms import (
    ClassifyAnswer,
    ClassifyForm,
    CompletionAnswer,
    CompletionForm,
    ModelCard,
    ModelList,
    ProblemAnswer,
    PromptList,
    PromptWords,
    explain,
    make_classification,
    make_completion,
    make_words,
)
from spt_jax.serving.gate import Gate, problem_body
from spt_jax.serving.page import HEADERS as PAGE_HEADERS
from spt_jax.serving.page import PAGE
from spt_jax.serving.telemetry import CONTENT_TYPE, Telemetry

T = TypeVar("T")

NEAREST = 3
"""Words of each vector of a prompt."""

INLINE = 16 << 10
"""Most bytes of a body whose texts become tokens in the thread of the routes: that takes it a few
milliseconds at most, and a thread of its own would cost every request more than its tokens."""

_NOT_READY = 5
"""Seconds after which a client may ask again while programs are compiled."""


class Refused(Exception):
    """A request that is answered with a status and a sentence."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
    ):
        super().__init__(message)
        self.status, self.param, self.code = status, param, code
        self.retry_after = retry_after

    def respond(self) -> Response:
        body = problem_body(self.status, str(self), self.param, self.code)
        headers = {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}
        return Response(body, self.status, headers, "application/json")


def make_app(
    engine: Engine,
    config: ServeConfig,
    *,
    telemetry: Telemetry,
    api_key: str | None = None,
    allow_load: bool = False,
    log: IO[str] | None = None,
    log_texts: bool = False,
) -> Gate:
    """Return the application of a server.

    Args:
        engine: Answers the rows.
        config: Limits.
        telemetry: Counts for `/metrics`.
        api_key: The key that every request must have.
        allow_load: Whether requests may load and unload prompts.
        log: Where the access log is written.
        log_texts: Whether it has the texts of requests and answers.
    """
    app = FastAPI(
        title="spt-jax serve",
        version=__version__,
        docs_url=None,  # their pages load scripts of other hosts
        redoc_url=None,
        responses={
            status: {"model": ProblemAnswer}
            for status in (400, 401, 403, 404, 405, 408, 409, 413, 415, 429, 500, 503, 504)
        },
    )
    started = int(time.time())
    _handle_errors(app)

    def ask(function: Callable[[], T]) -> T:
        """Call the engine, and turn what it raises into a status."""
        try:
            return function()
        except UnknownModel as error:
            raise Refused(404, str(error), param="model", code="model_not_found") from error
        except QueueFull as error:
            raise Refused(429, str(error), retry_after=error.retry_after) from error
        except FileNotFoundError as error:
            raise Refused(404, str(error)) from error
        except RunError as error:
            raise Refused(503, str(error)) from error
        except ValueError as error:
            raise Refused(400, one_line(error)) from error

    async def answer(request: Request, submit: Callable[[], "Future[T]"]) -> T:
        """Return the result of a future of the engine."""
        require_ready(engine)
        if request.state.size <= INLINE:
            future = ask(submit)
        else:
            future = await run_in_threadpool(ask, submit)
        return await _wait(request, future, config.timeout, ask)

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        """Return the page that asks all prompts about a text."""
        return Response(PAGE, headers=PAGE_HEADERS, media_type="text/html")

    @app.get("/health/live")
    async def live() -> dict[str, str]:
        """Answer 200 while the process can answer at all."""
        return {"status": "live"}

    @app.get("/health/ready")
    async def ready() -> dict[str, str]:
        """Answer 200 when everything is compiled and the devices work."""
        require_ready(engine)
        return {"status": "ready"}

    @app.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> Response:
        """Return the numbers of the server in the format of Prometheus."""
        return Response(telemetry.text(), media_type=CONTENT_TYPE)

    @app.get("/v1/models")
    async def list_models() -> ModelList:
        """List the model, its prompts and the ensembles."""
        return ModelList(data=_cards(engine, started))

    @app.get("/v1/models/{name:path}")
    async def show_model(name: str) -> ModelCard:
        """Describe one of them."""
        for card in _cards(engine, started):
            if card.id == name:
                return card
        raise Refused(404, f"there is no model {ascii(name[:80])}", code="model_not_found")

    streamed: dict[int | str, dict[str, Any]] = {
        200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}}
    }

    @app.post("/v1/completions", response_model=CompletionAnswer, responses=streamed)
    async def complete(request: Request, form: CompletionForm) -> Response:
        """Write answers to texts."""
        ask(form.require_honoured)
        texts = form.prompt if isinstance(form.prompt, list) else [form.prompt]
        found = await answer(
            request,
            functools.partial(
                engine.complete,
                form.model,
                texts,
                max_tokens=form.max_tokens,
                temperature=form.temperature or 0.0,
                top_p=1.0 if form.top_p is None else form.top_p,
                n=1 if form.n is None else form.n,
                seed=form.seed,
                stop=form.stops,
                log_probs=form.logprobs is not None,
                raw=form.raw,
            ),
        )
        result = make_completion(request.state.id, int(time.time()), form, found)
        assert result.usage is not None
        telemetry.on_tokens(result.usage.prompt_tokens, result.usage.completion_tokens)
        request.state.log |= {"model": form.model, "rows": len(found)}
        request.state.log |= result.usage.model_dump()
        if log_texts:
            request.state.log |= {"texts": texts, "answers": [one.text for one in found]}
        if form.stream:
            usage = form.stream_options is not None and form.stream_options.include_usage
            return StreamingResponse(_stream(result, usage), media_type="text/event-stream")
        return JSONResponse(result.model_dump())

    @app.post("/v1/classify")
    async def classify(request: Request, form: ClassifyForm) -> ClassifyAnswer:
        """Rank label words of texts by one prompt or several."""
        models = [form.model] if isinstance(form.model, str) else form.model
        texts = form.input if isinstance(form.input, list) else [form.input]
        found = await answer(
            request,
            functools.partial(engine.classify, models, texts, labels=form.labels, raw=form.raw),
        )
        result = make_classification(request.state.id, int(time.time()), found)
        telemetry.on_tokens(result.usage.prompt_tokens, 0)
        request.state.log |= {"model": models, "rows": len(found)} | result.usage.model_dump()
        if log_texts:
            request.state.log |= {"texts": texts, "answers": [one.label for one in result.data]}
        return result

    @app.get("/v1/prompts")
    async def list_prompts() -> PromptList:
        """List the loaded prompts and the room for others."""
        bank = engine.prompt_set.bank
        return PromptList(
            loaded=list(engine.prompt_set.prompts),
            capacity=len(bank.names),
            free=bank.names.count(None),
            longest=bank.arrays.vectors.shape[1],
        )

    @app.get("/v1/prompts/{name}/words")
    async def show_words(name: str) -> PromptWords:
        """Return the words nearest to each vector of a prompt."""
        rows = await run_in_threadpool(ask, functools.partial(engine.words, name, NEAREST))
        return make_words(name, rows)

    def require_allowed() -> None:
        if not allow_load:
            raise Refused(
                403, "this server loads and unloads no prompts; start it with --allow-load"
            )

    @app.put("/v1/prompts/{name}")
    async def load_prompt(request: Request, name: str) -> ModelCard:
        """Load a prompt of this name from the folder of prompts."""
        require_allowed()
        await answer(request, functools.partial(engine.load, name))
        return next(card for card in _cards(engine, started) if card.id == name)

    @app.delete("/v1/prompts/{name}")
    async def unload_prompt(request: Request, name: str) -> dict[str, str]:
        """Unload a prompt; rows that wait for it are still answered."""
        require_allowed()
        await answer(request, functools.partial(engine.unload, name))
        return {"unloaded": name}

    return Gate(app, config, api_key=api_key, log=log, on_request=telemetry.on_request)


def require_ready(engine: Engine) -> None:
    """Refuse a request with status 503 while programs are compiled, or after a failure."""
    if engine.batcher.failure is not None:
        raise Refused(503, f"the device failed: {one_line(engine.batcher.failure)}")
    if not engine.ready:
        raise Refused(
            503,
            "the server is still compiling its programs; ask again later",
            retry_after=_NOT_READY,
        )


async def _wait(
    request: Request, future: "Future[T]", seconds: float, ask: Callable[[Callable[[], T]], T]
) -> T:
    """Return the result of a future; cancel it when the client leaves or the time is over."""
    wrapped = asyncio.wrap_future(future)
    gone = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({wrapped, gone}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if wrapped.done():
            return ask(wrapped.result)
        if gone.done():
            raise Refused(499, "the client has left")
        raise Refused(504, f"there was no answer within {seconds:g} s; send the request again")
    finally:
        wrapped.cancel()
        gone.cancel()
        with contextlib.suppress(asyncio.CancelledError, CancelledError):
            await gone


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _handle_errors(app: FastAPI) -> None:
    @app.exception_handler(Refused)
    async def refused(request: Request, error: Refused) -> Response:
        return error.respond()

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        message, param = explain(error.errors())
        return Refused(400, message, param=param).respond()

    @app.exception_handler(HTTPException)
    async def other(request: Request, error: HTTPException) -> Response:
        message = {
            400: "the body is no JSON in UTF-8",
            404: "there is no such path",
            405: f"this path does not take {request.method}",
        }.get(error.status_code, str(error.detail))
        response = Refused(error.status_code, message).respond()
        response.headers.update(error.headers or {})
        return response


def _cards(engine: Engine, created: int) -> list[ModelCard]:
    """Describe the model, its prompts and the ensembles."""
    base, prompts = engine.backbone, engine.prompt_set.prompts

    def card(kind: Any, name: str, parent: str | None = base.name, **facts: Any) -> ModelCard:
        return ModelCard(id=name, created=created, root=name, parent=parent, kind=kind, **facts)

    return [
        card("model", base.name, parent=None, fingerprint=base.fingerprint),
        *(card("prompt", name, **prompt.describe()) for name, prompt in prompts.items()),
        *(
            card("ensemble", name, members=members, labels=prompts[members[0]].labels)
            for name, members in engine.ensembles.items()
        ),
    ]


async def _stream(result: CompletionAnswer, usage: bool) -> AsyncIterator[bytes]:
    """Yield an answer as server-sent events: an event for each choice, and `[DONE]`.

    Batches are static, so a choice is sent whole when it is written.
    """
    whole: dict[str, Any] = result.model_dump()
    del whole["usage"], whole["batches"]
    for choice in whole["choices"]:
        yield _event({**whole, "choices": [choice]} | ({"usage": None} if usage else {}))
    if usage:
        assert result.usage is not None
        yield _event({**whole, "choices": [], "usage": result.usage.model_dump()})
    yield b"data: [DONE]\n\n"


def _event(value: Any) -> bytes:
    return f"data: {json.dumps(value)}\n\n".encode()
