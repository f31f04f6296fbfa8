"""Measure what rows that enter and leave between two tokens could save the server.

    python benchmarks/static_batches.py

`spt-jax serve` answers a batch when its last row has ended; rows that ended before are idle until
then. The script times whole batches with answers of several lengths and fits

    seconds of a batch = a + b * steps of the decoder

If a new row took each free place at once, as many rows would need a + b * (mean steps of a row) in
place of a + b * (steps of the longest row). This is a bound. Such a server was not measured: it
would also encode the new rows in smaller batches, and write their keys into a running cache.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from command import Options, run, say
from decode import machine_lines
from serve import draw_rows, write_model, write_prompts
from step import describe_machine


def time_batches(job: dict, folder: Path) -> list[tuple[int, float]]:
    """Return steps and seconds of each batch."""
    from spt_jax.config.train import DataConfig
    from spt_jax.data.example import Example
    from spt_jax.data.pipeline import encode_inputs
    from spt_jax.models.backbone import load_backbone
    from spt_jax.prediction.predictor import run_batches, write_batch
    from spt_jax.prompts.bank import load_bank

    if job["shape"]:
        say("making the weights")
        job = {**job, "model": write_model(job["shape"], folder / "model")}
    backbone = load_backbone(job["model"])
    bank = load_bank(backbone, write_prompts(job, folder))
    size, rows = job["batch_size"], draw_rows(job, job["batch_size"] * job["batches"])
    texts = encode_inputs([Example(text, "") for _, text in rows], backbone.tokenizer)
    inputs = [np.array([*ids, backbone.tokenizer.eos_id], np.int32) for ids in texts]
    of_rows = {
        "task_ids": bank.task_ids([name for name, _ in rows]),
        "temperatures": np.zeros(len(rows), np.float32),
        "top_ps": np.ones(len(rows), np.float32),
        "seeds": np.zeros(len(rows), np.uint32),
        "row_numbers": np.arange(len(rows), dtype=np.int32),
    }
    data = DataConfig(inputs_length=job["inputs_length"], buckets=())  # one width, one program
    fixed = backbone.model, {"t5": backbone.params}, bank.arrays
    found = []
    for length in job["lengths"]:
        say(f"answers of up to {length} tokens")
        first = {name: values[:size] for name, values in of_rows.items()}
        list(run_batches(write_batch, *fixed, inputs[:size], first, data, size, length=length))
        began = time.perf_counter()
        for _, ids, _ in run_batches(
            write_batch, *fixed, inputs, of_rows, data, size, length=length
        ):
            steps = max(1, int((ids != 0).sum(axis=1).max()))
            found.append((steps, time.perf_counter() - began))
            began = time.perf_counter()
    return found


def fit_line(steps: Sequence[int], seconds: Sequence[float]) -> tuple[float, float]:
    """Return a and b of `seconds = a + b * steps`, by least squares."""
    b, a = np.polyfit(steps, seconds, 1)
    return float(a), float(b)


def bound(a: float, b: float, lengths: np.ndarray) -> float:
    """Return the most that rows per second could grow, as a factor.

    Args:
        a: Seconds of a batch without any step.
        b: Seconds of a step.
        lengths: Tokens of each answer, [batches, rows].
    """
    static = a + b * lengths.max(axis=1)
    return float(static.sum() / (a + b * lengths.mean(axis=1)).sum())


def measure(job: dict, command: str) -> dict:
    """Run the whole benchmark and return what `--json` prints."""
    with tempfile.TemporaryDirectory() as folder:
        found = time_batches(job, Path(folder))
    a, b = fit_line(*zip(*found))
    draw, most = np.random.default_rng(0), max(job["lengths"])
    size = (1000, job["batch_size"])
    kinds = {
        "label words, 2 to 4 tokens": draw.integers(2, 5, size),
        f"texts, 1 to {most} tokens": draw.integers(1, most + 1, size),
        f"texts, one in ten of {most} tokens, the others of up to {most // 4}": np.where(
            draw.random(size) < 0.1, most, draw.integers(1, most // 4 + 1, size)
        ),
    }
    return {
        "command": command,
        "machine": describe_machine(job["cores"]),
        "setup": job,
        "batches": found,
        "seconds_without_steps": a,
        "seconds_of_a_step": b,
        "bounds": {kind: bound(a, b, lengths) for kind, lengths in kinds.items()},
    }


def to_markdown(result: dict) -> str:
    """Format the table of docs/serving.md."""
    job, a, b = result["setup"], result["seconds_without_steps"], result["seconds_of_a_step"]
    return "\n".join(
        [
            *machine_lines(result),
            f"`{job['shape'] or job['model']}`, batches of {job['batch_size']} rows of "
            f"{job['inputs_length']} tokens: {1000 * a:.0f} ms and {1000 * b:.1f} ms a step.",
            "",
            "| answers | most that rows per second could grow |",
            "|---|---|",
            *(f"| {kind} | {factor:.2f} |" for kind, factor in result["bounds"].items()),
        ]
    )


def parse_args(argv: list[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = Options(__doc__)
    parser.add_argument("--model", default="spt-nano", help="as `spt-jax serve` takes it")
    parser.add_argument("--shape", help="a published T5 with random weights, in place of --model")
    parser.number("--words", 30, "most words of a text")
    parser.number("--prompts", 8, "prompts")
    parser.number("--length", 20, "vectors of a prompt")
    parser.number("--inputs_length", 64, "tokens of a text, padding included")
    parser.number("--batch_size", 32, "rows of a batch")
    parser.number("--batches", 12, "batches of each length")
    parser.number("--lengths", (2, 8, 32), "most tokens of an answer", nargs="+")
    parser.add_form()
    return parser.parse_args(argv)


def main(argv: list[str]) -> int:
    """Run the script and return the exit code."""
    return run("static_batches", "", (), measure, to_markdown, argv, parse_args(argv))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
