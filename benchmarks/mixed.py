"""Compare three ways to answer rows of many tasks: spt_jax in mixed batches or by task, and PEFT.

    python benchmarks/mixed.py --markdown

All ways answer the same rows, in random order, with the same weights and prompts. They take turns;
mixed batches of different numbers of tasks do so batch by batch. By task means that all rows are
collected first and each batch has the rows of one task. All ways must write the same answers before
they are timed. See `docs/benchmarks.md` for more.
"""

import argparse
import statistics
import sys
import tempfile

import numpy as np
from command import Options, SideError, run, say
from decode import machine_lines
from step import Child, Sides, describe_machine, spread

SIDES = ("spt_jax", "peft")
WAYS = {"mixed": "spt_jax", "one_task": "spt_jax", "switching": "peft"}
MODULE = "mixed_sides"
LEAST_SAME = 0.9
"""Of the rows; a tie that rounding breaks changes all tokens that follow."""


def check_agreement(ids: dict[str, np.ndarray], tasks: int) -> dict[str, float]:
    """Return the share of rows that each way answers like `mixed`; raise SideError if low."""
    same = {
        way: float(np.mean(np.all(ids[way] == ids["mixed"], axis=1)))
        for way in WAYS
        if way != "mixed"
    }
    for way, share in same.items():
        if not share >= LEAST_SAME:
            raise SideError(
                f"the ways do not write the same with {tasks} tasks: '{way}' and 'mixed' are equal "
                f"in {share:.0%} of the rows; expected at least {LEAST_SAME:.0%}"
            )
    return same


def answer(sides: Sides, inputs: np.ndarray, arrivals: dict[int, np.ndarray]) -> dict[int, dict]:
    """Return the `seconds` and `ids` of every way for every number of tasks."""
    mixed = sides["spt_jax"].ask("mixed", inputs, arrivals)
    return {
        tasks: {
            way: mixed[tasks] if way == "mixed" else sides[side].ask(way, inputs, task_ids, tasks)
            for way, side in WAYS.items()
        }
        for tasks, task_ids in arrivals.items()
    }


def measure_ways(sides: Sides, job: dict, vocab_size: int) -> list[dict]:
    """Measure the seconds of every way for every number of tasks, in rounds."""
    rng = np.random.default_rng(1)
    inputs = rng.integers(2, vocab_size, (job["rows"], job["inputs_length"]), np.int32)
    inputs[:, -1] = 1
    arrivals = {tasks: rng.integers(0, tasks, job["rows"], np.int32) for tasks in job["tasks"]}

    say("compiling, and comparing what is written")
    sides["spt_jax"].ask("compile_sizes", inputs, max(job["tasks"]))
    results: dict[int, dict] = {}
    for tasks, found in answer(sides, inputs, arrivals).items():
        same = check_agreement({way: found[way]["ids"] for way in WAYS}, tasks)
        results[tasks] = {"tasks": tasks, "same": same, "seconds": {way: [] for way in WAYS}}
    for number in range(1, job["rounds"] + 1):
        for tasks, found in answer(sides, inputs, arrivals).items():
            for way in WAYS:
                results[tasks]["seconds"][way].append(found[way]["seconds"])
            shown = ", ".join(f"{way} {found[way]['seconds']:.1f} s" for way in WAYS)
            say(f"round {number}/{job['rounds']}, {tasks} tasks: {shown}")
    fewest = results[job["tasks"][0]]["seconds"]["mixed"]
    for result in results.values():
        seconds = result["seconds"]
        result["examples_per_second"] = {
            way: job["rows"] / statistics.median(seconds[way]) for way in WAYS
        }
        result["ratio"] = {
            way: spread(seconds[way], seconds["mixed"]) for way in WAYS if way != "mixed"
        }
        result["of_fewest"] = spread(fewest, seconds["mixed"])
    return list(results.values())


