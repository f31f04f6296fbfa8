"""The table of the files of weights that a folder of transformers may hold, and their readers."""

from spt_jax.models.formats.safetensors_file import open_safetensors
from spt_jax.models.formats.torch_file import open_torch

WEIGHTS = {
    "model.safetensors": open_safetensors,
    "model.safetensors.index.json": open_safetensors,
    "pytorch_model.bin": open_torch,
    "pytorch_model.bin.index.json": open_torch,
}
"""Files of weights, the best first; an index names the file of each tensor."""
