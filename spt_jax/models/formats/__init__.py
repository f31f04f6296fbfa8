"""Files of weights: safetensors, PyTorch, MessagePack and zarr.

A new kind of file gets a module here and an entry in `WEIGHTS` of `table.py`.
A new kind of folder or address gets a branch in `models/open.py`.
"""
