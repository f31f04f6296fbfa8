"""The papers' tasks by name: their texts, splits and metrics, and where their rows are read."""
