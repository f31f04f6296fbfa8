"""Files of weights: safetensors, PyTorch, MessagePack and zarr."""
