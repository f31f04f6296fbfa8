"""Compare decoding by spt_jax with `generate` of transformers in torch, on this CPU.

    python benchmarks/decode.py --markdown

Each side is a process with the same random weights, and the two take turns. The one that waits uses
no core. No answer ends early. Both sides must write the same answers before they are timed. See
`docs/benchmarks.md` for more.
"""

import argparse
import statistics
import sys
import tempfile
import time

import numpy as np
from command import Options, SideError, run, say
from step import Child, Sides, describe_machine, spread

SIDES = ("spt_jax", "torch")
MODULE = "decode_sides"
COMPARED = 8  # tokens; a tie that rounding breaks changes all that follow
MIN_PAIRS = 3


def check_agreement(answers: dict[str, np.ndarray], title: str) -> float:
    """Return the share of rows with equal ids; raise SideError if the sides disagree."""
    ours, theirs = (answers[name] for name in SIDES)
    if ours.shape != theirs.shape:
        raise SideError(
            f"the sides do not write the same for {title}: {list(ours.shape)} ids in spt_jax and "
            f"{list(theirs.shape)} in torch; the end marker must be out of reach"
        )
    alike = np.all(ours[:, :COMPARED] == theirs[:, :COMPARED], axis=1)
    if np.mean(alike) < 0.5:
        raise SideError(
            f"the sides do not write the same for {title}: the first {COMPARED} tokens are equal "
            f"in {np.sum(alike)} of {len(alike)} rows; expected at least half"
        )
    return float(np.mean(np.all(ours == theirs, axis=1)))


def time_setting(sides: Sides, inputs: np.ndarray, beams: int, job: dict, title: str) -> dict:
    """Time pairs of runs on one batch: as many as the time allows, and at least three."""
    first = {name: sides[name].ask("generate", inputs, beams) for name in SIDES}
    same = check_agreement({name: first[name]["ids"] for name in SIDES}, title)
    seconds: dict[str, list[float]] = {name: [] for name in SIDES}
    used = []
    started = time.perf_counter()
    least = min(MIN_PAIRS, job["pairs"])
    for pair in range(job["pairs"]):
        if pair >= least and time.perf_counter() - started > job["seconds"]:
            break
        for name in SIDES:
            found = sides[name].ask("generate", inputs, beams)
            seconds[name].append(found["seconds"])
            if "processor_seconds" in found:
                used.append(found["processor_seconds"])
    all_ours, all_theirs = (seconds[name] for name in SIDES)
    ratio = spread(all_theirs, all_ours)
    ours, theirs = statistics.median(all_ours), statistics.median(all_theirs)
    products = sides["spt_jax"].ask("products", *inputs.shape, beams)
    say(f"{title}: {ours:.2f} s, torch {theirs:.2f} s, ratio {ratio['median']:.2f}")
    return {
        "batch_size": len(inputs),
        "beams": beams,
        "first_seconds": {name: first[name]["seconds"] for name in SIDES},
        "seconds": seconds,
        "products_share": products / min(used),
        "ratio": ratio,
        "same_answers": same,
    }


def measure_shape(job: dict) -> dict:
    """Measure every setting of one shape."""
    sides: Sides = {}
    with tempfile.TemporaryDirectory() as folder:
        job = {**job, "folder": folder}
        say(f"{job['shape']}: making the weights and loading both sides")
        prepared = Child("prepare", job, MODULE).answer()
        try:
            for name in SIDES:
                sides[name] = Child(name, job, MODULE)
            facts = {name: sides[name].answer() for name in SIDES}
            settings = []
            for batch_size in job["batch_sizes"]:
                rng = np.random.default_rng(batch_size)
                shape = batch_size, job["inputs_length"]
                inputs = rng.integers(2, prepared["vocab_size"], shape, np.int32)
                inputs[:, -1] = 1
                for beams in job["beams"]:
                    title = f"{job['shape']}, batch {batch_size}, {beams} beams"
                    settings.append(time_setting(sides, inputs, beams, job, title))
        finally:
            for side in sides.values():
                side.end()
    return {"shape": job["shape"], **prepared, "torch": facts["torch"], "settings": settings}


