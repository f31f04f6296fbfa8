"""Texts in, answers out: the prompts of one frozen model, asked by many callers at a time.

    with Engine(load_backbone("spt-nano"), {"library": "runs/quickstart"}) as engine:
        engine.wait_until_ready()
        [completion] = engine.complete("library", ["Return the number of items."]).result()
        [ranking] = engine.classify(["library"], ["Return the number of items."]).result()

Both return a future at once, from any thread. Cancelling it frees the places of its rows in the
queue. The server (`serving/app.py`) adds HTTP and nothing else.
"""

import contextlib
import math
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np

from spt_jax.config.serve import EngineConfig
from spt_jax.data.example import Example
from spt_jax.data.pipeline import encode_inputs
from spt_jax.decoding.loop import EOS_ID
from spt_jax.errors import RunError, one_line, require, suggest
from spt_jax.evaluation.scores import encode_answers
from spt_jax.models.backbone import Backbone
from spt_jax.prediction.inputs import InputForm
from spt_jax.prediction.predictor import length_problem, require_seed
from spt_jax.prompts.words import words_of
from spt_jax.serving.answers import Completion, Ranking, elect, rank
from spt_jax.serving.batcher import WORDS, Batcher, BatchReport, Output, Row
from spt_jax.serving.prompts import (
    LoadedPrompt,
    PromptSet,
    find_prompt,
    load,
    load_prompt_set,
    require_name,
)

RAW = InputForm()
"""The form of finished inputs."""

Text = str | Mapping[str, Any]
"""A text, or the fields of a prompt's template by name."""


class UnknownModel(ValueError):
    """There is no prompt, ensemble or model of a name."""


