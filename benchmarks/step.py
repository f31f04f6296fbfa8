"""Compare a prompt tuning step of spt_jax with PEFT in torch, on one CPU in one run.

    python benchmarks/step.py --markdown

Each side is a process with the same random weights and the same prompt, and the two take turns. The
one that waits uses no core and begins its turn with a step that is not timed. Loss and gradient
must agree before anything is timed. This process imports neither jax nor torch, because the peak
memory of a child starts at that of its parent.
"""

import argparse
import datetime
import importlib.metadata
import math
import multiprocessing
import os
import platform
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from command import Options, SideError, run, say
from step_sides import NATURAL_BATCHES, Batch, collate, serve

PACKAGES = ("jax", "jaxlib", "flax", "optax", "torch", "transformers", "peft", "numpy")
TUNING = ("XLA_FLAGS", "GLIBC_TUNABLES", "LD_PRELOAD", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
SIDES = ("spt_jax", "peft")
LIMITS = {"loss": 1e-4, "grad_norm": 1e-3}
"""Relative; float32 sums in another order differ by less."""
TURN = 4
"""Steps of natural lengths in one turn of a side."""


class Child:
    """The parent's view of a child process."""

    def __init__(self, role: str, job: dict, module: str = "step_sides"):
        context = multiprocessing.get_context("spawn")
        self._role = role
        self._connection, theirs = context.Pipe()
        args = role, job, theirs, module
        self._process = context.Process(target=serve, args=args, daemon=True)
        self._process.start()
        theirs.close()

    def answer(self) -> Any:
        """Return the value of the pending call; raise SideError if it failed."""
        try:
            kind, value = self._connection.recv()
        except EOFError:
            self._process.join()
            kind, value = "error", f"its process ended with code {self._process.exitcode}"
        if kind == "error":
            raise SideError(f"the child '{self._role}' failed: {value}")
        return value

    def ask(self, name: str, *args) -> Any:
        """Call a method of the side and return its value."""
        self._connection.send((name, args))
        return self.answer()

    def end(self) -> None:
        """End the process."""
        try:
            self._connection.send(None)
        except OSError:  # it has ended
            pass
        self._process.join()


Sides = dict[str, Child]


def spread(above: list[float], below: list[float]) -> dict[str, float]:
    """Return the median, least and largest of `above` divided by `below`, pair by pair."""
    ratios = [x / y for x, y in zip(above, below, strict=True)]
    return {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)}


def check_agreement(sides: Sides, batch: Batch) -> dict:
    """Compare the first step of both sides; raise SideError if they differ."""
    steps = {name: sides[name].ask("step", batch) for name in SIDES}
    agreement: dict[str, Any] = {
        "first_step_seconds": {name: steps[name]["seconds"] for name in SIDES}
    }
    for key, limit in LIMITS.items():
        ours, theirs = (steps[name][key] for name in SIDES)
        difference = abs(ours - theirs) / abs(theirs) if theirs else math.inf
        agreement[key] = {"spt_jax": ours, "peft": theirs, "relative_difference": difference}
        if not difference <= limit:
            raise SideError(
                f"the sides do not compute the same: {key} is {ours:.6g} in spt_jax and "
                f"{theirs:.6g} in PEFT, a relative difference of {difference:.1e}; "
                f"expected at most {limit:.0e}"
            )
    return agreement


def turn(side: Child, batches: list[Batch]) -> float:
    """Return the seconds of successive steps, after one that is not timed.

    In training, a step follows a step. Ours is slower after a wait (docs/benchmarks.md).
    """
    side.ask("step", batches[0])
    return sum(side.ask("step", batch)["seconds"] for batch in batches)


def equal_shapes(sides: Sides, job: dict, vocab_size: int) -> dict:
    """Time pairs of steps on one full batch; then measure memory and the optimizer alone."""
    rng = np.random.default_rng(1)
    batch = {
        name: rng.integers(2, vocab_size, (job["batch_size"], job[f"{name}_length"]), np.int32)
        for name in ("inputs", "targets")
    }
    agreement = check_agreement(sides, batch)
    say(f"the losses agree to {agreement['loss']['relative_difference']:.0e}")
    positions = job["batch_size"] * (job["length"] + job["inputs_length"])
    for name in SIDES:  # a second step without a clock, the first one compiled
        sides[name].ask("step", batch)
        sides[name].ask("product_seconds", positions)
    seconds: dict[str, list[float]] = {name: [] for name in SIDES}
    products: dict[str, list[float]] = {name: [] for name in SIDES}
    for pair in range(1, job["pairs"] + 1):
        for name in SIDES:
            seconds[name].append(turn(sides[name], [batch]))
            products[name].append(sides[name].ask("product_seconds", positions))
        ours, theirs = (seconds[name][-1] for name in SIDES)
        say(f"equal shapes {pair}/{job['pairs']}: {ours:.3f} s, PEFT {theirs:.3f} s")
    memory = {name: sides[name].ask("memory") for name in SIDES}
    return {
        "agreement": agreement,
        "seconds": seconds,
        "ratio": spread(seconds["peft"], seconds["spt_jax"]),
        "product_seconds": products,
        "product_ratio": spread(products["peft"], products["spt_jax"]),
        "peak_mib": {name: memory[name]["peak"] for name in SIDES},
        "optimizer_share": {
            name: sides[name].ask("optimizer_seconds") / statistics.median(seconds[name])
            for name in SIDES
        },
    }


