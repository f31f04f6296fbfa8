"""Score a run: `python scripts/evaluate.py runs/quickstart --split test`."""

import sys

from spt_jax.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["evaluate", *sys.argv[1:]]))
