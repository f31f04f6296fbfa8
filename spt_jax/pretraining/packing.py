"""Put several examples in one row, so that a batch has less padding."""

import numpy as np


class PackedRows:
    """Rows that are filled with examples, each in the first row that has room for it.

    Args:
        rows: Number of rows.
        inputs_length: Tokens of inputs that a row can hold.
        targets_length: Tokens of targets that a row can hold.
    """

    def __init__(self, rows: int, inputs_length: int, targets_length: int):
        self._lengths = np.array([inputs_length, targets_length])
        self._used = np.zeros((rows, 2), int)
        self._examples = np.zeros(rows, int)
        self._ids = [np.zeros((rows, length), np.int32) for length in self._lengths]
        self._segments = [np.zeros_like(ids) for ids in self._ids]

    def add(self, inputs: list[int], targets: list[int]) -> bool:
        """Add an example to a row; return False if no row has room for it."""
        ends = self._used + [len(inputs), len(targets)]
        with_room = np.flatnonzero(np.all(ends <= self._lengths, axis=1))
        if not len(with_room):
            return False
        row = with_room[0]
        self._examples[row] += 1
        for kind, part in enumerate((inputs, targets)):
            place = slice(self._used[row, kind], ends[row, kind])
            self._ids[kind][row, place] = part
            self._segments[kind][row, place] = self._examples[row]
        self._used[row] = ends[row]
        return True

    def batch(self) -> dict[str, np.ndarray]:
        """Return the ids and segments of inputs and targets, int32[rows, length]."""
        return {
            "inputs": self._ids[0],
            "targets": self._ids[1],
            "inputs_segments": self._segments[0],
            "targets_segments": self._segments[1],
        }
