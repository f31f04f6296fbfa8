"""Make the table of docs/tpu.md: every T5 1.1 on seven TPU slices, compiled by the TPU compiler.

    python benchmarks/plan_table.py plans.jsonl

The script compiles the training step of each cell that the file lacks, adds a line for each, and
prints the table of all lines. A cell takes a minute or two on two cores. After an interruption the
same command continues. `--only` takes a part of a cell's name, such as `t5-v1_1-xxl v5e:2x4`.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from spt_jax.config.plan import PlanConfig
from spt_jax.planning.plan import plan

MODELS = ("small", "base", "large", "xl", "xxl")
TOPOLOGIES = ("v5e:1x1", "v5e:2x4", "v5e:4x4", "v4:2x2x4", "v6e:1x1", "v6e:4x4", "v3:4x4")
TARGETS = 8
GIB = 2**30


def read(path: Path) -> dict[str, dict[str, Any]]:
    """Return the plans in a file by `model topology`."""
    lines = path.read_text("utf-8").splitlines() if path.exists() else []
    return {f"{row['model']} {row['topology']}": row for row in map(json.loads, lines)}


def to_markdown(plans: dict[str, dict[str, Any]]) -> str:
    """Format the table, one line for each plan."""
    lines = [
        "| model | slice | mesh | peak / limit, GiB a device | fits | GFLOP a device "
        "| GB moved a device | collectives a device | roofline, ms |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for model in MODELS:
        for topology in TOPOLOGIES:
            if (row := plans.get(f"t5-v1_1-{model} {topology}")) is not None:
                lines.append(_line(model, row))
    return "\n".join(lines)


def _line(model: str, row: dict[str, Any]) -> str:
    peak, limit = (row[f"{name}_bytes_per_device"] / GIB for name in ("peak", "limit"))
    mesh = ", ".join(f"{axis} {size}" for axis, size in row["mesh"].items() if size > 1)
    cells = [model, row["topology"], mesh or "one device", f"{peak:.2f} / {limit:.2f}"]
    if row["fits"]:
        collectives = ", ".join(
            f"{found['count']} {kind} {_amount(found['bytes'])}"
            for kind, found in row["collectives"].items()
        )
        about = "~" if row["bytes_estimated"] else ""
        cells += ["yes", f"{row['flops'] / 1e9:,.0f}", f"{about}{row['bytes_accessed'] / 1e9:,.1f}"]
        cells += [collectives or "none", f"{1000 * row['roofline_seconds']:,.0f}"]
    else:
        cells += [f"no, by {peak - limit:.2f} GiB", "", "", "", ""]
    return f"| {' | '.join(cells)} |"


def _amount(size: float) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e8 else f"{size / 1e6:.2f} MB"


def main(argv: list[str]) -> int:
    """Run the script and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("file", type=Path, help="JSON lines, one for each cell")
    parser.add_argument("--only", default="", help="cells whose `model topology` has this in it")
    parser.add_argument("--markdown", action="store_true", help="compile nothing, print the table")
    args = parser.parse_args(argv)
    plans = read(args.file)
    names = [f"t5-v1_1-{model} {topology}" for model in MODELS for topology in TOPOLOGIES]
    for name in names if not args.markdown else ():
        if name in plans or args.only not in name:
            continue
        model, topology = name.split()
        config = PlanConfig(model=model, topology=topology, targets_length=TARGETS, program="train")
        plans[name] = plan(config, suggest=False)
        with args.file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(plans[name]) + "\n")
        print(f"{name}: {plans[name]['compile_seconds']:.0f} s", file=sys.stderr)
    print(to_markdown(plans))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
