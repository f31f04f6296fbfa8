"""The child processes of `step.py`: one that makes weights and rows, and the two sides.

Each side loads the weights as its users do and offers `step`, `batches`, `product_seconds`,
`optimizer_seconds` and `memory`. No side imports the framework of the other, which would count as
its memory.
"""

import functools
import importlib
import importlib.util
import json
import os
import resource
import statistics
import sys
import time
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[1]
TINY: dict[str, Any] = dict(
    vocab_size=320, d_model=16, d_kv=8, d_ff=32, num_heads=2, num_layers=2, num_decoder_layers=2
)
NATURAL_BATCHES = 16
OPTIMIZER_STEPS = 20

Rows = list[tuple[list[int], list[int]]]
"""(inputs, targets) as ids, the end marker last."""

Batch = dict[str, np.ndarray]
"""{"inputs": int32[B, T], "targets": int32[B, U]}, padded with 0."""


def read_rows(folder: str | None, vocab_size: int) -> tuple[Rows, str]:
    """Return the rows of SST-2 as ids, or rows of random lengths, and a line that says which.

    Args:
        folder: Folder with `sst2/train.tsv` and, for the real vocabulary, `t5/spiece.model`.
        vocab_size: Upper bound of the ids. Larger ids are mapped below it.
    """
    table = Path(folder or "") / "sst2" / "train.tsv"
    if not folder or not table.is_file():
        rng = np.random.default_rng(0)
        lengths = np.clip(np.exp(rng.normal(2.3, 0.75, 20_000)), 1, 70).astype(int)
        rows = [([*rng.integers(2, vocab_size, n).tolist(), 1], [2, 1]) for n in lengths]
        return rows, "made-up rows of log-normal length (SPT_JAX_DATA names no sst2/train.tsv)"
    lines = [line.rsplit("\t", 1) for line in table.read_text("utf-8").splitlines()[1:]]
    model = Path(folder) / "t5" / "spiece.model"
    if model.is_file() and importlib.util.find_spec("sentencepiece"):
        library = importlib.import_module("sentencepiece")
        encode = library.SentencePieceProcessor(model_file=str(model)).encode
        origin = "SST-2, T5's own vocabulary"
    else:
        origin = "SST-2, one id a word (no t5/spiece.model, or sentencepiece is not installed)"

        def encode(texts: list[str]) -> list[list[int]]:
            return [[2 + zlib.crc32(word.encode()) for word in text.split()] for text in texts]

    def ids(texts: list[str]) -> list[list[int]]:
        fold = vocab_size - 2
        return [[*(2 + (x - 2) % fold for x in row), 1] for row in encode(texts)]

    answers = [("negative", "positive")[int(label)] for _, label in lines]
    return list(zip(ids([text for text, _ in lines]), ids(answers), strict=True)), origin


def prepare(job: dict) -> dict:
    """Write the weights for both sides, the prompt and the rows to the job's folder."""
    import jax
    from safetensors.numpy import save_file

    from spt_jax.pytree import count_params, named_leaves
    from spt_jax.t5 import T5

    config, folder = _t5_config(job), Path(job["folder"])
    params = jax.jit(T5(config).init_params)(jax.random.key(0))
    save_file(
        {name: np.asarray(leaf) for name, leaf in named_leaves(params)},
        folder / "ours.safetensors",
    )
    table = np.asarray(params["token_embedder"]["embedding"])
    drawn = np.random.default_rng(0).integers(2, len(table), job["length"])
    np.save(folder / "prompt.npy", table[drawn])
    # The conversion that the parity tests prove. Saved as theirs, it is loaded as anyone loads it.
    sys.path.insert(0, str(ROOT / "tests"))
    oracle = importlib.import_module("parity.torch_t5")
    torch, transformers = map(importlib.import_module, ("torch", "transformers"))
    transformers.utils.logging.disable_progress_bar()
    oracle.torch_model(config, params, torch.float32).save_pretrained(folder / "theirs")
    rows, origin = read_rows(job["data"], config.vocab_size)
    longest = job["inputs_length"]
    rows = [([*inputs[:-1][: longest - 1], 1], targets) for inputs, targets in rows]
    (folder / "rows.json").write_text(json.dumps(rows))
    lengths = [len(inputs) for inputs, _ in rows]
    quantiles = np.quantile(lengths, [0.5, 0.95, 1]).astype(int).tolist()
    return {
        "vocab_size": config.vocab_size,
        "parameters": count_params(params),
        "rows": {
            "origin": origin,
            "rows": len(rows),
            "mean_length": round(float(np.mean(lengths)), 1),
            **dict(zip(("median_length", "p95_length", "max_length"), quantiles)),
        },
    }


