"""Google's prompts: one float32 array [P, D] in a `.npy` file, with nothing said about it.

Nothing is ever unpickled. A file has exactly the bytes that its shape takes, or it is refused.
"""

import io
from pathlib import Path

import numpy as np

from spt_jax.errors import one_line

MAGIC = b"\x93NUMPY"
_EXPECTED = "expected a .npy file of float32 [P, D], as numpy.save writes it"


def read_npy(path: Path) -> np.ndarray:
    """Read a `.npy` file, float32 [P, D]; its values are not checked.

    Raises:
        ValueError: It is no whole `.npy` file, or has another dtype or rank.
    """
    try:
        mapped = np.lib.format.open_memmap(path, mode="r")
    except Exception as error:  # numpy raises errors of many kinds for a damaged header
        reason = one_line(error)
        raise ValueError(f"{path} is not a whole .npy file ({reason}); {_EXPECTED}") from error
    if mapped.dtype != np.dtype("<f4") or mapped.ndim != 2 or not mapped.size:
        raise ValueError(f"{path} holds {mapped.dtype} {list(mapped.shape)}; {_EXPECTED}")
    held = path.stat().st_size - mapped.offset
    if held != mapped.nbytes:
        raise ValueError(
            f"{path} has {held} bytes of data, its shape {list(mapped.shape)} takes "
            f"{mapped.nbytes}; download or copy it again"
        )
    return np.array(mapped, order="C")


def npy_bytes(prompt: np.ndarray) -> bytes:
    """Return a `.npy` file of a prompt, float32 [P, D], as Google's `from_array` init reads it."""
    file = io.BytesIO()
    np.lib.format.write_array(file, prompt, version=(1, 0), allow_pickle=False)
    return file.getvalue()