def natural_lengths(sides: Sides, job: dict, *, group_by_length: bool) -> dict:
    """Time steps on rows of natural lengths, which each side pads in its own way.

    If `group_by_length` is off, both sides have the same rows in the same batches.
    """
    batches = {"spt_jax": sides["spt_jax"].ask("batches", group_by_length)}
    if group_by_length:
        batches["peft"] = sides["peft"].ask("batches")
    else:
        batches["peft"] = [
            collate([(x[x > 0].tolist(), y[y > 0].tolist()) for x, y in zip(*batch.values())])
            for batch in batches["spt_jax"]
        ]
    by_width = {name: {b["inputs"].shape[1]: b for b in batches[name]} for name in SIDES}
    for batch in by_width["spt_jax"].values():  # one compilation each
        sides["spt_jax"].ask("step", batch)
    sides["peft"].ask("step", by_width["peft"][max(by_width["peft"])])
    passes = max(job["pairs"] // 3, 1)
    seconds: dict[str, list[float]] = {name: [0.0] * passes for name in SIDES}
    for number in range(passes):
        for start in range(0, NATURAL_BATCHES, TURN):
            for name in SIDES:
                seconds[name][number] += turn(sides[name], batches[name][start : start + TURN])
        ours, theirs = (seconds[name][number] for name in SIDES)
        say(
            f"natural lengths, group_by_length {'on' if group_by_length else 'off'} "
            f"{number + 1}/{passes}: {ours:.2f} s for {NATURAL_BATCHES} steps, PEFT {theirs:.2f} s"
        )
    examples = NATURAL_BATCHES * job["batch_size"]
    widths = {name: [b["inputs"].shape[1] for b in batches[name]] for name in SIDES}
    return {
        "seconds": seconds,
        "ratio": spread(seconds["peft"], seconds["spt_jax"]),
        "examples_per_second": {n: examples / statistics.median(seconds[n]) for n in SIDES},
        "mean_padded_length": {name: statistics.fmean(widths[name]) for name in SIDES},
        "shapes": {name: len(by_width[name]) for name in SIDES},
    }


def describe_machine(cores: int) -> dict:
    """Describe what the figures depend on."""
    cpu, info = platform.processor() or platform.machine(), Path("/proc/cpuinfo")
    if info.is_file():
        lines = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        cpu = lines[0].split(":", 1)[1].strip() if lines else cpu
    return {
        "cpu": cpu,
        "cores": cores,
        "memory_gib": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30,
        "system": f"{platform.system()} {platform.release()}",
        "date": datetime.date.today().isoformat(),
        "versions": {
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in PACKAGES},
        },
        "environment": {name: os.environ[name] for name in TUNING if name in os.environ},
    }


def measure(job: dict, command: str) -> dict:
    """Run the whole benchmark and return what `--json` prints."""
    sides: Sides = {}
    with tempfile.TemporaryDirectory() as folder:
        job = {**job, "folder": folder}
        say("making the weights and reading the rows")
        prepared = Child("prepare", job).answer()
        say("loading both sides")
        try:
            for name in SIDES:
                sides[name] = Child(name, job)
            facts = {name: sides[name].answer() for name in SIDES}
            equal = equal_shapes(sides, job, prepared["vocab_size"])
            natural = {
                name: natural_lengths(sides, job, group_by_length=name == "grouped")
                for name in ("plain", "grouped")
            }
        finally:
            for side in sides.values():
                side.end()
    options = ("shape", "batch_size", "length", "inputs_length", "targets_length", "pairs")
    return {
        "command": command,
        "machine": describe_machine(job["cores"]),
        "setup": {
            **{name: job[name] for name in options},
            "parameters": prepared["parameters"],
            "dtype": "float32",
            "dropout_rate": 0.0,
            "optimizer": {name: facts[name]["optimizer"] for name in SIDES},
            "peft_attention": facts["peft"]["attention"],
        },
        "equal_shapes": equal,
        "natural_lengths": {"rows": prepared["rows"], **natural},
        "memory_mib": {
            name: {"loaded": facts[name]["memory"]["now"], "peak": equal["peak_mib"][name]}
            for name in SIDES
        },
    }


