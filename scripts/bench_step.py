"""One prompt tuning step on CPU: spt_jax against PEFT in torch, on one machine in one run.

Each side is a process of its own that loads the same random weights and the same prompt, and they
take turns: ours, theirs, ours, theirs. The one that waits uses no core, and its peak memory is its
own. Loss and gradient must agree before anything is timed. This process imports neither jax nor
torch, because a child's peak memory starts from that of its parent.

    python scripts/bench_step.py --markdown
"""

import argparse
import datetime
import importlib
import importlib.metadata
import importlib.util
import json
import math
import multiprocessing
import os
import platform
import resource
import statistics
import sys
import tempfile
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[1]
TINY = dict(
    vocab_size=320, d_model=16, d_kv=8, d_ff=32, num_heads=2, num_layers=2, num_decoder_layers=2
)
PACKAGES = ("jax", "jaxlib", "flax", "optax", "torch", "transformers", "peft", "numpy")
TUNING = ("XLA_FLAGS", "GLIBC_TUNABLES", "LD_PRELOAD", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
SIDES = ("spt_jax", "peft")
WARM_UP = 2  # untimed steps, of which the first compiles
NATURAL_BATCHES = 16  # one window of our group_by_length
OPTIMIZER_STEPS = 20
LIMITS = {"loss": 1e-4, "grad_norm": 1e-3}  # relative, float32 sums in another order

Rows = list[tuple[list[int], list[int]]]  # (inputs, targets) as ids, the end marker last
Batch = dict[str, np.ndarray]  # {"inputs": int32[B, T], "targets": int32[B, U]}, padded with 0


class SideError(RuntimeError):
    """A side failed, or the sides do not compute the same."""


# ---- the rows and the weights, made by a child that ends before the sides start


def read_rows(folder: str | None, vocab_size: int) -> tuple[Rows, str]:
    """SST-2 as ids, or rows of made-up lengths, and one line that says which.

    Args:
        folder: With `sst2/train.tsv` and, for the real vocabulary, `t5/spiece.model`.
        vocab_size: Every id is below.
    """
    if not folder or not (table := Path(folder) / "sst2" / "train.tsv").is_file():
        rng = np.random.default_rng(0)
        lengths = np.clip(np.exp(rng.normal(2.2, 0.75, 20_000)), 1, 70).astype(int) + 1
        inputs = [[*rng.integers(2, vocab_size, n - 1).tolist(), 1] for n in lengths]
        made_up = "made-up sentences, log-normal lengths (SPT_JAX_DATA names no sst2/train.tsv)"
        return [(ids, [2 + i % 2, 1]) for i, ids in enumerate(inputs)], made_up
    lines = [line.rsplit("\t", 1) for line in table.read_text("utf-8").splitlines()[1:]]
    texts = [sentence for sentence, _ in lines]
    answers = [("negative", "positive")[int(label)] for _, label in lines]
    model = Path(folder) / "t5" / "spiece.model"
    if model.is_file() and importlib.util.find_spec("sentencepiece"):
        pieces = importlib.import_module("sentencepiece")
        encode = pieces.SentencePieceProcessor(model_file=str(model)).encode
        origin = "SST-2 train, ids of T5's own vocabulary"
    else:
        origin = "SST-2 train, one id a word (no t5/spiece.model, or no sentencepiece)"

        def encode(texts: list[str]) -> list[list[int]]:
            return [[2 + zlib.crc32(word.encode()) for word in text.split()] for text in texts]

    def ids(texts: list[str]) -> list[list[int]]:
        fold = vocab_size - 2
        return [[*(x if x < vocab_size else 2 + x % fold for x in row), 1] for row in encode(texts)]

    return list(zip(ids(texts), ids(answers), strict=True)), origin


def prepare(job: dict) -> dict:
    """Writes the weights for both sides, the prompt and the rows into the job's folder."""
    import jax
    from safetensors.numpy import save_file

    from spt_jax.pytree import count_params, named_leaves
    from spt_jax.t5 import PRESETS, T5, T5Config

    config = PRESETS["t5-v1_1-small"] if job["shape"] == "small" else T5Config(**TINY)
    params = jax.jit(T5(config).init_params)(jax.random.key(0))
    folder = Path(job["folder"])
    save_file({name: np.asarray(x) for name, x in named_leaves(params)}, folder / "ours")
    table = np.asarray(params["token_embedder"]["embedding"])
    rng = np.random.default_rng(0)
    np.save(folder / "prompt.npy", table[rng.integers(2, len(table), job["length"])])
    # The conversion that the parity tests prove; saved as theirs, it is loaded as anyone loads it.
    sys.path.insert(0, str(ROOT / "tests"))
    torch_model = importlib.import_module("parity.torch_t5").torch_model
    torch_model(config, params, importlib.import_module("torch").float32).save_pretrained(
        folder / "theirs"
    )
    rows, origin = read_rows(job["data"], config.vocab_size)
    longest = job["inputs_length"]
    rows = [([*inputs[: longest - 1], 1], targets) for inputs, targets in rows]
    (folder / "rows.json").write_text(json.dumps(rows))
    lengths = np.array([len(inputs) for inputs, _ in rows])
    return {
        "vocab_size": config.vocab_size,
        "parameters": count_params(params),
        "rows": {
            "origin": origin,
            "rows": len(rows),
            "mean": round(float(lengths.mean()), 1),
            "median": int(np.median(lengths)),
            "p95": int(np.quantile(lengths, 0.95)),
            "max": int(lengths.max()),
        },
    }


def load_rows(job: dict) -> Rows:
    return json.loads((Path(job["folder"]) / "rows.json").read_text())


# ---- the two sides


class Ours:
    """`spt_jax.step.train_step`, jitted as the train loop jits it, with the paper's optimizer."""

    def __init__(self, job: dict):
        import functools

        import flax.traverse_util
        import jax
        import jax.numpy as jnp
        from safetensors.numpy import load_file

        from spt_jax.config import LossConfig, OptimizerConfig
        from spt_jax.optim import make_tx
        from spt_jax.pytree import label_params, split
        from spt_jax.step import init_state, train_step
        from spt_jax.t5 import PRESETS, T5, T5Config

        self._job, self._jax = job, jax
        config = PRESETS["t5-v1_1-small"] if job["shape"] == "small" else T5Config(**TINY)
        arrays = load_file(Path(job["folder"]) / "ours")
        t5 = flax.traverse_util.unflatten_dict(jax.tree.map(jnp.asarray, arrays), sep="/")
        params = {"t5": t5, "prompt": jnp.asarray(np.load(Path(job["folder"]) / "prompt.npy"))}
        trained, self._frozen = split(params, label_params(params, "prompt"))
        self._tx = make_tx(OptimizerConfig(), steps=1, tune="prompt")
        self._state = init_state(trained, self._tx, patience=None, keep_best=False)
        self._key = jax.random.key(0)
        self._update = jax.jit(
            functools.partial(
                train_step,
                model=T5(config),
                tx=self._tx,
                loss=LossConfig(z_loss=0.0, reduction="mean"),  # what T5 in transformers minimizes
            ),
            donate_argnums=0,
        )
        jax.block_until_ready((self._state, self._frozen))

    def step(self, batch: Batch) -> dict:
        started = time.perf_counter()
        self._state, metrics = self._update(self._state, self._frozen, batch, self._key)
        loss = float(metrics["loss"])
        self._jax.block_until_ready(self._state)
        seconds = time.perf_counter() - started
        return {"seconds": seconds, "loss": loss, "grad_norm": float(metrics["grad_norm"])}

    def optimizer_seconds(self) -> float:
        """The median time of an update alone, given gradients."""
        optax = importlib.import_module("optax")

        def update(grads, opt_state, trained):
            updates, opt_state = self._tx.update(grads, opt_state, trained)
            return optax.apply_updates(trained, updates), opt_state

        run = self._jax.jit(update)
        args = self._state.trained, self._state.opt_state, self._state.trained
        self._jax.block_until_ready(run(*args))
        return _median_seconds(lambda: self._jax.block_until_ready(run(*args)))

    def batches(self, group_by_length: bool) -> list[Batch]:
        """The first batches of a run: as `spt-jax train` draws and pads them."""
        from spt_jax.config import DataConfig
        from spt_jax.data.pipeline import TokenizedSplit, train_batches

        job, rows = self._job, load_rows(self._job)
        inputs, targets = ([np.array(row[i], np.int32) for row in rows] for i in (0, 1))
        data = DataConfig(
            inputs_length=job["inputs_length"],
            batch_size=job["batch_size"],
            group_by_length=group_by_length,
        )
        split = TokenizedSplit((), inputs, targets, 0.0, 0.0)
        batches = train_batches(split, data, seed=0, targets_width=max(map(len, targets)))
        return [batches[i] for i in range(NATURAL_BATCHES)]

    def facts(self) -> dict:
        return {"optimizer": "Adafactor of Optax, preset t5x_1100k"}


class Peft:
    """PEFT prompt tuning of transformers' T5, with the step of a plain torch loop."""

    def __init__(self, job: dict):
        torch, peft, transformers = map(importlib.import_module, ("torch", "peft", "transformers"))
        transformers.utils.logging.disable_progress_bar()
        torch.set_num_threads(job["cores"])
        self._job, self._torch, self._transformers = job, torch, transformers
        base = transformers.T5ForConditionalGeneration.from_pretrained(
            Path(job["folder"]) / "theirs", dropout_rate=0.0
        )
        self._attention = base.config._attn_implementation
        prompt = torch.from_numpy(np.load(Path(job["folder"]) / "prompt.npy"))
        config = peft.PromptTuningConfig(
            task_type="SEQ_2_SEQ_LM",
            num_virtual_tokens=len(prompt),
            num_transformer_submodules=1,  # the default, 2, adds rows that nothing reads
        )
        self._model = peft.get_peft_model(base, config).train()
        weight = self._model.prompt_encoder["default"].embedding.weight
        weight.data.copy_(prompt)
        self._trained = [p for p in self._model.parameters() if p.requires_grad]
        assert len(self._trained) == 1 and self._trained[0] is weight
        self._optimizer = transformers.optimization.Adafactor(
            self._trained,
            lr=0.3,
            scale_parameter=False,
            relative_step=False,
            warmup_init=False,
            weight_decay=1e-5,
        )

    def step(self, batch: Batch) -> dict:
        inputs, targets = (
            self._torch.from_numpy(batch[key].astype(np.int64)) for key in ("inputs", "targets")
        )
        labels = targets.masked_fill(targets == 0, -100)
        mask = (inputs > 0).long()
        started = time.perf_counter()
        self._optimizer.zero_grad(set_to_none=True)
        # Without a cache of keys and values, which only generation reads: faster, and smaller.
        output = self._model(input_ids=inputs, attention_mask=mask, labels=labels, use_cache=False)
        output.loss.backward()
        self._optimizer.step()
        loss = output.loss.item()
        seconds = time.perf_counter() - started
        norm = float(self._trained[0].grad.norm())
        return {"seconds": seconds, "loss": loss, "grad_norm": norm}

    def optimizer_seconds(self) -> float:
        """The median time of an update alone, with the gradients of the last step."""
        return _median_seconds(self._optimizer.step)

    def batches(self, group_by_length: bool) -> list[Batch]:
        """Batches grouped as the Trainer groups them, each padded to its longest row.

        It sorts 50 batches together; these are taken evenly from the longest to the shortest.
        """
        assert group_by_length, "without it their rows are ours"
        rows, size = load_rows(self._job), self._job["batch_size"]
        sampler = importlib.import_module("transformers.trainer_pt_utils")
        generator = self._torch.Generator().manual_seed(0)
        lengths = [len(inputs) for inputs, _ in rows]
        order = sampler.get_length_grouped_indices(lengths, size, generator=generator)
        together = max(min(len(rows) // (4 * size), 50), 1)
        places = [int((i + 0.5) * together / NATURAL_BATCHES) for i in range(NATURAL_BATCHES)]
        return [collate([rows[i] for i in order[n * size : (n + 1) * size]]) for n in places]

    def facts(self) -> dict:
        return {"optimizer": "Adafactor of transformers", "attention": self._attention}


def collate(rows: Rows) -> Batch:
    """Rows padded to the longest of them, as the collators of transformers do."""

    def pad(part: list[list[int]]) -> np.ndarray:
        padded = np.zeros((len(part), max(map(len, part))), np.int32)
        for number, ids in enumerate(part):
            padded[number, : len(ids)] = ids
        return padded

    return {"inputs": pad([r[0] for r in rows]), "targets": pad([r[1] for r in rows])}


def _median_seconds(run) -> float:
    seconds = []
    for _ in range(OPTIMIZER_STEPS):
        started = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def memory_mib() -> dict[str, float]:
    """What this process holds now, and the most that it ever held."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    peak = peak / 2**20 if sys.platform == "darwin" else peak / 2**10
    statm = Path("/proc/self/statm")
    now = int(statm.read_text().split()[1]) * resource.getpagesize() / 2**20
    return {"now": round(now), "peak": round(peak)}


# ---- processes


def serve(role: str, job: dict, connection) -> None:
    """A child: prepares and ends, or makes a side and calls its methods until told to end."""
    os.dup2(2, 1)  # what a library prints must not meet --json
    os.environ.update(JAX_PLATFORMS="cpu", HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
    try:
        if role == "prepare":
            connection.send(("ok", prepare(job)))
            return
        side = Ours(job) if role == "spt_jax" else Peft(job)
        connection.send(("ok", {**side.facts(), "memory": memory_mib()}))
        while (message := connection.recv()) is not None:
            name, args = message
            call = memory_mib if name == "memory" else getattr(side, name)
            connection.send(("ok", call(*args)))
    except (EOFError, KeyboardInterrupt):
        return
    except Exception as error:
        connection.send(("error", f"{type(error).__name__}: {error}"))
        raise


class Child:
    """The parent's end of a child."""

    def __init__(self, role: str, job: dict):
        context = multiprocessing.get_context("spawn")
        self._role = role
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(role, job, theirs), daemon=True)
        self._process.start()
        theirs.close()

    def answer(self) -> Any:
        try:
            kind, value = self._connection.recv()
        except EOFError:
            kind, value = "error", "its process ended, which happens where memory is short"
        if kind == "error":
            raise SideError(f"{self._role} failed: {value}")
        return value

    def ask(self, name: str, *args) -> Any:
        self._connection.send((name, args))
        return self.answer()

    def end(self) -> None:
        try:
            self._connection.send(None)
        except OSError:
            pass
        self._process.join()


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


# ---- measurements


def spread(ratios: list[float]) -> dict[str, float]:
    values = {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)}
    return {name: round(value, 3) for name, value in values.items()}


def check_agreement(sides: dict[str, Child], batch: Batch) -> dict:
    """The first step of both sides, on the same weights; raises SideError where they differ."""
    steps = {name: sides[name].ask("step", batch) for name in SIDES}
    agreement = {}
    for key, limit in LIMITS.items():
        ours, theirs = (steps[name][key] for name in SIDES)
        difference = abs(ours - theirs) / abs(theirs) if theirs else math.inf
        agreement[key] = {"spt_jax": ours, "peft": theirs, "relative_difference": difference}
        if not difference <= limit:
            raise SideError(
                f"the sides do not compute the same: {key} {ours:.6g} and {theirs:.6g} of spt_jax "
                f"and PEFT differ by {difference:.1e}, expected at most {limit:.0e}"
            )
    return {**agreement, "first_step_seconds": {n: round(steps[n]["seconds"], 2) for n in SIDES}}


def equal_shapes(sides: dict[str, Child], job: dict, vocab_size: int) -> dict:
    """Pairs of steps on one full batch; memory and the optimizer's share after them."""
    rng = np.random.default_rng(1)
    batch = {
        name: rng.integers(2, vocab_size, (job["batch_size"], job[f"{name}_length"]), np.int32)
        for name in ("inputs", "targets")
    }
    agreement = check_agreement(sides, batch)
    say(f"losses agree to {agreement['loss']['relative_difference']:.0e}; timing equal shapes")
    for _ in range(WARM_UP - 1):
        for name in SIDES:
            sides[name].ask("step", batch)
    seconds: dict[str, list[float]] = {name: [] for name in SIDES}
    for pair in range(job["pairs"]):
        for name in SIDES:
            seconds[name].append(sides[name].ask("step", batch)["seconds"])
        ours, theirs = (seconds[name][-1] for name in SIDES)
        say(f"pair {pair + 1}/{job['pairs']}: {ours:.2f} s, PEFT {theirs:.2f} s")
    memory = {name: sides[name].ask("memory") for name in SIDES}
    shares = {
        name: sides[name].ask("optimizer_seconds") / statistics.median(seconds[name])
        for name in SIDES
    }
    return {
        "agreement": agreement,
        "seconds": seconds,
        "ratio": spread([theirs / ours for ours, theirs in zip(*(seconds[n] for n in SIDES))]),
        "optimizer_share": shares,
        "memory_after": memory,
    }


def natural_lengths(sides: dict[str, Child], job: dict, group_by_length: bool) -> dict:
    """Both sides over batches of real lengths, each padded in its side's way."""
    ours = sides["spt_jax"].ask("batches", group_by_length)
    if group_by_length:
        theirs = sides["peft"].ask("batches", True)
    else:
        theirs = [
            collate([(x[x > 0].tolist(), y[y > 0].tolist()) for x, y in zip(*batch.values())])
            for batch in ours
        ]
    batches = {"spt_jax": ours, "peft": theirs}
    widths = {n: sorted({b["inputs"].shape[1] for b in batches[n]}) for n in SIDES}
    for width in widths["spt_jax"]:  # compiles
        first = next(b for b in ours if b["inputs"].shape[1] == width)
        sides["spt_jax"].ask("step", first)
    sides["peft"].ask("step", max(theirs, key=lambda b: b["inputs"].size))
    passes, total = max(job["pairs"] // 3, 1), {name: [] for name in SIDES}
    for number in range(passes):
        seconds = dict.fromkeys(SIDES, 0.0)
        for pair in range(NATURAL_BATCHES):
            for name in SIDES:
                seconds[name] += sides[name].ask("step", batches[name][pair])["seconds"]
        for name in SIDES:
            total[name].append(seconds[name])
        say(
            f"natural lengths, group_by_length {'on' if group_by_length else 'off'}, pass "
            f"{number + 1}/{passes}: {seconds['spt_jax']:.1f} s, PEFT {seconds['peft']:.1f} s"
        )
    rows = NATURAL_BATCHES * job["batch_size"]
    return {
        "seconds": total,
        "ratio": spread([theirs / ours for ours, theirs in zip(*(total[n] for n in SIDES))]),
        "examples_per_second": {n: rows / statistics.median(total[n]) for n in SIDES},
        "mean_width": {
            n: round(float(np.mean([b["inputs"].shape[1] for b in batches[n]])), 1) for n in SIDES
        },
        "widths": widths,
    }


def describe_machine(cores: int) -> dict:
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        names = [x.split(":", 1)[1].strip() for x in info.read_text().split("\n") if "model na" in x]
        model = names[0] if names else model
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "cpu": model,
        "cores": cores,
        "memory_gib": round(memory, 1),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "date": datetime.date.today().isoformat(),
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        "environment": {name: os.environ[name] for name in TUNING if name in os.environ},
    }


def measure(job: dict) -> dict:
    """The whole benchmark as one JSON object."""
    with tempfile.TemporaryDirectory() as folder:
        job = {**job, "folder": folder}
        say("making the weights and reading the rows")
        prepared = Child("prepare", job).answer()
        say("loading both sides")
        sides = {name: Child(name, job) for name in SIDES}
        try:
            facts = {name: sides[name].answer() for name in SIDES}
            equal = equal_shapes(sides, job, prepared["vocab_size"])
            natural = {
                name: natural_lengths(sides, job, name == "grouped") for name in ("plain", "grouped")
            }
        finally:
            for side in sides.values():
                side.end()
    after = equal.pop("memory_after")
    settings = ("shape", "batch_size", "length", "inputs_length", "targets_length", "pairs")
    return {
        "machine": describe_machine(job["cores"]),
        "setup": {
            **{name: job[name] for name in settings},
            "parameters": prepared["parameters"],
            "dtype": "float32",
            "dropout_rate": 0.0,
            "optimizer": {name: facts[name]["optimizer"] for name in SIDES},
            "peft_attention": facts["peft"]["attention"],
            "command": "python scripts/" + " ".join([Path(__file__).name, *job["argv"]]),
        },
        "equal_shapes": equal,
        "natural": {"rows": prepared["rows"], **natural},
        "memory_mib": {
            name: {"loaded": facts[name]["memory"]["now"], "peak": after[name]["peak"]}
            for name in SIDES
        },
    }
