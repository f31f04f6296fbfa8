"""Compare K prompts that train in one program with K runs one after another, on this machine.

    python benchmarks/together.py --markdown
    python benchmarks/together.py --tpu          counts of the TPU compiler instead

Each side runs in processes of its own: one process for K prompts together, K processes one after
another for K runs alone. The time of a side is that of its processes from start to end, so that
starting Python, making the weights and compiling are in it. Both sides update prompts of different
lengths on equal batches, and the last loss of every prompt must agree.
"""

import argparse
import datetime
import json
import math
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from command import Options, SideError, run, say

AGREE = 1e-3
"""Greatest relative difference of a loss; float32 sums in another order differ by less."""


def main(argv: list[str]) -> int:
    """Run the script and return the exit code."""
    parser = Options(__doc__)
    parser.number("--prompts", (1, 2, 4, 8, 16), "numbers of prompts K", nargs="+")
    parser.number("--steps", 20, "updates of each prompt")
    parser.number("--rows", 8, "rows of a batch of one prompt")
    parser.number("--inputs", 24, "tokens of an input")
    parser.number("--length", 20, "vectors of the longest prompt")
    parser.add_argument("--shape", default="t5-v1_1-small", help="a published T5")
    parser.add_argument("--tpu", action="store_true", help="compile for one TPU v5e and count")
    parser.add_argument("--side", help=argparse.SUPPRESS)  # of a child process: prompts as 0,1,2
    parser.add_form()
    args = parser.parse_args(argv)
    if args.side is not None:
        print(json.dumps(train(args, [int(number) for number in args.side.split(",")])))
        return 0
    if args.tpu:
        print(count_on_tpu(args))
        return 0
    return run("together", "runs alone", (), measure, to_markdown, argv, args)


def train(args: argparse.Namespace, numbers: list[int]) -> dict[str, Any]:
    """Train the prompts of these numbers in one program, as a child process.

    Returns:
        The last loss of each prompt, the seconds of the later half of the steps, and the peak
        memory in bytes.
    """
    import jax
    import jax.numpy as jnp

    from spt_jax.config.train import LossConfig, OptimizerConfig
    from spt_jax.data.pipeline import stack_batches
    from spt_jax.optim import make_tx
    from spt_jax.step import jit_step, jit_steps
    from spt_jax.t5 import PRESETS, T5
    from spt_jax.train_state import init_state

    shape = PRESETS[args.shape]
    model, optimizer = T5(shape), OptimizerConfig()
    abstract = jax.eval_shape(model.init_params, jax.random.key(0))
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: jnp.asarray(rng.standard_normal(leaf.shape, np.float32) * 0.02), abstract
    )
    tx = make_tx(optimizer, args.steps, "prompt")
    frozen = {"t5": params, "prompt": None}
    states, batches = [], []
    for number in numbers:
        draw = np.random.default_rng(number + 1)
        length = max(1, args.length - number % 4)
        prompt = jnp.asarray(draw.standard_normal((length, shape.d_model), np.float32))
        trained = {"t5": jax.tree.map(lambda _: None, params), "prompt": prompt}
        states.append(init_state(trained, tx, patience=None, keep_best=False))
        size = (args.rows, args.inputs)
        batches.append(
            {
                "inputs": draw.integers(2, shape.vocab_size, size, np.int32),
                "targets": draw.integers(2, shape.vocab_size, (args.rows, 4), np.int32),
            }
        )
    keys = tuple(jax.random.key(number) for number in numbers)
    started, found = time.perf_counter(), []
    for step in range(args.steps):
        if step == args.steps // 2:
            jax.block_until_ready(states)
            started = time.perf_counter()
        if len(numbers) == 1:
            state, metrics = jit_step(model, tx, LossConfig())(
                states[0], frozen, batches[0], keys[0]
            )
            states, found = [state], [metrics]
        else:
            update = jit_steps(model, [(optimizer, args.steps)] * len(numbers), LossConfig())
            rates = (optimizer.learning_rate,) * len(numbers)
            states, found = update(tuple(states), frozen, stack_batches(batches), keys, rates)
    jax.block_until_ready(states)
    return {
        "losses": [float(metrics["loss"]) for metrics in found],
        "seconds": time.perf_counter() - started,
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def measure(job: dict, command: str) -> dict:
    """Time both sides for each K, and check that their losses agree."""
    rows = []
    alone: list[tuple[float, dict]] = []  # seconds and answer of each run by itself, made once
    for count in sorted(job["prompts"]):
        while len(alone) < count:
            say(f"prompt {len(alone)} alone")
            alone.append(_child(job, [len(alone)]))
        if count == 1:
            together = alone[0]
        else:
            say(f"{count} prompts together")
            together = _child(job, list(range(count)))
        expected = [answer["losses"][0] for _, answer in alone[:count]]
        if not np.allclose(together[1]["losses"], expected, rtol=AGREE):
            raise SideError(f"losses {together[1]['losses']} together, but {expected} alone")
        timed = job["steps"] - job["steps"] // 2
        examples = count * job["rows"]
        apart_seconds = sum(seconds for seconds, _ in alone[:count])
        apart_later = sum(answer["seconds"] for _, answer in alone[:count])
        rows.append(
            {
                "prompts": count,
                "whole_ratio": apart_seconds / together[0],
                "steps_ratio": apart_later / together[1]["seconds"],
                "examples_per_second_together": examples * timed / together[1]["seconds"],
                "examples_per_second_alone": examples * timed / apart_later,
                "peak_bytes_together": together[1]["peak_bytes"],
                "peak_bytes_alone": max(answer["peak_bytes"] for _, answer in alone[:count]),
            }
        )
    return {
        "command": command,
        "date": datetime.date.today().isoformat(),
        "machine": f"{_processor()}, {job['cores']} cores",
        "settings": {name: job[name] for name in ("shape", "steps", "rows", "inputs", "length")},
        "spread_alone": _spread([seconds for seconds, _ in alone]),
        "rows": rows,
    }


def _child(job: dict, numbers: list[int]) -> tuple[float, dict]:
    """Run a child process; return its seconds from start to end, and its answer."""
    names = ("steps", "rows", "inputs", "length", "shape")
    options = [f"--{name}={job[name]}" for name in names]
    side = f"--side={','.join(map(str, numbers))}"
    # Without a cache on the disk, so that every process compiles.
    environment = {**os.environ, "JAX_ENABLE_COMPILATION_CACHE": "false"}
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, str(Path(__file__)), *options, side],
        capture_output=True,
        text=True,
        env=environment,
    )
    if done.returncode:
        raise SideError(f"prompts {numbers} failed: {done.stderr.strip()[-500:]}")
    return time.perf_counter() - started, json.loads(done.stdout.splitlines()[-1])


