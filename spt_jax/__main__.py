"""`python -m spt_jax` is the console script `spt-jax`."""

import sys

from spt_jax.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
