"""What a trained prompt means, measured: by words, by distances, and by what its parts are worth.

`nearest` words alone say little: a prompt may solve a task while its nearest words are any text
(Khashabi et al. 2022). So each measure of the trained prompt stands beside those of three others of
the same shape: the prompt before training, random vectors of the same lengths, and words.

    Lester et al. 2021, section 7: nearest words
    Wen et al. 2023, "Hard Prompts Made Easy" (PEZ): words found by gradients
    Langedijk et al. 2024, "DecoderLens": the decoder on intermediate layers of the encoder
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from spt_jax.config.train import DataConfig, LossConfig, TrainConfig
from spt_jax.data.example import Example, Task
from spt_jax.data.pipeline import TokenizedSplit, eval_batches, tokenize_task, train_batches
from spt_jax.data.tasks import load_task
from spt_jax.errors import require
from spt_jax.evaluation.evaluate import sample_split
from spt_jax.evaluation.scores import TaskRows, answer_tasks, majority_score, score
from spt_jax.forward import forward
from spt_jax.losses import cross_entropy
from spt_jax.models.backbone import Backbone
from spt_jax.prompts.bank import PromptBank
from spt_jax.prompts.load import ROWS, load_run
from spt_jax.prompts.read import read_start
from spt_jax.prompts.words import embeddings, nearest, words_of
from spt_jax.runs.progress import say
from spt_jax.t5 import T5
from spt_jax.typing import Array, Params

SHUFFLES = 3
"""Orders of the vectors that are drawn at random."""

SEARCH_ROWS = 16
"""Rows of a batch of the search for words."""


def interpret(
    run: Path,
    *,
    rows: int = 128,
    search_steps: int = 60,
    words: int = 3,
    seed: int = 0,
    fetch: Sequence[str] = (),
) -> dict[str, Any]:
    """Measure the prompt of a trained run.

    Args:
        run: Folder of the run.
        rows: Rows of dev that every score and loss is of, a fixed random sample.
        search_steps: Steps of the search for words by gradients; 0 for none.
        words: Nearest words that are listed for each vector.
        seed: Seed of the random vectors and orders.
        fetch: Names in the config of the run that may be fetched; see `load_run`.

    Returns:
        `task`, `model`, `length`, `rows`, and `majority_score`; `prompts`, for each of several
        prompts its `score`, `rank_score` and `loss` (nats per target token) on the rows, and for
        those of the prompt's own shape `norm` (in units of the mean norm of embeddings), `distance`
        (to the nearest embedding, in the same units), `cosine` (with the nearest embedding by
        cosine) and `start_words` (share of the vectors whose nearest word by cosine is that of the
        start, 0 to 1); `positions`, for each vector its nearest words and its `importance` (rise
        of the loss when it is left out); `alone`, what the decoder writes to the prompt without an
        input, by the layer of the encoder that it reads; `plane`, points of a PCA plane.

    Raises:
        FileNotFoundError: The folder holds no run.
        ValueError: The run has no prompt, or an option is out of range.
    """
    require(rows >= 1, f"rows is {rows}, expected 1 or more")
    require(search_steps >= 0, f"search_steps is {search_steps}, expected 0 or more")
    require(words >= 1, f"words is {words}, expected 1 or more")
    loaded = load_run(run, fetch=fetch, rows=ROWS)
    config, backbone = loaded.config, loaded.backbone
    require(config.tune == "prompt", f"run '{run}' tuned the model; interpret a run of a prompt")
    best = np.asarray(loaded.params["prompt"], np.float32)
    task = load_task(config.task)
    splits = {
        name: tokenize_task(task, name, config.task, config, backbone.tokenizer)
        for name in ("train", "dev")
    }
    dev = sample_split(splits["dev"], rows)
    table = embeddings(backbone)
    rng = np.random.default_rng(seed)
    shaped = {"trained": best}
    try:
        shaped["start"] = read_start(run).prompt
    except FileNotFoundError:
        say("the run keeps no start.safetensors, so nothing is compared with its start")
    shaped["random"] = _random_like(best, rng)
    say(f"measuring the importance of {len(best)} vectors")
    importance = leave_one_out(backbone, best, dev, config.data)
    words_of_best = {measure: ids[:, 0] for measure, (ids, _) in nearest(best, table, 1).items()}
    others = {
        "words by cosine": table[words_of_best["cosine"]],
        "words by L2": table[words_of_best["l2"]],
        **_pruned(best, importance),
        **{f"order {n + 1}": rng.permutation(best) for n in range(SHUFFLES)},
    }
    found_words = None
    if search_steps:
        say(f"searching words for {search_steps} steps")
        found = search_words(backbone, best, splits["train"], config, search_steps)
        others["words by search"] = table[found]
        found_words = backbone.tokenizer.decode(found.tolist())
    say(f"scoring {len(shaped) + len(others)} prompts on {len(dev.inputs)} rows of dev")
    scores = score_prompts(backbone, {**shaped, **others}, dev, task, config)
    for name, prompt in shaped.items():
        scores[name] |= place(prompt, table, shaped.get("start"))
    return {
        "task": task.name,
        "model": backbone.name,
        "length": len(best),
        "rows": len(dev.inputs),
        "majority_score": majority_score(task, "dev"),
        "prompts": scores,
        "searched_words": found_words,
        "positions": [
            {**row, "importance": float(rise)}
            for row, rise in zip(words_of(best, backbone, words), importance, strict=True)
        ],
        "alone": write_alone(backbone, shaped, config.data),
        "plane": to_plane(shaped, table, rng),
    }


def _random_like(prompt: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return vectors of random directions, each as long as that of the prompt."""
    drawn = rng.standard_normal(prompt.shape).astype(np.float32)
    sizes = np.linalg.norm(prompt, axis=1, keepdims=True)
    return drawn / np.linalg.norm(drawn, axis=1, keepdims=True) * sizes


