"""The parts of `studies/results.py`: which runs there are, running them, and telling of them."""
