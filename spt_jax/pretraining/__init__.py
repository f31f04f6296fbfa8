"""Pretraining of a small T5 from scratch: its corpus, its tasks and its loop."""