def _t5_config(job: dict):
    from spt_jax.t5 import PRESETS, T5Config

    return T5Config(**TINY) if job["shape"] == "tiny" else PRESETS[f"t5-v1_1-{job['shape']}"]


def _load_rows(job: dict) -> Rows:
    return json.loads((Path(job["folder"]) / "rows.json").read_text())


def collate(rows: Rows) -> Batch:
    """Pad rows to the longest of them, as the collators of transformers do."""

    def pad(part: list[list[int]]) -> np.ndarray:
        padded = np.zeros((len(part), max(map(len, part))), np.int32)
        for number, ids in enumerate(part):
            padded[number, : len(ids)] = ids
        return padded

    return {"inputs": pad([row[0] for row in rows]), "targets": pad([row[1] for row in rows])}


class Ours:
    """`spt_jax.step.train_step`, jitted as in training, with the paper's optimizer."""

    facts = {"optimizer": "Adafactor of Optax, preset t5x_1100k"}

    def __init__(self, job: dict):
        import flax.traverse_util
        import jax
        import jax.numpy as jnp
        from safetensors.numpy import load_file

        from spt_jax.config.train import LossConfig, OptimizerConfig
        from spt_jax.optim import make_tx
        from spt_jax.pytree import label_params, split
        from spt_jax.step import step_options, train_step
        from spt_jax.t5 import T5
        from spt_jax.train_state import init_state

        self._job, self._jax, folder = job, jax, Path(job["folder"])
        arrays = {k: jnp.asarray(v) for k, v in load_file(folder / "ours.safetensors").items()}
        params = {
            "t5": flax.traverse_util.unflatten_dict(arrays, sep="/"),
            "prompt": jnp.asarray(np.load(folder / "prompt.npy")),
        }
        trained, self._frozen = split(params, label_params(params, "prompt"))
        self._tx = make_tx(OptimizerConfig(), steps=1, tune="prompt")
        self._state = init_state(trained, self._tx, patience=None, keep_best=False)
        self._key = jax.random.key(0)
        # The mean cross-entropy alone, which is what transformers' T5 minimizes.
        loss = LossConfig(z_loss=0.0, reduction="mean")
        step = functools.partial(train_step, model=T5(_t5_config(job)), tx=self._tx, loss=loss)
        options = step_options(None)
        self._update = jax.jit(step, donate_argnums=0, compiler_options=options)

        def products(inputs, kernels):
            return [x @ kernel @ kernel.T for x, kernel in zip(inputs, kernels, strict=True)]

        self._products = jax.jit(products, compiler_options=options)
        jax.block_until_ready((self._state, self._frozen))

    def step(self, batch: Batch) -> dict:
        """Make one update, from ids in memory to the new prompt and the loss."""
        started = time.perf_counter()
        self._state, metrics = self._update(self._state, self._frozen, batch, self._key)
        self._jax.block_until_ready((self._state, metrics))
        seconds = time.perf_counter() - started
        values = {name: float(metrics[name]) for name in ("loss", "grad_norm")}
        return {"seconds": seconds, **values}

    def optimizer_seconds(self) -> float:
        """Return the median time of only the optimizer's update."""
        optax = importlib.import_module("optax")

        @self._jax.jit
        def update(grads, opt_state, trained):
            updates, opt_state = self._tx.update(grads, opt_state, trained)
            return optax.apply_updates(trained, updates), opt_state

        args = self._state.trained, self._state.opt_state, self._state.trained
        self._jax.block_until_ready(update(*args))
        return _median_seconds(lambda: self._jax.block_until_ready(update(*args)))

    def product_seconds(self, rows: int) -> float:
        """Time `rows` positions times each kernel of an encoder layer, and times its transpose."""
        jnp = self._jax.numpy
        layers = self._jax.tree.leaves(self._frozen["t5"]["encoder"]["layers"])
        kernels = [leaf[0] for leaf in layers if leaf.ndim == 3]
        inputs = [jnp.ones((rows, len(kernel))) for kernel in kernels]
        self._jax.block_until_ready((kernels, inputs))
        started = time.perf_counter()
        self._jax.block_until_ready(self._products(inputs, kernels))
        return time.perf_counter() - started

    def batches(self, group_by_length: bool) -> list[Batch]:
        """Return the first batches of a run, as `spt-jax train` draws and pads them.

        If batches are grouped by length, return some of the first window, the longest first.
        """
        from spt_jax.config.train import DataConfig
        from spt_jax.data.pipeline import WINDOW, TokenizedSplit, prefetch, train_batches

        rows = _load_rows(self._job)
        inputs, targets = ([np.array(row[i], np.int32) for row in rows] for i in (0, 1))
        data = DataConfig(
            inputs_length=self._job["inputs_length"],
            batch_size=self._job["batch_size"],
            group_by_length=group_by_length,
        )
        split = TokenizedSplit((), inputs, targets, 0.0, 0.0)
        batches = train_batches(split, data, seed=0, targets_width=max(map(len, targets)))
        if not group_by_length:
            return list(prefetch(batches, 0, NATURAL_BATCHES))
        window = list(prefetch(batches, 0, WINDOW))
        window.sort(key=lambda batch: np.max((batch["inputs"] > 0).sum(1)), reverse=True)
        return [window[place] for place in _evenly(WINDOW)]


