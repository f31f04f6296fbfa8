"""Train a soft prompt: `python scripts/train.py --config configs/quickstart.yaml`."""

import sys

from spt_jax.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
