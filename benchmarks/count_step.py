"""Print the compiler's own counts of a training step on one TPU v5e.

    python benchmarks/count_step.py
    python benchmarks/count_step.py --attention plain --unrolled

The default is the step that a run takes: T5 1.1 base, 32 rows, inputs of 512, a prompt of 100,
targets of 8, bfloat16 and no dropout. `--unrolled` unrolls all layers, encoder and decoder.
Compiling takes minutes.

`hbm_gigabytes` is the traffic that leaves the chip. The two kinds of cycles add up: the compiler
estimates those of every program but Pallas kernels. A kernel's are the instructions (VLIW bundles)
of one cell of its grid, which the compiler writes to a file, times the number of cells.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import get_args

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from spt_jax.config.devices import AttentionVersion, MeshConfig, Remat
from spt_jax.config.plan import PlanConfig
from spt_jax.planning.plan import plan
from spt_jax.planning.topologies import load_topology
from spt_jax.sharding import make_mesh
from spt_jax.t5 import PRESETS, attention_kernel, thresholds
from spt_jax.t5.attention import padded_length


def main(argv: list[str]) -> int:
    """Run the script and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--model", default="t5-v1_1-base", help="a published T5")
    parser.add_argument("--topology", default="v5e:1x1", help="a TPU slice of one chip")
    parser.add_argument("--accumulate", type=int, default=1, help="micro-batches of the step")
    parser.add_argument("--remat", default="none", choices=get_args(Remat), help="as in training")
    parser.add_argument(
        "--attention", default="auto", choices=get_args(AttentionVersion), help="as in training"
    )
    parser.add_argument("--dropout", type=float, default=0.0, help="rate of the dropout")
    parser.add_argument("--unrolled", action="store_true", help="unroll all layers")
    parser.add_argument("--bundles", metavar="FOLDER", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    config = PlanConfig(
        model=args.model,
        topology=args.topology,
        targets_length=8,
        dropout_rate=args.dropout,
        program="train",
        remat=args.remat,
        accumulate=args.accumulate,
        attention=args.attention,
    )
    if args.bundles:
        compile_kernels(config)
        return 0
    if args.unrolled:
        thresholds.UNROLLED = thresholds.UNROLLED_ENCODER_ON_TPU = sys.maxsize
    found = plan(config, suggest=False)
    gib = {name: found[f"{name}_bytes_per_device"] / 2**30 for name in ("weights", "activations")}
    cells = count_cells(config)
    bundles = count_bundles(argv) if found["kernels"] else {}
    of_kernels = sum(found["kernels"][name] * cells * bundles[name] for name in found["kernels"])
    print(
        json.dumps(
            {
                "gflop": found["flops"] / 1e9,
                "gigabytes_accessed": found["bytes_accessed"] / 1e9,
                "hbm_gigabytes": found["hbm_bytes"] / 1e9,
                "million_cycles": found["cycles"] / 1e6,
                "million_cycles_of_kernels": of_kernels / 1e6,
                "bundles": bundles,
                "temporaries_gib": gib["activations"],
                "weights_gib": gib["weights"],
                "compile_seconds": found["compile_seconds"],
            }
        )
    )
    return 0


def count_cells(config: PlanConfig) -> int:
    """Return the cells of a kernel's grid for one micro-batch: groups of heads times rows."""
    shape = PRESETS[config.model]
    group = attention_kernel.group_size(shape.num_heads, shape.d_kv) or 1
    return -(-shape.num_heads // group) * config.batch_size // config.accumulate


def count_bundles(argv: list[str]) -> dict[str, int]:
    """Return the VLIW bundles of each kernel.

    Another process compiles the kernels, because libtpu reads its options when it is loaded and
    would write files of hundreds of programs for a whole step.
    """
    with tempfile.TemporaryDirectory() as folder:
        options = f"--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true"
        subprocess.run(
            [sys.executable, __file__, *argv, f"--bundles={folder}"],
            env={**os.environ, "LIBTPU_INIT_ARGS": options},
            check=True,
        )
        counts = {}
        for file in Path(folder).glob("*-final_bundles.txt"):
            if kernel := re.search(r"-(t5_attention\w*)\.\d+-\d+-final_bundles", file.name):
                lines = file.read_text().splitlines()
                counts[kernel[1]] = sum(bool(re.match(r"\s*0x[0-9a-f]+ ", line)) for line in lines)
        return counts


def compile_kernels(config: PlanConfig) -> None:
    """Compile both kernels for the rows of a step."""
    mesh = make_mesh(MeshConfig(data=1), load_topology(config.topology)[1][:1])
    shape, dtype = PRESETS[config.model], jnp.dtype(config.dtype)
    heads, width = shape.num_heads, shape.d_kv
    length = padded_length(config.prompt_length + config.inputs_length, config.attention, mesh)

    def abstract(*sizes: int, dtype: jnp.dtype = dtype) -> jax.ShapeDtypeStruct:
        sharding = NamedSharding(mesh, PartitionSpec())
        return jax.ShapeDtypeStruct(sizes, dtype, sharding=sharding)

    def run(q, k, v, bias, mask, grads):
        sizes = {"width": width, "interpret": False}
        result, logsumexp = attention_kernel.forward(q, k, v, bias, mask, **sizes)
        of_operands = attention_kernel.backward(
            q, k, v, bias, mask, logsumexp, grads, of_bias=config.tune == "model", **sizes
        )
        return result, of_operands

    sequence = abstract(config.batch_size, length, heads * width)
    bias = abstract(heads, length, length)
    mask = abstract(config.batch_size, 1, length, dtype=jnp.dtype("float32"))
    jax.jit(run).lower(sequence, sequence, sequence, bias, mask, sequence).compile()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