class Peft:
    """PEFT's prompt tuning of transformers' T5 in a plain torch loop."""

    def __init__(self, job: dict):
        torch, peft, transformers = map(importlib.import_module, ("torch", "peft", "transformers"))
        transformers.utils.logging.disable_progress_bar()
        torch.set_num_threads(job["cores"])
        self._job, self._torch, folder = job, torch, Path(job["folder"])
        base = transformers.T5ForConditionalGeneration.from_pretrained(
            folder / "theirs", dropout_rate=0.0
        )
        prompt = torch.from_numpy(np.load(folder / "prompt.npy"))
        config = peft.PromptTuningConfig(
            task_type="SEQ_2_SEQ_LM",
            num_virtual_tokens=len(prompt),
            num_transformer_submodules=1,  # its default, 2, adds rows that nothing reads
        )
        self._model = peft.get_peft_model(base, config).train()
        (self._prompt,) = (p for p in self._model.parameters() if p.requires_grad)
        self._prompt.data.copy_(prompt)
        self._optimizer = transformers.optimization.Adafactor(
            [self._prompt],
            lr=0.3,
            scale_parameter=False,
            relative_step=False,
            warmup_init=False,
            weight_decay=1e-5,
        )
        self.facts = {
            "optimizer": "Adafactor of transformers",
            "attention": base.config._attn_implementation,
        }

    def step(self, batch: Batch) -> dict:
        """Make one update, from tensors in memory to the new prompt and the loss."""
        inputs, targets = (
            self._torch.from_numpy(batch[name].astype(np.int64)) for name in ("inputs", "targets")
        )
        mask, labels = (inputs > 0).long(), targets.masked_fill(targets == 0, -100)
        started = time.perf_counter()
        self._optimizer.zero_grad(set_to_none=True)
        # Only generation needs a cache of keys and values; without it they are faster.
        output = self._model(input_ids=inputs, attention_mask=mask, labels=labels, use_cache=False)
        output.loss.backward()
        self._optimizer.step()
        loss = output.loss.item()
        seconds = time.perf_counter() - started
        return {"seconds": seconds, "loss": loss, "grad_norm": float(self._prompt.grad.norm())}

    def optimizer_seconds(self) -> float:
        """Return the median time of only the optimizer's update, with the last step's gradient."""
        return _median_seconds(self._optimizer.step)

    def product_seconds(self, rows: int) -> float:
        """Time the same products as `Ours.product_seconds`."""
        block = self._model.get_base_model().encoder.block[0]
        kernels = [x.weight for x in block.modules() if isinstance(x, self._torch.nn.Linear)]
        inputs = [self._torch.ones(rows, kernel.shape[1]) for kernel in kernels]
        with self._torch.no_grad():
            started = time.perf_counter()
            results = [x @ kernel.T @ kernel for x, kernel in zip(inputs, kernels, strict=True)]
            seconds = time.perf_counter() - started
        del results
        return seconds

    def batches(self) -> list[Batch]:
        """Return batches grouped by length as the Trainer groups them, padded to their longest row.

        The Trainer sorts 50 batches together. These are some of them, the longest first.
        """
        rows, size = _load_rows(self._job), self._job["batch_size"]
        trainer = importlib.import_module("transformers.trainer_pt_utils")
        order = trainer.get_length_grouped_indices(
            [len(inputs) for inputs, _ in rows],
            size,
            generator=self._torch.Generator().manual_seed(0),
        )
        places = _evenly(max(min(len(rows) // (4 * size), 50), 1))
        return [collate([rows[i] for i in order[n * size : (n + 1) * size]]) for n in places]


def _evenly(count: int) -> list[int]:
    """Return NATURAL_BATCHES evenly spaced indices of `count` batches."""
    places = (np.arange(NATURAL_BATCHES) + 0.5) * count / NATURAL_BATCHES
    return places.astype(int).tolist()


def _median_seconds(run: Callable[[], Any]) -> float:
    seconds = []
    for _ in range(OPTIMIZER_STEPS):
        started = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def memory_mib() -> dict[str, int]:
    """Return the current memory of this process, if known, and its peak, in MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    peak = peak / 2**20 if sys.platform == "darwin" else peak / 2**10
    statm, now = Path("/proc/self/statm"), peak
    if statm.is_file():
        now = int(statm.read_text().split()[1]) * resource.getpagesize() / 2**20
    return {"now": round(now), "peak": round(peak)}


ROLES = {"spt_jax": Ours, "peft": Peft}


def serve(role: str, job: dict, connection: Any, module: str) -> None:
    """Run a child: prepare and end, or make a side and answer calls until the parent sends None.

    Args:
        role: `prepare`, or one of the module's `ROLES`.
        job: The options as plain values.
        connection: Connection to the parent, which gets ("ok", value) or ("error", message).
        module: Name of a module like this one, with `prepare` and `ROLES`.
    """
    os.dup2(2, 1)  # what a library prints must not meet the result on stdout
    os.environ.update(JAX_PLATFORMS="cpu", HF_HUB_OFFLINE="1", TRANSFORMERS_VERBOSITY="error")
    warnings.simplefilter("ignore")  # of deprecations inside their libraries
    try:
        sides = importlib.import_module(module)
        if role == "prepare":
            connection.send(("ok", sides.prepare(job)))
            return
        side = sides.ROLES[role](job)
        connection.send(("ok", {**side.facts, "memory": memory_mib()}))
        while (call := connection.recv()) is not None:
            name, args = call
            method = memory_mib if name == "memory" else getattr(side, name)
            connection.send(("ok", method(*args)))
    except (EOFError, KeyboardInterrupt):  # the parent has gone
        return
    except Exception as error:
        connection.send(("error", f"{type(error).__name__}: {error}"))
