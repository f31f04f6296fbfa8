"""The parts of `scripts/results.py`: which runs there are, running them, and telling of them."""
