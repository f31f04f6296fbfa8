"""Frozen models in: transformers folders, T5X checkpoints and base checkpoints of our own.

Every format is opened as a `Source`: the shape of the model, its tokenizer, and each leaf of ours
with the tensors it is made of (`names.py`). `loading.py` reads the leaves one by one.
"""
