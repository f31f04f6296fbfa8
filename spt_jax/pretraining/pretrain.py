"""Pretraining of a small T5 from scratch: the backbone that the package ships, or your own.

It runs in the loop of `loop.py` with every leaf trained and no prompt. Probes measure on the way
whether a prompt can ever steer the result; see `probes.py`.
"""

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grain
import jax
import jax.numpy as jnp
import optax

from spt_jax.config.devices import MeshConfig
from spt_jax.config.fields import to_dict
from spt_jax.config.pretrain import PretrainConfig
from spt_jax.loop import Batch, Job, Labels, Metrics, Program, States, run_job
from spt_jax.models.backbone import Backbone, load_backbone, save_backbone
from spt_jax.optim import make_tx
from spt_jax.pretraining.corpus import Corpus, read_corpus
from spt_jax.pretraining.mixture import Mixture, make_batches
from spt_jax.pretraining.probes import Probes
from spt_jax.pytree import count_params
from spt_jax.runs.progress import say
from spt_jax.runs.trackers import require_packages
from spt_jax.runs.workdir import open_workdir
from spt_jax.step import jit_step
from spt_jax.t5 import T5, T5Config
from spt_jax.t5.flops import step_flops
from spt_jax.tokenizers.bpe import train_tokenizer
from spt_jax.train_state import TrainState, init_state
from spt_jax.typing import Key

TOKENIZER_CHARACTERS = 12_000_000
"""Characters of text that the vocabulary is learned from."""

AHEAD = 8
"""Batches that are made ahead."""


def pretrain(
    config: PretrainConfig, workdir: Path, *, overwrite: bool = False, command: Sequence[str] = ()
) -> dict:
    """Trains a backbone and writes it to `workdir/model`.

    Args:
        config: What, on which text, for how long.
        workdir: The run's folder; a run that was stopped there goes on.
        overwrite: Delete the run that is there first.
        command: The command line, for the manifest.

    Returns:
        Steps, parameters, and on held-out text the last losses and gaps and the score of each task.

    Raises:
        ValueError: The folder holds another run, or a text file cannot be read.
        RunError: The loss is not finite, no checkpoint is whole, or the disk is full.
        Preempted: A signal came where signals are notices, see `distributed/preemption.py`; the run
            is saved.
    """
    require_packages(config.log)
    with open_workdir(Path(workdir)) as folder:
        if (result := folder.finished(config, overwrite=overwrite)) is not None:
            return result
        run = _prepare(config)
        params = {"t5": run.init.params}
        state = init_state(params, run.tx, patience=None, keep_best=False)
        say(f"{config.name}: {count_params(params):,} parameters")
        with folder.claim(to_dict(config), run.identity, run.facts, command, overwrite=overwrite):
            state = run_job(_make_program(run, state), _make_job(run), folder, state)
            result = _make_result(run, state)
            model = run.init.model.config
            save_backbone(
                folder.model_folder, config.name, model, state.trained["t5"], run.init.tokenizer
            )
            folder.write_result(result)
        return result


@dataclass(frozen=True)
class Run:
    """What stays the same from the first step to the last.

    Args:
        config: The resolved config.
        init: The model before the first step, with its tokenizer.
        batches: The training mixture.
        probes: Measurements on held-out text.
        identity: Fingerprints that must be the same when the run is resumed.
        facts: The size of the corpus, for people to read.
        tx: The optimizer.
        key: The key that the dropout keys of all steps are derived from.
    """

    config: PretrainConfig
    init: Backbone
    batches: Mixture
    probes: Probes
    identity: Mapping[str, str]
    facts: Mapping[str, int]
    tx: optax.GradientTransformation
    key: Key


