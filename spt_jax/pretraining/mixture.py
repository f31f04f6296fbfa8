"""The pretraining mixture: self-supervised text-to-text rows, as a pure function of (seed, step).

A step is either *long* or *short*. Long are span corruption and prefix LM, as in T5, and tasks that
copy many words. Short are tasks that an instruction in plain words selects and that a few tokens
answer; each answer is made from the text itself. Instructions have several wordings and may rename
the labels, so that the model learns to read them at the start of its input, where a soft prompt
will be.

Invariant: batch n depends on the passages, the config, the seed and n only.
"""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from spt_jax.config.pretrain import MixtureConfig
from spt_jax.errors import suggest
from spt_jax.pretraining import copy_tasks, passage_tasks, word_tasks
from spt_jax.pretraining.corpus import Corpus
from spt_jax.pretraining.draws import ARGUMENT, SHORT_ARGUMENT, Draw, Row, Unfit
from spt_jax.pretraining.instructions import INSTRUCTIONS
from spt_jax.pretraining.packing import PackedRows
from spt_jax.pretraining.passages import Passages, tokenize_corpus
from spt_jax.tokenizers.base import Tokenizer

PROBES, PROBE_TRIES = 8, 300
"""A corpus serves a task if so many rows are found, each in so many tries."""

TRIES = 5000  # tries to find a row of a task that the corpus serves


@dataclass(frozen=True)
class Task:
    """A pretraining task. `INSTRUCTIONS` has its instructions under the same name.

    Args:
        make: Function that makes a row, or raises Unfit.
        labels: All possible answers, if they are few. `make` then returns the number of one.
        long: Whether its targets have the long shape.
        argument: Tokens kept free for each argument.
    """

    make: Callable[[Draw], Row]
    labels: tuple[str, ...] = ()
    long: bool = False
    argument: int = ARGUMENT


_YES_NO = ("yes", "no")

TASKS: dict[str, Task] = {
    "span_corruption": Task(passage_tasks.span_corruption, long=True),
    "lm": Task(passage_tasks.lm, long=True),
    "repeat": Task(copy_tasks.repeat, long=True),
    "look_up": Task(copy_tasks.look_up, long=True),
    "mend": Task(copy_tasks.mend, long=True),
    "name": Task(passage_tasks.name),
    "kind": Task(passage_tasks.kind, passage_tasks.KINDS),
    "summary": Task(passage_tasks.summary),
    "next": Task(passage_tasks.next_part, ("a", "b")),
    "order": Task(passage_tasks.order, _YES_NO),
    "together": Task(passage_tasks.together, _YES_NO),
    "same": Task(passage_tasks.same, _YES_NO),
    "scrambled": Task(passage_tasks.scrambled, _YES_NO),
    "copy": Task(word_tasks.copy),
    "first": Task(word_tasks.edge(0)),
    "last": Task(word_tasks.edge(-1)),
    "after": Task(word_tasks.neighbour(1)),
    "before": Task(word_tasks.neighbour(-1)),
    "contains": Task(word_tasks.contains, _YES_NO),
    "count": Task(word_tasks.count, word_tasks.COUNTS),
    "topic": Task(word_tasks.topic),
    "pick": Task(word_tasks.pick, argument=SHORT_ARGUMENT),
    "assign": Task(word_tasks.assign),
    "odd": Task(word_tasks.odd),
    "gap": Task(word_tasks.gap),
    "choice": Task(word_tasks.choice),
    "mood": Task(word_tasks.mood, ("bad", "good")),
    "book": Task(passage_tasks.of_book("titles")),
    "author": Task(passage_tasks.of_book("authors")),
}


def make_batches(
    corpus: Corpus, tokenizer: Tokenizer, config: MixtureConfig, seed: int
) -> "Mixture":
    """Tokenize a corpus and return its endless sequence of batches.

    Raises:
        ValueError: `config.weights` names an unknown task or gives a kind of step no task that the
            corpus serves, or the corpus is too short.
    """
    return Mixture(tokenize_corpus(corpus, tokenizer), config, seed)