def to_markdown(result: dict) -> str:
    """Format the section of docs/benchmarks.md."""
    machine, setup = result["machine"], result["setup"]
    equal, natural = result["equal_shapes"], result["natural_lengths"]
    rows, memory = natural["rows"], result["memory_mib"]

    def line(title: str, values: dict, form: str, ratio: dict | None = None) -> str:
        cells = [form.format(values[name]) for name in SIDES]
        shown = ""
        if ratio:
            shown = f"**{ratio['median']:.2f}** ({ratio['min']:.2f} to {ratio['max']:.2f})"
        return f"| {title} | {' | '.join(cells)} | {shown} |"

    def natural_line(title: str, name: str) -> list[str]:
        part = natural[name]
        return [
            line(f"{title}, examples/s", part["examples_per_second"], "{:.1f}", part["ratio"]),
            line(f"{title}, mean padded length", part["mean_padded_length"], "{:.1f}"),
            line(f"{title}, different shapes", part["shapes"], "{}"),
        ]

    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    tuning = " ".join(f"{name}={value}" for name, value in machine["environment"].items())
    agreement = equal["agreement"]
    return "\n".join(
        [
            f"## {machine['cpu']}, {machine['cores']} cores, {machine['date']}",
            "",
            f"```\n{tuning + ' ' if tuning else ''}{result['command']}\n```",
            "",
            f"{machine['memory_gib']:.0f} GiB of memory, {machine['system']}; {versions}.",
            "",
            f"T5 1.1 of shape `{setup['shape']}` with {setup['parameters']:,} random parameters, "
            f"batch {setup['batch_size']}, prompt length {setup['length']}, {setup['dtype']}, "
            f"dropout {setup['dropout_rate']:g}. Ours: {setup['optimizer']['spt_jax']}. PEFT: "
            f"{setup['optimizer']['peft']}, attention `{setup['peft_attention']}`. On the first "
            f"step the losses ({agreement['loss']['spt_jax']:.4f}) agree to "
            f"{agreement['loss']['relative_difference']:.0e}, the norms of the gradients to "
            f"{agreement['grad_norm']['relative_difference']:.0e}.",
            "",
            f"Natural lengths: {rows['origin']}; {rows['rows']:,} rows, mean "
            f"{rows['mean_length']} tokens, median {rows['median_length']}, 95% up to "
            f"{rows['p95_length']}, longest {rows['max_length']}.",
            "",
            "| | spt_jax | PEFT | ratio, PEFT / spt_jax |",
            "|---|---|---|---|",
            line(
                f"inputs {setup['inputs_length']}, targets {setup['targets_length']}: s/step",
                {name: statistics.median(equal["seconds"][name]) for name in SIDES},
                "{:.3f}",
                equal["ratio"],
            ),
            line(
                "the products of one encoder layer alone, ms",
                {n: 1e3 * statistics.median(equal["product_seconds"][n]) for n in SIDES},
                "{:.0f}",
                equal["product_ratio"],
            ),
            *natural_line("natural lengths", "plain"),
            *natural_line("natural lengths, group_by_length", "grouped"),
            line("first step, with compilation, s", agreement["first_step_seconds"], "{:.1f}"),
            line("update of the prompt, share of a step", equal["optimizer_share"], "{:.2%}"),
            line("memory, model loaded, MiB", {n: memory[n]["loaded"] for n in SIDES}, "{:,}"),
            line("memory, peak, MiB", {n: memory[n]["peak"] for n in SIDES}, "{:,}"),
        ]
    )


def parse_args(argv: list[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = Options(__doc__)
    parser.add_argument(
        "--shape", choices=("small", "tiny"), default="small", help="T5 1.1 small, or a toy"
    )
    number = parser.number
    number("--pairs", 9, "timed steps of each side; a third as many passes over natural lengths")
    number("--batch_size", 32, "rows of a step")
    number("--length", 100, "prompt vectors")
    number("--inputs_length", 128, "tokens that equal shapes have, and natural ones at most")
    number("--targets_length", 4, "target tokens of equal shapes")
    parser.add_form()
    parser.set_defaults(data=os.environ.get("SPT_JAX_DATA"))
    return parser.parse_args(argv)


def main(argv: list[str]) -> int:
    """Run the script and return the exit code."""
    args = parse_args(argv)
    return run("step", "PEFT", ("torch", "peft"), measure, to_markdown, argv, args)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
