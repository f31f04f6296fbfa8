"""Pretraining of a small T5 from scratch: the backbone that the package ships, or your own.

The step is that of `train.py` with every leaf trained and no prompt. Whether a prompt can ever
steer the result is measured on the way: see `pretraining/probes.py`.
"""

import dataclasses
import functools
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np

from spt_jax.config.devices import MeshConfig
from spt_jax.config.pretrain import PretrainConfig
from spt_jax.config.train import to_dict
from spt_jax.distributed.preemption import poll
from spt_jax.errors import Preempted
from spt_jax.models.backbone import Backbone, load_backbone, save_backbone
from spt_jax.optim import make_tx
from spt_jax.pretraining.corpus import Corpus, read_corpus
from spt_jax.pretraining.mixture import Mixture, make_batches
from spt_jax.pretraining.probes import Probes
from spt_jax.pytree import count_params
from spt_jax.runs.checkpoints import Checkpoints
from spt_jax.runs.folder import RunFolder
from spt_jax.runs.log import RunLog, write_json_atomic
from spt_jax.runs.progress import Bar, say
from spt_jax.runs.saver import Saver, was_evaluated
from spt_jax.runs.tensorboard import require_tensorboard
from spt_jax.runs.workdir import open_workdir
from spt_jax.step import TrainState, init_state, require_finite, step_options, train_step
from spt_jax.t5 import T5, T5Config
from spt_jax.tokenizers.bpe import train_tokenizer
from spt_jax.typing import Array, Key

TOKENIZER_CHARACTERS = 12_000_000
"""Text that the vocabulary is learned from."""

AHEAD = 8


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
    require_tensorboard(config.log.tensorboard)
    with open_workdir(Path(workdir)) as folder:
        return _pretrain(config, folder, overwrite=overwrite, command=command)


def _pretrain(
    config: PretrainConfig, folder: RunFolder, *, overwrite: bool, command: Sequence[str]
) -> dict:
    folder.check_place()
    if not overwrite:
        folder.check_config(to_dict(config))
        if (result := folder.read_result(to_dict(config))) is not None:
            return result
    # First, since reading the corpus takes minutes that a misspelled name should not cost.
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
    model, tokenizer, params = init.model, init.tokenizer, {"t5": init.params}
    identity = {
        "corpus_fingerprint": corpus.fingerprint(),
        "tokenizer_fingerprint": tokenizer.fingerprint,
        "init_fingerprint": init.fingerprint,
    }
    nothing_frozen = jax.tree.map(lambda _: None, params)
    tx = make_tx(config.optimizer, config.steps, "model")
    state = init_state(params, tx, patience=None, keep_best=False)
    say(f"{config.name}: {count_params(params):,} parameters")

    update = jax.jit(
        functools.partial(train_step, model=model, tx=tx, loss=config.loss),
        donate_argnums=0,
        compiler_options=step_options(None),
    )
    apart = dataclasses.replace(config.mixture, pack=1)
    probes = Probes(model, make_batches(held_out, tokenizer, apart, config.seed + 1))
    gaps: dict[str, float] = {}
    batches = make_batches(train, tokenizer, config.mixture, config.seed)

    with (
        folder.claim(to_dict(config), identity, facts, command, overwrite=overwrite),
        Checkpoints(folder.checkpoints, keep=config.log.keep, saved=folder.publish) as checkpoints,
    ):
        if (restored := checkpoints.restore_newest(state)) is not None:
            state = restored.state
            say(f"resumed at step {restored.step}")
        start, evaluated = int(state.step), was_evaluated(restored)
        events = folder.events_folder if config.log.tensorboard else None
        with (
            RunLog(folder.log_file, resume_at=start, evaluated=evaluated, events=events) as log,
            RunLog(folder.timing_file, resume_at=start) as timing,
            Bar(f"pretraining {config.name}", config.steps, start) as bar,
        ):
            saver = Saver(checkpoints, (log, timing), config.log, identity)
            poll()  # before the first step is compiled
            if not evaluated:  # a signal has kept the run from it
                gaps = _measure(probes, state, log)
            pending: list[tuple[str, dict[str, Array]]] = []
            since = time.perf_counter()
            for step, (group, batch) in enumerate(
                _prefetch(batches, start, config.steps), start=start + 1
            ):
                state, metrics = update(state, nothing_frozen, batch, key)
                pending.append((group, metrics))
                measuring = step == config.steps or step % config.gap_every == 0
                saving = step == config.steps or saver.due(step)
                if len(pending) >= config.log.every or saving or measuring:
                    shown = _write_losses(log, step, pending)
                    timing.write({"step": step, "seconds": time.perf_counter() - since})
                    pending, since = [], time.perf_counter()
                    bar.update(step, shown)
                try:
                    poll()
                    if measuring:
                        gaps = _measure(probes, state, log)
                except Preempted as notice:
                    _write_losses(log, step, pending)
                    saver.leave(step, state, notice, evaluated=not measuring)
                if saving:
                    saver.save(step, state)
    result = {"name": config.name, "steps": config.steps, "params": count_params(state.trained)}
    result |= gaps or probes.gaps(state.trained)
    result["probes"] = probes.scores(state.trained)
    save_backbone(folder.model_folder, config.name, model.config, state.trained["t5"], tokenizer)
    write_json_atomic(folder.result_file, result)
    return result


def _make_init(config: PretrainConfig, corpus: Corpus, key: Key) -> Backbone:
    """Fresh weights, and a tokenizer learned from the corpus."""
    tokenizer = train_tokenizer(
        corpus.sample_texts(TOKENIZER_CHARACTERS), config.architecture.vocab_size
    )
    shape = T5Config(**dataclasses.asdict(config.architecture))
    model = T5(shape, dtype=jnp.dtype(config.dtype))
    params = jax.jit(model.init_params)(key)
    return Backbone(config.name, model, params, tokenizer, fingerprint="")


def _prefetch(batches: Mixture, start: int, stop: int) -> Iterator[Any]:
    """(group, batch) of steps start to stop - 1, made ahead by a thread."""
    steps = grain.MapDataset.range(start, stop).map(batches.__getitem__)
    options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=AHEAD)
    return iter(steps.to_iter_dataset(options))


def _measure(probes: Probes, state: TrainState, log: RunLog) -> dict[str, float]:
    """Measures a step on held-out text, and logs it."""
    step, gaps = int(state.step), probes.gaps(state.trained)
    log.write({"step": step, "split": "held_out", **gaps})
    say(f"step {step}  " + "  ".join(f"{name} {gap:.3f}" for name, gap in gaps.items()))
    return gaps


def _write_losses(log: RunLog, step: int, pending: list) -> dict[str, float]:
    """Logs the steps up to `step` that are pending; returns their mean loss by group."""
    fetched = jax.device_get([metrics for _, metrics in pending])
    groups = [group for group, _ in pending]
    first = step - len(pending) + 1
    for number, (group, metrics) in enumerate(zip(groups, fetched), start=first):
        require_finite(number, metrics)
        log.write({"step": number, "group": group, **metrics})
    return {
        group: float(np.mean([m["loss"] for g, m in zip(groups, fetched) if g == group]))
        for group in sorted(set(groups))
    }


def _corpus_facts(corpus: Corpus) -> dict:
    return {
        "docstrings": len(corpus.docstrings),
        "excerpts": len(corpus.excerpts),
        "characters": sum(len(text) for text in corpus.texts()),
    }