def measure(job: dict, command: str) -> dict:
    """Run the whole benchmark and return what `--json` prints."""
    options = ("inputs_length", "targets_length", "pairs", "seconds")
    return {
        "command": command,
        "machine": describe_machine(job["cores"]),
        "setup": {name: job[name] for name in options},
        "shapes": [measure_shape({**job, "shape": shape}) for shape in job["shapes"]],
    }


def machine_lines(result: dict) -> list[str]:
    """Return the lines of docs/benchmarks.md that say where and how it was measured."""
    machine = result["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    tuning = " ".join(f"{name}={value}" for name, value in machine["environment"].items())
    return [
        f"## {machine['cpu']}, {machine['cores']} cores, {machine['date']}",
        "",
        f"```\n{tuning + ' ' if tuning else ''}{result['command']}\n```",
        "",
        f"{machine['memory_gib']:.0f} GiB of memory, {machine['system']}; {versions}.",
        "",
    ]


def to_markdown(result: dict) -> str:
    """Format the section of docs/benchmarks.md."""
    setup, torch = result["setup"], result["shapes"][0]["torch"]

    def line(shape: dict, setting: dict) -> str:
        ours, theirs = (statistics.median(setting["seconds"][name]) for name in SIDES)
        ratio = setting["ratio"]
        tokens = setting["batch_size"] * setup["targets_length"] / ours
        cells = [
            f"{shape['shape']}, {shape['parameters'] / 1e6:.0f}M",
            str(setting["batch_size"]),
            "greedy" if setting["beams"] == 1 else f"{setting['beams']} beams",
            f"{ours:.2f}",
            f"{theirs:.2f}",
            f"**{ratio['median']:.2f}** ({ratio['min']:.2f} to {ratio['max']:.2f})",
            f"{tokens:.0f}",
            f"{setting['products_share']:.0%}",
            f"{setting['first_seconds']['spt_jax']:.1f}",
            f"{setting['same_answers']:.0%}",
        ]
        return f"| {' | '.join(cells)} |"

    return "\n".join(
        [
            *machine_lines(result),
            f"T5 1.1 with random weights in float32, inputs of {setup['inputs_length']} tokens "
            f"without a prompt, {setup['targets_length']} new tokens. torch has "
            f"{torch['threads']} threads, attention `{torch['attention']}`.",
            "",
            "| shape | batch | | spt_jax, s | torch, s | ratio, torch / spt_jax "
            "| spt_jax, tokens/s | of it products "
            "| first call, with compilation, s | same answers |",
            "|---|---|---|---|---|---|---|---|---|---|",
            *(line(shape, setting) for shape in result["shapes"] for setting in shape["settings"]),
        ]
    )


def parse_args(argv: list[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = Options(__doc__)
    shapes = ("small", "base")
    parser.add_argument(
        "--shapes",
        choices=(*shapes, "tiny"),
        default=shapes,
        nargs="+",
        help=f"of T5 1.1; tiny is a toy (default {' '.join(shapes)})",
    )
    parser.number("--batch_sizes", (1, 32), "rows at a time", nargs="+")
    parser.number("--beams", (1, 4), "1 is greedy decoding", nargs="+")
    parser.number("--inputs_length", 64, "tokens of an input")
    parser.number("--targets_length", 64, "tokens of an answer")
    parser.number("--pairs", 5, "most timed runs of each side in a setting")
    parser.number("--seconds", 60, "after which a setting has no further pair once it has three")
    parser.add_form()
    return parser.parse_args(argv)


def main(argv: list[str]) -> int:
    """Run the script and return the exit code."""
    args, needs = parse_args(argv), ("torch", "transformers")
    return run("decode", "transformers", needs, measure, to_markdown, argv, args)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