def _spread(seconds: list[float]) -> float:
    """Return the deviation of the runs alone, as a share of their mean."""
    return statistics.stdev(seconds) / statistics.mean(seconds) if len(seconds) > 1 else math.nan


def _processor() -> str:
    """Return the name of the processor."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def to_markdown(result: dict) -> str:
    """Format the result as a section of docs/benchmarks.md."""
    lines = [
        "| prompts | whole time, alone / together | steps, alone / together | "
        "examples a second together | alone | peak memory together, GiB | alone |",
        "|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in result["rows"]:
        memory = (row[f"peak_bytes_{side}"] / 2**30 for side in ("together", "alone"))
        speeds = (row[f"examples_per_second_{side}"] for side in ("together", "alone"))
        lines.append(
            f"| {row['prompts']} | {row['whole_ratio']:.2f} | {row['steps_ratio']:.2f} | "
            + " | ".join([f"{x:.1f}" for x in speeds] + [f"{x:.2f}" for x in memory])
            + " |"
        )
    settings = ", ".join(f"{name} {value}" for name, value in result["settings"].items())
    head = f"{result['date']}, {result['machine']}; {settings}."
    spread = f"The whole times of the runs alone deviate by {100 * result['spread_alone']:.0f}%."
    return "\n".join([f"`{result['command']}`", "", f"{head} {spread}", "", *lines])


def count_on_tpu(args: argparse.Namespace) -> str:
    """Return a table of what one TPU v5e needs for K prompts, by the compiler's own counts."""
    from spt_jax.config.plan import PlanConfig
    from spt_jax.planning.plan import plan

    lines = [
        "| prompts | GFLOP a prompt | GB moved a prompt | roofline, ms a prompt | memory, GiB |",
        "|---:|---:|---:|---:|---:|",
    ]
    for count in sorted(args.prompts):
        found = plan(
            PlanConfig(
                model=args.shape,
                topology="v5e:1x1",
                batch_size=args.rows,
                inputs_length=args.inputs,
                targets_length=4,
                prompt_length=args.length,
                program="train",
                together=count,
            ),
            suggest=False,
        )
        if not found["fits"]:
            lines.append(f"| {count} | does not fit | | | |")
            continue
        lines.append(
            f"| {count} | {found['flops'] / count / 1e9:.1f} | "
            f"{found['bytes_accessed'] / count / 1e9:.2f} | "
            f"{1000 * found['roofline_seconds'] / count:.2f} | "
            f"{found['peak_bytes_per_device'] / 2**30:.2f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