class Engine:
    """The prompts of one frozen model.

    Args:
        backbone: The frozen model.
        prompts: Path of each prompt by its name, in any format and place that `read_prompt` takes.
        config: Lengths, sizes and limits.
        ensembles: Names of two or more prompts by the name of their ensemble.
        prompts_dir: Folder that `load` may load prompts from; None if it may not.
        on_batch: Called with the report of each batch, in the thread of the devices.
        on_failure: Called with the error that ends that thread.

    Raises:
        FileNotFoundError: There is no such prompt.
        ValueError: A name is not allowed or given twice, or a prompt is refused.
    """

    def __init__(
        self,
        backbone: Backbone,
        prompts: Mapping[str, str | Path],
        config: EngineConfig = EngineConfig(),  # noqa: B008  it is frozen
        *,
        ensembles: Mapping[str, Sequence[str]] = {},
        prompts_dir: Path | None = None,
        on_batch: Callable[[BatchReport], None] = lambda report: None,
        on_failure: Callable[[BaseException], None] = lambda error: None,
    ):
        self.backbone, self.config = backbone, config
        self.ensembles = {name: tuple(members) for name, members in ensembles.items()}
        self.prompts_dir = prompts_dir
        capacity = len(prompts) + (16 if prompts_dir is not None else 0)
        self.prompt_set = load_prompt_set(
            backbone,
            prompts,
            targets_length=config.targets_length,
            capacity=capacity if config.capacity is None else config.capacity,
            length=config.prompt_length,
        )
        self._check_names()
        self.batcher = Batcher(backbone, config, on_batch=on_batch, on_failure=on_failure)

    def __enter__(self) -> "Engine":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start to compile, and to answer after that."""
        bank = self.prompt_set.bank
        if None in bank.names:  # compiles what loading and unloading a prompt run
            d_model = self.backbone.model.config.d_model
            bank.add("0", np.zeros((1, d_model), np.float32)).remove("0")
        self.batcher.start(bank)

    def stop(self) -> None:
        """Answer what was accepted, and end."""
        self.batcher.stop()

    @property
    def ready(self) -> bool:
        """Whether everything is compiled, and the devices work."""
        return self.batcher.ready.is_set()

    def wait_until_ready(self, seconds: float | None = None) -> None:
        """Wait until everything is compiled.

        Raises:
            RunError: The devices failed, or `seconds` have passed.
        """
        waited = 0.0
        while not self.batcher.ready.wait(0.1):
            waited += 0.1
            if self.batcher.failure is not None:
                raise RunError(f"the warm-up failed: {self.batcher.failure}")
            if seconds is not None and waited >= seconds:
                raise RunError(f"the warm-up was not done after {seconds:g} s")

    def names(self) -> list[str]:
        """Return the names that can be asked: the model, its prompts and the ensembles."""
        return [self.backbone.name, *self.prompt_set.prompts, *self.ensembles]

    def complete(
        self,
        model: str,
        texts: Sequence[Text],
        *,
        max_tokens: int | None = None,
        temperature: float = 0.0,
        top_p: float = 1.0,
        n: int = 1,
        seed: int | None = None,
        stop: Sequence[str] = (),
        log_probs: bool = False,
        raw: bool = False,
    ) -> "Future[list[Completion]]":
        """Write answers to texts.

        Args:
            model: Name of a prompt, of an ensemble (its members vote), or of the model itself.
            texts: Texts, or fields of the template of the prompt's run.
            max_tokens: Most tokens of an answer, with its end marker; `targets_length` by default.
            temperature: 0 takes the likeliest token; otherwise see `DecodeConfig`.
            top_p: See `DecodeConfig`; without effect where `temperature` is 0.
            n: Answers to each text, which differ where they are drawn.
            seed: Seed of what is drawn; a random one by default. Answer i of a request draws what
                `Predictor` draws for row i.
            stop: Texts that end an answer. The first that occurs is cut off with what follows.
            log_probs: Whether to return the tokens with their log-probabilities.
            raw: Whether the texts are finished inputs, which no template is applied to.

        Returns:
            A future of the answers: those to the first text, then those to the second, and so on.

        Raises:
            UnknownModel: There is no such name.
            ValueError: An argument is out of range, or a text is refused; the message says which.
            QueueFull: Too many rows wait.
            RunError: The engine is stopping or its devices failed.
        """
        prompts = self.prompt_set
        members = self._members(model, prompts)
        longest = self.config.targets_length
        limit = longest if max_tokens is None else max_tokens
        require(
            1 <= limit <= longest,
            f"max_tokens is {max_tokens}, expected 1 to {longest}, the targets_length of the "
            "server",
        )
        require(
            0 <= temperature < math.inf, f"temperature is {temperature}, expected 0 or a number > 0"
        )
        require(0 < top_p <= 1, f"top_p is {top_p}, expected more than 0 and at most 1")
        require(n >= 1, f"n is {n}, expected 1 or more")
        seed = secrets.randbits(32) if seed is None else seed
        require_seed(seed)
        require(
            len(members) == 1 or (n == 1 and temperature == 0),
            f"'{model}' is an ensemble, whose members vote on their likeliest answers; "
            "leave out n and temperature",
        )
        self._require_few(len(texts) * n * len(members))
        rows = [
            Row(member, ids, temperature=temperature, top_p=top_p, seed=seed, number=i * n + number)
            for member in members
            for i, ids in enumerate(self._encode(member, texts, prompts, raw))
            for number in range(n)
        ]

        def finish(outputs: Sequence[Output]) -> list[Completion]:
            found = [
                self._read(row, output, limit, stop, log_probs)
                for row, output in zip(rows, outputs, strict=True)
            ]
            size = len(texts) * n
            return elect([found[start : start + size] for start in range(0, len(found), size)])

        return self.batcher.submit(rows, prompts.bank, finish)

    def classify(
        self,
        models: Sequence[str],
        texts: Sequence[Text],
        *,
        labels: Sequence[str] | None = None,
        raw: bool = False,
    ) -> "Future[list[Ranking]]":
        """Rank label words by their log-probability, for each text with each of several prompts.

        An ensemble averages the log-probabilities of its members (section 6 of the paper).

        Args:
            models: Names of prompts, of ensembles, or of the model itself.
            texts: As in `complete`.
            labels: Label words; those of the task of each prompt by default.
            raw: As in `complete`.

        Returns:
            A future of the rankings: those of the first text by each prompt, then those of the
            second, and so on.

        Raises:
            UnknownModel, ValueError, QueueFull, RunError: See `complete`; a ValueError too where
                label words are not known, or cannot be written.
        """
        prompts, rows = self.prompt_set, []
        spans: list[tuple[str, tuple[str, ...], list[slice]]] = []  # of each text and model
        groups = {model: self._members(model, prompts) for model in models}
        require(bool(groups), "no model is given, expected one or more")
        self._require_few(len(texts) * sum(map(len, groups.values())))
        sentinels = {
            member: member is not None and prompts.prompts[member].form.sentinel_targets
            for members in groups.values()
            for member in members
        }
        given = {
            sentinel: self._encode_labels(labels, sentinel)
            for sentinel in {*sentinels.values()}
            if labels is not None
        }
        encoded = {member: self._encode(member, texts, prompts, raw) for member in sentinels}
        for number in range(len(texts)):
            for model, members in groups.items():
                words, places = (), []
                for member in members:
                    words, answers = given.get(sentinels[member]) or self._labels(
                        model, member, prompts
                    )
                    start = len(rows)
                    rows += [
                        Row(member, encoded[member][number], answers[at : at + WORDS])
                        for at in range(0, len(answers), WORDS)
                    ]
                    places.append(slice(start, len(rows)))
                spans.append((model, words, places))
        self._require_few(len(rows))

        def finish(outputs: Sequence[Output]) -> list[Ranking]:
            rankings = []
            for model, words, places in spans:
                of_members = [
                    np.concatenate([values[0] for values, _ in outputs[place]])[: len(words)]
                    for place in places
                ]
                first = places[0].start
                rankings.append(
                    Ranking(
                        model,
                        rank(words, np.mean(of_members, axis=0)),
                        sum(len(rows[place.start].ids) for place in places),
                        outputs[first].batch,
                    )
                )
            return rankings

        return self.batcher.submit(rows, prompts.bank, finish)

    def words(self, name: str, k: int) -> list[dict]:
        """Return the words nearest to each vector of a prompt, as `words_of` does.

        Raises:
            UnknownModel: There is no such prompt.
        """
        prompt = self.prompt_set.prompts.get(name)
        if prompt is None:
            raise UnknownModel(self.prompt_set.bank.problem(name))
        return words_of(prompt.stored.prompt, self.backbone, k)

    def load(self, name: str) -> "Future[LoadedPrompt]":
        """Load a prompt from the folder of prompts, by its name alone.

        Raises:
            ValueError: The engine was made without such a folder, or the name is taken.

        The future raises FileNotFoundError or ValueError if there is no such prompt or it is
        refused; then nothing is changed.
        """
        folder = self._require_folder()
        require_name(name)
        require(name not in self.names(), f"'{name}' is loaded already; unload it first")

        def add() -> LoadedPrompt:
            try:
                path = find_prompt(folder, name, self.prompt_set.bank)
                prompt = load(path, self.backbone, self.config.targets_length)
            except (OSError, ValueError) as error:
                # A client need not know where the folder is.
                message = one_line(error).replace(f"{folder}/", "")
                kind = FileNotFoundError if isinstance(error, FileNotFoundError) else ValueError
                raise kind(message) from error
            self.prompt_set = self.prompt_set.add(name, prompt)
            return prompt

        return self.batcher.call(add)

    def unload(self, name: str) -> "Future[None]":
        """Unload a prompt. Rows that wait for it are still answered.

        Raises:
            UnknownModel: There is no such prompt.
            ValueError: The engine was made without a folder of prompts, or an ensemble has this
                prompt.
        """
        self._require_folder()
        if name not in self.prompt_set.prompts:
            raise UnknownModel(self.prompt_set.bank.problem(name))
        users = [key for key, members in self.ensembles.items() if name in members]
        require(not users, f"prompt '{name}' is a member of the ensemble '{next(iter(users), '')}'")

        def remove() -> None:
            self.prompt_set = self.prompt_set.remove(name)

        return self.batcher.call(remove)

    def _require_folder(self) -> Path:
        if self.prompts_dir is None:
            raise ValueError(
                "prompts cannot be loaded or unloaded here; start the server with --prompts-dir "
                "and --allow-load"
            )
        return self.prompts_dir

    def _check_names(self) -> None:
        prompts = self.prompt_set.prompts
        for name, members in self.ensembles.items():
            require_name(name)
            require(len(members) > 1, f"ensemble '{name}' has {len(members)} prompts, expected 2")
            for member in members:
                if problem := self.prompt_set.bank.problem(member):
                    raise ValueError(f"ensemble '{name}': {problem}")
            require(
                len({prompts[member].labels for member in members}) == 1,
                f"the prompts of ensemble '{name}' have different label words; an ensemble has "
                "prompts of one task",
            )
        for name in self.names():
            require(
                self.names().count(name) == 1, f"two of model, prompts and ensembles are '{name}'"
            )

    def _members(self, model: str, prompts: PromptSet) -> tuple[str | None, ...]:
        """Return the prompts that answer for a name; (None,) for the model without a prompt."""
        if model == self.backbone.name:
            return (None,)
        if model in self.ensembles:
            return self.ensembles[model]
        if model not in prompts.prompts:
            known = [self.backbone.name, *prompts.prompts, *self.ensembles]
            raise UnknownModel(
                f"there is no model {ascii(model[:80])}; expected one of {', '.join(known)}"
                f"{suggest(model[:80], known)}"
            )
        return (model,)

    def _require_few(self, rows: int) -> None:
        require(rows >= 1, "no text is given, expected one or more")
        require(
            rows <= self.config.max_rows,
            f"the request has {rows} rows (texts, times n, times prompts, times every {WORDS} "
            f"labels), expected at most {self.config.max_rows}; send several requests",
        )

    def _encode(
        self, member: str | None, texts: Sequence[Text], prompts: PromptSet, raw: bool
    ) -> list[np.ndarray]:
        """Return the token ids of texts after the template of a prompt, their end marker last."""
        form = RAW if raw or member is None else prompts.prompts[member].form
        examples = []
        for number, text in enumerate(texts):
            with _about_text(number, texts):
                filled = form.fill(text)
                examples.append(Example(filled, "") if isinstance(filled, str) else filled)
        rows = encode_inputs(examples, self.backbone.tokenizer)
        for number, ids in enumerate(rows):
            problem = length_problem(len(ids) + 1, self.config.inputs_length)
            with _about_text(number, texts):
                require(problem is None, problem or "")
        return [np.array([*ids, EOS_ID], np.int32) for ids in rows]

    def _encode_labels(
        self, labels: Sequence[str], sentinel: bool
    ) -> tuple[tuple[str, ...], np.ndarray]:
        most = WORDS * self.config.max_rows
        require(2 <= len(labels) <= most, f"{len(labels)} labels are given, expected 2 to {most}")
        for label in labels:
            RAW.fill(label)  # refuses half of a character
        tokenizer, longest = self.backbone.tokenizer, self.config.targets_length
        answers = encode_answers(labels, tokenizer, longest, sentinel=sentinel)
        return tuple(labels), answers

    def _labels(
        self, model: str, member: str | None, prompts: PromptSet
    ) -> tuple[tuple[str, ...], np.ndarray]:
        prompt = None if member is None else prompts.prompts[member]
        if prompt is None or not prompt.labels:
            raise ValueError(f"the label words of '{model}' are not known; give labels")
        return prompt.labels, prompt.answers

    def _read(
        self, row: Row, output: Output, limit: int, stop: Sequence[str], with_tokens: bool
    ) -> Completion:
        """Return the answer in the ids of a row, cut after `limit` tokens and before a stop."""
        ids, log_probs = output.values
        decode, reason = self.backbone.tokenizer.decode, "length"
        ends = np.flatnonzero(ids[:limit] == EOS_ID)
        tokens = limit
        if len(ends):
            tokens, reason = int(ends[0]) + 1, "stop"
        text = decode(ids[:tokens].tolist())
        found = [place for word in stop if (place := text.find(word)) >= 0]
        if found:
            reason, text = "stop", text[: min(found)]
        offsets: list[int] = []
        if found or with_tokens:
            offsets = [len(decode(ids[:count].tolist())) for count in range(tokens)]
        if found:  # the tokens of the text that is left, and the one that begins the stop
            tokens = sum(offset <= len(text) for offset in offsets)
        shown = tokens if with_tokens else 0
        return Completion(
            text,
            reason,
            len(row.ids),
            tokens,
            tuple(map(self._piece, ids[:shown].tolist())),
            tuple(map(float, log_probs[:shown])),
            tuple(offsets[:shown]),
            output.batch,
        )

    def _piece(self, index: int) -> str:
        tokenizer = self.backbone.tokenizer
        # The vocabulary of a model is padded with ids that are no piece.
        return tokenizer.piece(index) if index < tokenizer.vocab_size else ""


@contextlib.contextmanager
def _about_text(number: int, texts: Sequence[Text]) -> Iterator[None]:
    """Name the text that a ValueError is about, where several were given."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"text {number}: {error}" if len(texts) > 1 else str(error)) from error
