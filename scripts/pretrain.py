"""Pretrain a backbone: `python scripts/pretrain.py --config configs/pretrain_nano.yaml`."""

import sys

from spt_jax.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["pretrain", *sys.argv[1:]]))
