"""Frozen models: transformers folders, T5X checkpoints and our own formats.

`open.py` opens every format as a `Source`: the shape of the model, its tokenizer, and for each leaf
of our model the tensors that it is made of (`names.py`). `load.py` reads the leaves one by one.
"""
