"""Pretraining of a small T5 from scratch: the backbone that the package ships, or your own.

The step is that of `train.py` with every leaf trained and no prompt. What decides whether a prompt
can ever steer the result is whether the decoder listens to the encoder. The *encoder gap* measures
it: the loss with the encoder's inputs rolled by one row, so that every row reads another row's
text, minus the loss. A loss curve alone does not show a gap of 0.
"""

import dataclasses
import functools
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np

from spt_jax.backbone import save_backbone
from spt_jax.checkpoint import Checkpoints
from spt_jax.config import LossConfig, to_dict
from spt_jax.data.corpus import Corpus, read_corpus
from spt_jax.data.objectives import Mixture, make_batches
from spt_jax.forward import forward
from spt_jax.losses import cross_entropy
from spt_jax.optim import make_tx
from spt_jax.pretrain_config import PretrainConfig
from spt_jax.progress import Bar, say
from spt_jax.pytree import count_params
from spt_jax.runfolder import RunFolder
from spt_jax.runlog import RunLog, write_json_atomic
from spt_jax.step import init_state, require_finite, train_step
from spt_jax.t5 import T5, T5Config
from spt_jax.tokenizer import Tokenizer, train_tokenizer
from spt_jax.typing import Array, Batch, Params

TOKENIZER_CHARACTERS = 12_000_000
"""Text that the vocabulary is learned from."""

GAP_BATCHES = 8
"""Held-out batches of each group that the encoder gap is measured on."""

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
        Steps, parameters, and the last losses and gaps on held-out text.

    Raises:
        ValueError: The folder holds another run, or a text file cannot be read.
        RunError: The loss is not finite, no checkpoint is whole, or the disk is full.
    """
    folder = RunFolder(Path(workdir))
    folder.check_place()
    if not overwrite:
        folder.check_config(to_dict(config))
        if (result := folder.read_result(to_dict(config))) is not None:
            return result
    corpus = read_corpus(
        packages=config.packages,
        text_files=config.text_files,
        max_text_characters=config.max_text_characters,
        seed=config.seed,
    )
    facts = _corpus_facts(corpus)
    say("corpus: " + ", ".join(f"{count:,} {name}" for name, count in facts.items()))
    train, held_out = corpus.split(config.held_out_share)
    tokenizer = train_tokenizer(
        train.sample_texts(TOKENIZER_CHARACTERS), config.architecture.vocab_size
    )
    identity = {
        "corpus_fingerprint": corpus.fingerprint(),
        "tokenizer_fingerprint": tokenizer.fingerprint,
    }
    shape = T5Config(**dataclasses.asdict(config.architecture))
    model = T5(shape, dtype=jnp.dtype(config.dtype))
    key, init_key = jax.random.split(jax.random.key(config.seed))
    params = {"t5": jax.jit(model.init_params)(init_key)}
    nothing_frozen = jax.tree.map(lambda _: None, params)
    tx = make_tx(config.optimizer, config.steps, "model")
    state = init_state(params, tx, patience=None, keep_best=False)
    say(f"{config.name}: {count_params(params):,} parameters")

    update = jax.jit(
        functools.partial(train_step, model=model, tx=tx, loss=config.loss), donate_argnums=0
    )
    measure_gap = _make_gap_meter(model, held_out, tokenizer, config)
    batches = make_batches(train, tokenizer, config.mixture, config.seed)

    with (
        folder.claim(to_dict(config), identity, facts, command, overwrite=overwrite),
        Checkpoints(folder.checkpoints, keep=config.log.keep) as checkpoints,
    ):
        if (restored := checkpoints.restore_newest(state)) is not None:
            state = restored.state
            say(f"resumed at step {restored.step}")
        start = int(state.step)
        with (
            RunLog(folder.log_file, resume_at=start) as log,
            RunLog(folder.timing_file, resume_at=start) as timing,
            Bar(f"pretraining {config.name}", config.steps, start) as bar,
        ):
            pending: list[tuple[str, dict[str, Array]]] = []
            since = time.perf_counter()
            for step, (group, batch) in enumerate(
                _prefetch(batches, start, config.steps), start=start + 1
            ):
                state, metrics = update(state, nothing_frozen, batch, key)
                pending.append((group, metrics))
                last = step == config.steps
                save = last or step % config.log.checkpoint_every == 0
                if len(pending) >= config.log.every or save or step % config.gap_every == 0:
                    shown = _write_losses(log, step, pending)
                    timing.write({"step": step, "seconds": time.perf_counter() - since})
                    pending, since = [], time.perf_counter()
                    bar.update(step, shown)
                if last or step % config.gap_every == 0:
                    gaps = measure_gap(state.trained)
                    log.write({"step": step, "split": "held_out", **gaps})
                    say(f"step {step}  " + "  ".join(f"{k} {v:.3f}" for k, v in gaps.items()))
                if save:
                    checkpoints.save(step, state, identity)
    result = {"name": config.name, "steps": config.steps, "params": count_params(state.trained)}
    result |= measure_gap(state.trained)
    save_backbone(folder.model_folder, config.name, shape, state.trained["t5"], tokenizer)
    write_json_atomic(folder.result_file, result)
    return result


def _prefetch(batches: Mixture, start: int, stop: int) -> Iterator[Any]:
    """(group, batch) of steps start to stop - 1, made ahead by a thread."""
    steps = grain.MapDataset.range(start, stop).map(batches.__getitem__)
    options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=AHEAD)
    return iter(steps.to_iter_dataset(options))


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


def _make_gap_meter(
    model: T5, held_out: Corpus, tokenizer: Tokenizer, config: PretrainConfig
) -> Callable[[Params], dict[str, float]]:
    """A function of params: loss and encoder gap of each group on fixed held-out batches."""
    batches = make_batches(held_out, tokenizer, config.mixture, config.seed + 1)
    chosen: dict[str, list[Any]] = {}
    step = 0
    while any(len(chosen.get(group, ())) < GAP_BATCHES for group in ("long", "short")):
        group, batch = batches[step]
        if len(chosen.setdefault(group, [])) < GAP_BATCHES:
            chosen[group].append(batch)
        step += 1

    @jax.jit
    def loss(params: Params, batch: Batch) -> tuple[Array, Array]:
        def per_token(inputs):
            logits = forward(model, params, inputs, batch["targets"])
            mask = batch["targets"] > 0
            sums = cross_entropy(logits, batch["targets"], mask, LossConfig(z_loss=0.0))
            return sums.cross_entropy / sums.tokens

        return per_token(batch["inputs"]), per_token(jnp.roll(batch["inputs"], 1, axis=0))

    def measure(params: Params) -> dict[str, float]:
        measured = {}
        for group in sorted(chosen):
            pairs = jax.device_get([loss(params, batch) for batch in chosen[group]])
            right, rolled = np.mean(np.asarray(pairs), axis=0)
            measured[f"{group}_loss"] = float(right)
            measured[f"{group}_gap"] = float(rolled - right)
        return measured

    return measure


def _corpus_facts(corpus: Corpus) -> dict:
    return {
        "docstrings": len(corpus.docstrings),
        "excerpts": len(corpus.excerpts),
        "characters": sum(len(text) for text in corpus.texts()),
    }