def _prepare(config: PretrainConfig) -> Run:
    """Read the corpus, and load or make the model."""
    # The model first, because reading the corpus takes minutes that a misspelled name should not
    # cost.
    init = None
    if config.init:
        one = MeshConfig(data=1)
        init = load_backbone(config.init, dtype=config.dtype, mesh=one, tune="model")
    corpus = read_corpus(
        packages=config.packages,
        text_files=config.text_files,
        max_text_characters=config.max_text_characters,
        seed=config.seed,
    )
    facts = _corpus_facts(corpus)
    say("corpus: " + ", ".join(f"{count:,} {name}" for name, count in facts.items()))
    train, held_out = corpus.split(config.held_out_share)
    key, init_key = jax.random.split(jax.random.key(config.seed))
    init = init or _make_init(config, train, init_key)
    identity = {
        "corpus_fingerprint": corpus.fingerprint(),
        "tokenizer_fingerprint": init.tokenizer.fingerprint,
        "init_fingerprint": init.fingerprint,
    }
    apart = dataclasses.replace(config.mixture, pack=1)
    probes = Probes(init.model, make_batches(held_out, init.tokenizer, apart, config.seed + 1))
    batches = make_batches(train, init.tokenizer, config.mixture, config.seed)
    tx = make_tx(config.optimizer, config.steps, "model")
    return Run(config, init, batches, probes, identity, facts, tx, key)


def _make_program(run: Run, state: TrainState) -> Program:
    """Hand the run to the loop: its compiled update, and its probes."""
    config, model = run.config, run.init.model
    nothing_frozen = jax.tree.map(lambda _: None, state.trained)
    step = jit_step(model, run.tx, config.loss)

    def update(
        _: Sequence[int], states: States, batches: Sequence[Batch]
    ) -> tuple[States, Sequence[Metrics]]:
        state, metrics = step(states[0], nothing_frozen, batches[0], run.key)
        return [state], [metrics]

    def measure(_: Sequence[int], states: States) -> tuple[States, Sequence[dict[str, Any]]]:
        [state] = states
        gaps = run.probes.gaps(state.trained)
        say(f"step {int(state.step)}  " + "  ".join(f"{k} {gap:.3f}" for k, gap in gaps.items()))
        return states, [{"split": "held_out", **gaps}]

    return Program(f"pretraining {config.name}", update, measure)


def _make_job(run: Run) -> Job:
    """Hand the run to the loop: its batches and its intervals."""
    config = run.config
    return Job(
        steps=config.steps,
        batches=functools.partial(_prefetch, run.batches),
        resume=lambda restored: restored.state,
        evaluate_every=config.gap_every,
        log=config.log,
        metadata=run.identity,
        flops=functools.partial(step_flops, run.init.model.config, prompt=0, tune="model"),
    )


def _make_result(run: Run, state: TrainState) -> dict:
    """Measure the last step: losses, encoder gaps, and the score of each task."""
    return {
        "name": run.config.name,
        "steps": run.config.steps,
        "params": count_params(state.trained),
        **run.probes.gaps(state.trained),
        "probes": run.probes.scores(state.trained),
    }


def _make_init(config: PretrainConfig, corpus: Corpus, key: Key) -> Backbone:
    """Fresh weights, and a tokenizer learned from the corpus."""
    tokenizer = train_tokenizer(
        corpus.sample_texts(TOKENIZER_CHARACTERS), config.architecture.vocab_size
    )
    shape = T5Config(**dataclasses.asdict(config.architecture))
    model = T5(shape, dtype=jnp.dtype(config.dtype))
    params = jax.jit(model.init_params)(key)
    return Backbone(config.name, model, params, tokenizer, fingerprint="")


def _prefetch(batches: Mixture, start: int, stop: int) -> Iterator[tuple[Labels, Batch]]:
    """Yield (labels, batch) of steps start to stop - 1, which a thread makes ahead."""
    steps = grain.MapDataset.range(start, stop).map(batches.__getitem__)
    options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=AHEAD)
    return (({"group": group}, batch) for group, batch in steps.to_iter_dataset(options))


def _corpus_facts(corpus: Corpus) -> dict:
    return {
        "docstrings": len(corpus.docstrings),
        "excerpts": len(corpus.excerpts),
        "characters": sum(len(text) for text in corpus.texts()),
    }
