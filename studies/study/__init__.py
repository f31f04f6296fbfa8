"""The parts of `studies/results.py`: the list of runs, training them, and reporting them."""