class Mixture:
    """An endless sequence: `mixture[n]` is ("long" or "short", batch) of step n.

    A batch is {"inputs": int32[B, T], "targets": int32[B, U]}. An end marker and zeros follow each
    text. The shapes depend on the group only. A packed batch has the segments of both, too.

    Tasks that the corpus cannot serve are left out, such as those about books if it has none.

    Args:
        passages: The tokenized corpus.
        config: Shapes of the batches and weights of the tasks.
        seed: Seed of all batches.

    Attributes:
        tasks: Names of the tasks that rows are drawn from.
        left_out: Names of the tasks that have a weight but that the corpus does not serve.
        groups: Which of "long" and "short" a step can be.

    Raises:
        ValueError: `config.weights` names an unknown task, or gives a kind of step no task that the
            corpus serves.
    """

    def __init__(self, passages: Passages, config: MixtureConfig, seed: int):
        self.passages, self.config, self.seed = passages, config, seed
        for name in config.weights:
            if name not in TASKS:
                raise ValueError(
                    f"unknown pretraining task 'mixture.weights.{name}'; "
                    f"the tasks are: {', '.join(TASKS)}{suggest(name, TASKS)}"
                )
        encode = passages.tokenizer.encode
        self._instructions = {
            name: [[encode(part) for part in wording.split("{}")] for wording in wordings]
            for name, wordings in INSTRUCTIONS.items()
        }
        self._labels = {n: [encode(label) for label in t.labels] for n, t in TASKS.items()}
        self._for, self._say, self._colon = encode("for"), encode("say"), encode("text:")
        shares = {"long": 1 - config.short_share, "short": config.short_share}
        self.groups = tuple(group for group, share in shares.items() if share > 0)
        wanted = [n for n, weight in config.weights.items() if weight > 0 and shares[_group(n)] > 0]
        self.tasks = tuple(name for name in wanted if self._serves(name))
        self.left_out = tuple(name for name in wanted if name not in self.tasks)
        self._drawn_from = {}
        for group in self.groups:
            names = [name for name in self.tasks if _group(name) == group]
            if not names:
                raise ValueError(
                    f"mixture.weights has no task with {group} targets that the corpus serves, but "
                    f"mixture.short_share is {config.short_share}; "
                    f"set it to {int(group == 'long')} or give such a task a weight"
                )
            weights = np.cumsum([config.weights[name] for name in names])
            self._drawn_from[group] = (names, weights / weights[-1])

    def __getitem__(self, step: int) -> tuple[str, dict[str, np.ndarray]]:
        rng = np.random.default_rng([self.seed, step])
        group = "short" if rng.random() < self.config.short_share else "long"
        if group == "short" and self.config.pack > 1:
            return group, self._packed_batch(rng)
        return group, self._batch(self._draw_tasks(group, self.config.batch_size, rng), rng)

    def task_batch(self, name: str, step: int) -> dict[str, np.ndarray]:
        """Return a batch of one task, for measuring it: a pure function of (seed, step)."""
        rng = np.random.default_rng([self.seed, step, 1 + list(TASKS).index(name)])
        return self._batch([name] * self.config.batch_size, rng)

    def _draw_tasks(self, group: str, count: int, rng: np.random.Generator) -> list[str]:
        names, cumulative = self._drawn_from[group]
        drawn = cumulative.searchsorted(rng.random(count), side="right")
        return [names[min(int(index), len(names) - 1)] for index in drawn]

    def _batch(self, tasks: list[str], rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Return a batch with one row of each of these tasks."""
        shapes = {"inputs": self.config.inputs_length, "targets": self._width(tasks[0])}
        batch = {name: np.zeros((len(tasks), width), np.int32) for name, width in shapes.items()}
        for index, name in enumerate(tasks):
            for array, ids in zip(batch.values(), self._example(name, rng)):
                array[index, : len(ids)] = ids
        return batch

    def _packed_batch(self, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Return rows of several short examples each, filled until an example has no room."""
        config, pack = self.config, self.config.pack
        lengths = pack * config.inputs_length, pack * config.short_targets_length
        rows = PackedRows(config.batch_size // pack, *lengths)
        while rows.add(*self._example(self._draw_tasks("short", 1, rng)[0], rng)):
            pass
        return rows.batch()

    def _example(self, name: str, rng: np.random.Generator) -> list[list[int]]:
        """Return the token ids of an input and its answer, both with an end marker.

        Raises:
            ValueError: No passage was found that serves the task.
        """
        try:
            row = self._row(name, rng, TRIES)
        except Unfit:
            raise ValueError(
                f"pretraining task '{name}' found no passage to ask about in {TRIES} tries; "
                f"give more text, or set mixture.weights.{name} to 0"
            ) from None
        longest = self.config.inputs_length, self._width(name)
        return [[*ids[: most - 1], Tokenizer.eos_id] for ids, most in zip(row, longest)]

    def _width(self, name: str) -> int:
        return getattr(self.config, f"{_group(name)}_targets_length")

    def _row(self, name: str, rng: np.random.Generator, tries: int) -> tuple[list[int], list[int]]:
        """Return the token ids of an input and its answer; raise Unfit after so many tries."""
        task, config = TASKS[name], self.config
        options = self._instructions[name]
        parts = options[0]
        if len(options) > 1 and rng.random() < config.wording_share:
            parts = options[int(rng.integers(1, len(options)))]
        labels = self._labels[name]
        renaming: list[int] = []
        words = self.passages.labels
        if len(labels) == 2 <= len(words) and rng.random() < config.relabel_share:
            drawn = rng.choice(words, 2, replace=False)
            renamed = [[int(i)] for i in drawn]
            for old, new in zip(labels, renamed):
                renaming += self._for + old + self._say + new
            renaming += self._colon
            labels = renamed
        used = sum(map(len, parts)) + len(renaming) + task.argument * (len(parts) - 1)
        room = config.inputs_length - 1 - used
        draw = Draw(self.passages, rng, room, self._width(name) - 1, config.docstring_share)
        row = _first_fit(task, draw, tries)
        instruction = list(parts[0])
        for argument, part in zip(row.arguments, parts[1:]):
            instruction += argument[: task.argument] + part
        answer = labels[row.answer] if isinstance(row.answer, int) else row.answer
        return instruction + renaming + row.body, answer

    def _serves(self, name: str) -> bool:
        rng = np.random.default_rng(list(TASKS).index(name))
        try:
            for _ in range(PROBES):
                self._row(name, rng, PROBE_TRIES)
        except Unfit:
            return False
        return True


def _first_fit(task: Task, draw: Draw, tries: int) -> Row:
    for _ in range(tries):
        with contextlib.suppress(Unfit):
            return task.make(draw)
    raise Unfit


def _group(name: str) -> str:
    return "long" if TASKS[name].long else "short"