def measure(job: dict, command: str) -> dict:
    """Run the whole benchmark and return what `--json` prints."""
    sides: Sides = {}
    with tempfile.TemporaryDirectory() as folder:
        job = {**job, "folder": folder}
        say("making the weights and loading both sides")
        prepared = Child("prepare", job, MODULE).answer()
        try:
            for name in SIDES:
                sides[name] = Child(name, job, MODULE)
            facts = {name: sides[name].answer() for name in SIDES}
            tasks = measure_ways(sides, job, prepared["vocab_size"])
        finally:
            for side in sides.values():
                side.end()
    options = ("shape", "rows", "batch_size", "length", "inputs_length", "targets_length", "rounds")
    return {
        "command": command,
        "machine": describe_machine(job["cores"]),
        "setup": {
            **{name: job[name] for name in options},
            "parameters": prepared["parameters"],
            "prompt_bytes": facts["spt_jax"]["prompt_bytes"],
            "peft_threads": facts["peft"]["threads"],
            "peft_attention": facts["peft"]["attention"],
        },
        "tasks": tasks,
    }


def to_markdown(result: dict) -> str:
    """Format the section of docs/benchmarks.md."""
    setup = result["setup"]

    def shown(ratio: dict) -> str:
        return f"**{ratio['median']:.2f}** ({ratio['min']:.2f} to {ratio['max']:.2f})"

    def line(part: dict) -> str:
        speed, ratio = part["examples_per_second"], part["ratio"]
        cells = [
            str(part["tasks"]),
            *(f"{speed[way]:.1f}" for way in WAYS),
            shown(part["of_fewest"]),
            shown(ratio["one_task"]),
            shown(ratio["switching"]),
            f"{min(part['same'].values()):.0%}",
        ]
        return f"| {' | '.join(cells)} |"

    fewest = result["tasks"][0]["tasks"]
    return "\n".join(
        [
            *machine_lines(result),
            f"T5 1.1 of shape `{setup['shape']}` with {setup['parameters']:,} random parameters in "
            f"float32; {setup['rows']} rows in random order, batches of up to "
            f"{setup['batch_size']}, prompts of {setup['length']} vectors, inputs of "
            f"{setup['inputs_length']} tokens, {setup['targets_length']} new tokens, greedy. torch "
            f"has {setup['peft_threads']} threads, attention `{setup['peft_attention']}`. A prompt "
            f"more is {setup['prompt_bytes']:,} bytes.",
            "",
            "| tasks | mixed, examples/s | by task, examples/s | PEFT, examples/s "
            f"| mixed: of its speed with {fewest} | mixed / by task | mixed / PEFT "
            "| same answers, at least |",
            "|---|---|---|---|---|---|---|---|",
            *map(line, result["tasks"]),
        ]
    )


def parse_args(argv: list[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = Options(__doc__)
    parser.add_argument(
        "--shape", choices=("small", "base", "tiny"), default="small", help="of T5 1.1, or a toy"
    )
    parser.number("--tasks", (1, 4, 16, 64), "numbers of tasks, ascending", nargs="+")
    parser.number("--rows", 128, "rows that arrive; a multiple of the batch size")
    parser.number("--batch_size", 32, "most rows at a time, a power of 2")
    parser.number("--length", 100, "prompt vectors")
    parser.number("--inputs_length", 32, "tokens of an input")
    parser.number("--targets_length", 8, "tokens of an answer")
    parser.number("--rounds", 3, "timed runs of each way")
    parser.add_form()
    args = parser.parse_args(argv)
    if args.batch_size & (args.batch_size - 1):
        parser.error(f"--batch_size is {args.batch_size}, expected a power of 2")
    if args.rows % args.batch_size:
        parser.error(
            f"--rows is {args.rows}, expected a multiple of --batch_size ({args.batch_size})"
        )
    return args


def main(argv: list[str]) -> int:
    """Run the script and return the exit code."""
    args = parse_args(argv)
    return run("mixed", "PEFT", ("torch", "peft"), measure, to_markdown, argv, args)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
