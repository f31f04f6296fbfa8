"""Print the compiler's own counts of a training step with all layers unrolled, on one TPU v5e.

    python benchmarks/count_step.py

The default is T5 1.1 base, 32 rows, inputs of 512, a prompt of 100, targets of 8, bfloat16 and no
dropout. XLA counts the body of a loop once, so layers are unrolled. The loop over micro-batches
(`--accumulate`) remains, and its traffic is estimated. Compiling takes minutes.
"""

import argparse
import json
import sys
from typing import get_args

from spt_jax.config.plan import PlanConfig
from spt_jax.planning.plan import plan
from spt_jax.t5 import Remat, stack


def main(argv: list[str]) -> int:
    """Run the script and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--model", default="t5-v1_1-base", help="a published T5")
    parser.add_argument("--topology", default="v5e:1x1", help="a TPU slice")
    parser.add_argument("--accumulate", type=int, default=1, help="micro-batches of the step")
    parser.add_argument("--remat", default="none", choices=get_args(Remat), help="as in training")
    args = parser.parse_args(argv)
    stack.UNROLLED = sys.maxsize
    config = PlanConfig(
        model=args.model,
        topology=args.topology,
        targets_length=8,
        dropout_rate=0.0,
        program="train",
        remat=args.remat,
        accumulate=args.accumulate,
    )
    found = plan(config, suggest=False)
    gib = {name: found[f"{name}_bytes_per_device"] / 2**30 for name in ("weights", "activations")}
    print(
        json.dumps(
            {
                "gflop": found["flops"] / 1e9,
                "gigabytes_accessed": found["bytes_accessed"] / 1e9,
                "temporaries_gib": gib["activations"],
                "weights_gib": gib["weights"],
                "compile_seconds": found["compile_seconds"],
            }
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
