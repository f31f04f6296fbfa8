"""Google's prompts: one float32 array [P, D] in a `.npy` file, with nothing said about it.

The header is matched and not evaluated, and nothing is ever unpickled: a file is an array of
exactly the bytes that its shape takes, or it is refused.
"""

import io
import re
from pathlib import Path

import numpy as np

MAGIC = b"\x93NUMPY"
_LENGTH_BYTES = {b"\x01\x00": 2, b"\x02\x00": 4, b"\x03\x00": 4}  # of the header, by version
_HEADER = re.compile(
    r"\{'descr': (?P<dtype>'[^']{1,40}'|\[.*\]), 'fortran_order': (?P<order>True|False), "
    r"'shape': \((?P<shape>[0-9, ]{0,80})\),? ?\} *\n",
    re.ASCII,
)
_EXPECTED = "expected a .npy file of float32 [P, D], as numpy.save writes it"


def read_npy(path: Path) -> np.ndarray:
    """The array of a `.npy` file, float32 [P, D]; its values are not checked.

    Raises:
        ValueError: It is no whole `.npy` file, or not of this dtype and rank.
    """
    data = path.read_bytes()
    length_bytes = _LENGTH_BYTES.get(data[6:8])
    if data[:6] != MAGIC or length_bytes is None:
        raise ValueError(f"{path} does not begin as a .npy file does; {_EXPECTED}")
    start = 8 + length_bytes
    end = start + int.from_bytes(data[8:start], "little")
    header = _HEADER.fullmatch(data[start:end].decode("latin-1"))
    if end > len(data) or header is None:
        raise ValueError(f"{path} has a damaged header; {_EXPECTED}")
    dtype, shape = header["dtype"].strip("'"), _shape(header["shape"])
    if "O" in dtype:
        raise ValueError(f"{path} holds pickled objects, which are never loaded; {_EXPECTED}")
    if dtype != "<f4" or len(shape) != 2 or 0 in shape:
        raise ValueError(f"{path} holds {dtype} {list(shape)}; {_EXPECTED} (<f4)")
    if len(data) - end != 4 * shape[0] * shape[1]:
        raise ValueError(
            f"{path} has {len(data) - end} bytes of data, its shape {list(shape)} takes "
            f"{4 * shape[0] * shape[1]}; download or copy it again"
        )
    order = "F" if header["order"] == "True" else "C"
    return np.array(np.frombuffer(data, "<f4", offset=end).reshape(shape, order=order), order="C")


def npy_bytes(prompt: np.ndarray) -> bytes:
    """A prompt, float32 [P, D], as a `.npy` file, which their `from_array` initializer reads."""
    file = io.BytesIO()
    np.lib.format.write_array(file, prompt, version=(1, 0), allow_pickle=False)
    return file.getvalue()


def _shape(text: str) -> tuple[int, ...]:
    return tuple(int(size) for size in text.replace(" ", "").split(",") if size)