def _pruned(prompt: np.ndarray, importance: np.ndarray) -> dict[str, np.ndarray]:
    """Return the most important three quarters, half and quarter of the vectors, in their order."""
    ranked = np.argsort(-importance, kind="stable")
    counts = {-(-len(prompt) * quarters // 4) for quarters in (3, 2, 1)} - {len(prompt)}
    return {f"best {n} vectors": prompt[np.sort(ranked[:n])] for n in sorted(counts, reverse=True)}


def place(prompt: np.ndarray, table: np.ndarray, start: np.ndarray | None) -> dict[str, float]:
    """Return where a prompt is among the embeddings; see `interpret` for the values."""
    size = np.linalg.norm(table, axis=1).mean()
    found = nearest(prompt, table, 1)
    values = {
        "norm": float(np.linalg.norm(prompt, axis=1).mean() / size),
        "distance": float(found["l2"][1].mean() / size),
        "cosine": float(found["cosine"][1].mean()),
    }
    if start is not None and start.shape == prompt.shape:
        same = found["cosine"][0] == nearest(start, table, 1)["cosine"][0]
        values["start_words"] = float(same.mean())
    return values


def score_prompts(
    backbone: Backbone,
    prompts: Mapping[str, np.ndarray],
    split: TokenizedSplit,
    task: Task,
    config: TrainConfig,
) -> dict[str, dict[str, float | None]]:
    """Score several prompts on the same rows, in the same batches.

    Returns:
        `score`, `rank_score` (None for free text) and `loss` of each prompt.
    """
    rows = [TaskRows(split, task.label_words, config.data, name, task.metrics) for name in prompts]
    bank = PromptBank.from_prompts(prompts, backbone.model.config.d_model)
    params = {"t5": backbone.params}
    outputs = answer_tasks(backbone, params, bank, rows, config.data, config.eval.batch_size)
    found: dict[str, dict[str, float | None]] = {}
    for (name, prompt), of_rows, output in zip(prompts.items(), rows, outputs, strict=True):
        scores = score(of_rows, output)
        found[name] = {
            "score": scores.score,
            "rank_score": scores.rank_score,
            "loss": mean_loss(backbone, prompt, split, config.data),
        }
    return found


def mean_loss(
    backbone: Backbone, prompt: np.ndarray, split: TokenizedSplit, data: DataConfig
) -> float:
    """Return the loss of the targets of a split, in nats per token."""
    prompts, masks = jnp.asarray(prompt)[None], np.ones((1, len(prompt)), bool)
    return float(_losses(backbone, prompts, masks, split, data)[0])


def leave_one_out(
    backbone: Backbone, prompt: np.ndarray, split: TokenizedSplit, data: DataConfig
) -> np.ndarray:
    """Return by how much the loss rises without each vector, float [P], in nats per target token.

    A vector that is left out is masked, so that those before it keep their distance to the text.
    """
    length = len(prompt)
    masks = np.concatenate([np.ones((1, length), bool), ~np.eye(length, dtype=bool)])
    prompts = jnp.broadcast_to(jnp.asarray(prompt), (length + 1, *prompt.shape))
    whole, *without = _losses(backbone, prompts, masks, split, data)
    return np.asarray(without) - whole


def _losses(
    backbone: Backbone,
    prompts: Array,
    masks: np.ndarray,
    split: TokenizedSplit,
    data: DataConfig,
) -> np.ndarray:
    """Return the loss per target token of a split with each of K prompts [K, P, D], one by one."""
    sums, tokens = np.zeros(len(prompts)), 0.0
    for indices, batch in eval_batches(split, data, 32):
        batch = {name: jnp.asarray(array) for name, array in batch.items()}
        tokens += sum(len(split.targets[i]) for i in indices)
        for k, (prompt, mask) in enumerate(zip(prompts, masks, strict=True)):
            sums[k] += float(_loss(backbone.model, backbone.params, prompt, mask, batch))
    return sums / tokens


@functools.partial(jax.jit, static_argnames="model")
def _loss(model: T5, params: Params, prompt: Array, mask: Array, batch: Mapping[str, Array]):
    """Return the summed cross-entropy of the targets of a batch."""
    inputs, targets = batch["inputs"], batch["targets"]
    of_rows = jnp.broadcast_to(mask, (len(inputs), len(mask)))
    tree = {"t5": params, "prompt": prompt}
    logits = forward(model, tree, inputs, targets, prompt_mask=of_rows)
    return cross_entropy(logits, targets, targets > 0, LossConfig(z_loss=0.0)).cross_entropy


def search_words(
    backbone: Backbone, prompt: np.ndarray, train: TokenizedSplit, config: TrainConfig, steps: int
) -> np.ndarray:
    """Return token ids, int [P], whose embeddings do the task best, by projected gradients (PEZ).

    A continuous prompt is updated with the gradient at its projection to the nearest embeddings by
    cosine. Of the projections on the way, the one with the lowest loss on its batch is returned.
    """
    table = embeddings(backbone)
    data = dataclasses.replace(config.data, batch_size=SEARCH_ROWS)
    batches = train_batches(train, data, seed=0, targets_width=max(map(len, train.targets)))
    gradient = jax.jit(
        jax.value_and_grad(
            lambda words, batch, mask: _loss(backbone.model, backbone.params, words, mask, batch)
        )
    )
    # Steps of a tenth of an embedding's elements, so that a vector can leave its word.
    tx = optax.adam(0.1 * float(np.sqrt(np.mean(np.square(table)))))
    vectors: Any = jnp.asarray(prompt)
    state, mask = tx.init(vectors), jnp.ones(len(prompt), bool)
    lowest, best = np.inf, np.zeros(len(prompt), int)
    for step in range(steps):
        ids = nearest(vectors, table, 1)["cosine"][0][:, 0]
        batch = jax.tree.map(jnp.asarray, batches[step])
        loss, slope = gradient(jnp.asarray(table[ids]), batch, mask)
        mean = float(loss) / float(jnp.sum(batch["targets"] > 0))
        if mean < lowest:
            lowest, best = mean, ids
        updates, state = tx.update(slope, state)
        vectors = optax.apply_updates(vectors, updates)
    return best


def write_alone(
    backbone: Backbone, prompts: Mapping[str, np.ndarray], data: DataConfig
) -> list[dict[str, Any]]:
    """Let the decoder answer each prompt without an input, from every layer of the encoder.

    Returns:
        For each number of layers that the decoder reads from, `layer` and a text by prompt. The
        final norm of the encoder is applied to any of them.
    """
    empty = TokenizedSplit(
        [Example("", "")],
        [np.array([backbone.tokenizer.eos_id], np.int32)],
        [np.zeros(1, np.int32)],
        0.0,
        0.0,
    )
    bank = PromptBank.from_prompts(prompts, backbone.model.config.d_model)
    rows = [TaskRows(empty, None, data, name) for name in prompts]
    found = []
    for layers in range(1, backbone.model.config.num_layers + 1):
        shallow = _first_layers(backbone, layers)
        params = {"t5": shallow.params}
        outputs = answer_tasks(shallow, params, bank, rows, data, len(rows))
        texts = {name: output.predictions[0] for name, output in zip(prompts, outputs)}
        found.append({"layer": layers, **texts})
    return found


def _first_layers(backbone: Backbone, layers: int) -> Backbone:
    """Return a model whose encoder ends after some layers, with the final norm."""
    model = backbone.model
    shape = dataclasses.replace(model.config, num_layers=layers)
    encoder = dict(backbone.params["encoder"])
    encoder["layers"] = jax.tree.map(lambda leaf: leaf[:layers], encoder["layers"])
    params = {**backbone.params, "encoder": encoder}
    shallow = model.clone(config=shape)
    return dataclasses.replace(backbone, model=shallow, params=params)


def to_plane(
    prompts: Mapping[str, np.ndarray], table: np.ndarray, rng: np.random.Generator
) -> dict[str, list[list[float]]]:
    """Project prompts and a sample of the embeddings to the plane of most variance among them all.

    Returns:
        Points [x, y] by prompt, and those of the embeddings as `vocabulary`.
    """
    sample = table[np.sort(rng.permutation(len(table))[:1000])]
    everything = np.concatenate([sample, *prompts.values()]).astype(np.float64)
    middle = everything.mean(0)
    axes = np.linalg.svd(everything - middle, full_matrices=False)[2][:2]
    # The sign of an axis is arbitrary: the largest element is positive, so that runs repeat.
    axes *= np.sign(axes[np.arange(2), np.abs(axes).argmax(1)])[:, None]
    named = {"vocabulary": sample, **prompts}
    return {name: ((points - middle) @ axes.T).tolist() for name, points in named.items()}
