"""Base checkpoints: a frozen model in the format that loads fastest.

    config.json       name, shape, fingerprint, dtype, and a sha256 of every file and of itself
    tokenizer.json    the tokenizer
    weights/          Orbax; each process reads the parts that its devices keep

The folder is renamed to its final name when it is whole. Files that were changed later are found by
their sha256 before they are used. The fingerprint is that of the source, before the cast to
`dtype`, so that a prompt that was trained on the source fits its base checkpoint. With dtype int8
the matrices are two arrays each (`t5.quantize`), and the other leaves are float32.
"""

import dataclasses
import hashlib
import itertools
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import Mesh

from spt_jax.distributed.main_process import gather, process_count, process_index
from spt_jax.models.load import Reader, as_stored
from spt_jax.models.names import leaf_shapes
from spt_jax.models.source import Source
from spt_jax.pytree import named_leaves
from spt_jax.sharding import param_sharding, param_shardings
from spt_jax.t5 import T5Config
from spt_jax.t5.quantize import (
    Quantized,
    dequantize,
    input_axis,
    is_matrix,
    quantize,
    quantize_params,
)
from spt_jax.tokenizers.base import Tokenizer
from spt_jax.tokenizers.published import load_tokenizer, read_json
from spt_jax.typing import PyTree

FORMAT = "spt_jax base 1"
DTYPES = ("float32", "bfloat16", "int8")
_WEIGHTS, _TOKENIZER = "weights", "tokenizer.json"
_PARTS = (_WEIGHTS, _TOKENIZER)  # what a config.json lists
_AGAIN = "copy it again, or write it again with `spt-jax convert`"
_CHUNK_BYTES = 1 << 24  # of a leaf: the least that a process reads of it


@dataclasses.dataclass(frozen=True)
class Base:
    """An opened base checkpoint; `restore_base` checks its files by sha256 and reads them.

    Args:
        folder: Folder of the checkpoint.
        name: Name of the model.
        config: Shape of the model.
        fingerprint: Fingerprint of the source's weights.
        tokenizer: Tokenizer of the model.
        files: The sha256 of each file, by its path below the folder.
        dtype: Dtype of the stored weights, one of `DTYPES`.
    """

    folder: Path
    name: str
    config: T5Config
    fingerprint: str
    tokenizer: Tokenizer
    files: dict[str, str]
    dtype: str


def require_new(folder: Path) -> None:
    """Raise FileExistsError where a base checkpoint would overwrite something."""
    if folder.exists():
        raise FileExistsError(f"{folder} exists; name a new folder, or remove that one first")


def write_base(source: Source, folder: Path, dtype: str) -> dict[str, Any]:
    """Write a base checkpoint.

    Args:
        source: The model; its leaves are read one by one.
        folder: Folder to be made.
        dtype: Dtype of the weights on disk, one of `DTYPES`.

    Returns:
        The content of its config.json, without the list of files.

    Raises:
        FileExistsError: The folder exists.
        ValueError: `dtype` is another one, or the source cannot be read. Then nothing is left on
            the disk.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype is {dtype!r}, expected float32, bfloat16 or int8")
    require_new(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = folder.absolute().parent / f".{folder.name}.{uuid.uuid4().hex[:8]}.partial"
    partial.mkdir()
    try:
        reader = Reader(source)
        _in_thread(_save, partial / _WEIGHTS, source, reader, dtype)
        source.tokenizer.save(partial / _TOKENIZER)
        described = {
            "format": FORMAT,
            "name": source.name,
            "source": source.origin,
            "dtype": dtype,
            "fingerprint": reader.fingerprint(),
            "t5": dataclasses.asdict(source.config),
        }
        files = {name: _sha256(partial / name) for name in _files(partial)}
        listed = {**described, "files": files}
        text = json.dumps({**listed, "sha256": _digest(listed)}, indent=2)
        (partial / "config.json").write_text(text + "\n")
        os.rename(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return described


def open_base(folder: Path) -> Base:
    """Open a base checkpoint without reading its weights.

    Raises:
        ValueError: The folder has another version of the format, or is not whole.
    """
    described = read_json(folder / "config.json")
    if described.get("format") != FORMAT:
        raise ValueError(
            f"{folder / 'config.json'} has format {described.get('format')!r}, expected "
            f"'{FORMAT}'; write it again with `spt-jax convert`"
        )
    kept = described.pop("sha256", None)
    if kept != _digest(described):
        raise ValueError(f"{folder / 'config.json'} differs from its sha256; {_AGAIN}")
    try:
        files, config = described["files"], T5Config(**described["t5"])
        name, fingerprint = str(described["name"]), str(described["fingerprint"])
        dtype = str(described["dtype"])
        expected = {str(file): str(digest) for file, digest in files.items()}
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{folder / 'config.json'} is damaged ({error!r})") from None
    # Files are looked for by listing the folder, so that no name of the config becomes a path.
    found = {file for file in _files(folder) if file.split("/")[0] in _PARTS}
    for file in sorted(expected.keys() ^ found):
        state = "is not listed" if file in found else "is missing"
        raise ValueError(f"base checkpoint {folder} is not whole: {file} {state}; {_AGAIN}")
    return Base(folder, name, config, fingerprint, load_tokenizer(folder), expected, dtype)


def restore_base(base: Base, *, param_dtype: str, mesh: Mesh, rest: str = "float32") -> PyTree:
    """Read the weights; each process reads only the parts that its devices keep.

    Int8 weights become floats, and floats int8, on the devices, leaf by leaf.

    Args:
        base: An opened base checkpoint.
        param_dtype: Dtype of the leaves in memory.
        mesh: Devices that share the leaves.
        rest: Dtype of the leaves that are no matrices if `param_dtype` is `int8`.

    Raises:
        ValueError: The mesh does not divide a leaf, a file is damaged, or the leaves do not fit the
            config.
    """
    shapes = leaf_shapes(base.config)
    dtype = jnp.dtype(rest if param_dtype == "int8" else param_dtype)

    def restored_dtype(name: str, kind: np.dtype) -> np.dtype:
        if name.endswith(("/values", "/scales")):
            return kind
        # A matrix of floats is quantized from what is stored.
        return kind if param_dtype == "int8" and is_matrix(name) else dtype

    args = {
        name: ocp.ArrayRestoreArgs(
            sharding=param_sharding(name, stored.shape, mesh),
            dtype=restored_dtype(name, stored.dtype),
            global_shape=stored.shape,
            strict=True,
        )
        for name, stored in _on_disk(shapes, base.dtype).items()
    }
    _require_undamaged(base)

    def finish(name: str, leaf: Any) -> Any:
        if not is_matrix(name) or (param_dtype == "int8") == isinstance(leaf, Quantized):
            return leaf
        return _convert(name, leaf, param_dtype, mesh)

    try:
        return _in_thread(_restore, base.folder / _WEIGHTS, shapes, args, finish)
    except (ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(
            f"weights of base checkpoint {base.folder} do not fit its config: {reason}; {_AGAIN}"
        ) from error


def _require_undamaged(base: Base) -> None:
    """Raise ValueError on every process where one of them finds a file that was changed.

    Processes that share a folder each check a part of its files. Processes that have copies of
    their own, which is seen by the inodes of config.json, each check all files.
    """
    config = (base.folder / "config.json").stat()
    seen = gather((config.st_ino, config.st_ctime_ns, config.st_size))
    shared = all(other == seen[0] for other in seen)
    files = sorted(base.files)[process_index() :: process_count()] if shared else list(base.files)
    damaged = [file for file in files if _sha256(base.folder / file) != base.files[file]]
    for file in itertools.chain.from_iterable(gather(damaged)):
        raise ValueError(
            f"base checkpoint {base.folder} is damaged: {file} differs from its sha256; {_AGAIN}"
        )


class _Lazy:
    """A leaf that is read only when Orbax writes it."""

    def __init__(self, name: str, shape: tuple[int, ...], dtype: np.dtype, reader: Iterator):
        self.name, self.shape, self.dtype, self.reader = name, shape, np.dtype(dtype), reader
        self.ndim, self.size = len(shape), int(np.prod(shape))
        self.nbytes = self.size * self.dtype.itemsize

    def read(self) -> np.ndarray:
        name, array = next(self.reader)
        if name != self.name:
            raise RuntimeError(f"leaf {name} came where Orbax was to write {self.name}")
        return np.ascontiguousarray(array, self.dtype)


class _InOrder(ocp.type_handlers.NumpyHandler):
    """Writes leaf after leaf, in the order of the fingerprint, so that one at a time is held."""

    async def serialize(self, values: Any, infos, args=None):
        rows = zip(values, infos, args or [ocp.SaveArgs()] * len(values))
        for value, info, arg in sorted(rows, key=lambda row: row[0].name):
            for future in await super().serialize([value.read()], [info], [arg]):
                future.result()
        return []


def _on_disk(shapes: dict[str, tuple[int, ...]], dtype: str) -> dict[str, Any]:
    """Return shape and dtype of every array of the checkpoint, by name, for the leaves' shapes."""
    floats = jnp.dtype("float32" if dtype == "int8" else dtype)
    leaves = {name: jax.ShapeDtypeStruct(shape, floats) for name, shape in shapes.items()}
    if dtype == "int8":
        leaves = dict(named_leaves(jax.eval_shape(quantize_params, leaves)))
    return leaves


def _convert(name: str, leaf: Any, param_dtype: str, mesh: Mesh) -> Any:
    """Return a matrix in int8 as floats, or one of floats in int8, sharded as it was."""
    axis = input_axis(name)

    def convert(leaf: Any) -> Any:
        if param_dtype == "int8":
            return quantize(leaf, axis)
        return dequantize(leaf, axis).astype(param_dtype)

    shardings = param_shardings({name: jax.eval_shape(convert, leaf)}, mesh)[name]
    return jax.jit(convert, out_shardings=shardings)(leaf)


def _stored_arrays(reader: Reader, dtype: str) -> Iterator[tuple[str, Any]]:
    for name, array in reader:
        yield from named_leaves({name: as_stored(name, array, dtype)})


def _save(folder: Path, source: Source, reader: Reader, dtype: str) -> None:
    arrays = _stored_arrays(reader, dtype)
    shapes = {name: leaf.shape for name, leaf in source.leaves.items()}
    leaves = {
        name: _Lazy(name, stored.shape, stored.dtype, arrays)
        for name, stored in _on_disk(shapes, dtype).items()
    }
    tree = flax.traverse_util.unflatten_dict(leaves, sep="/")
    args = jax.tree.map(lambda _: ocp.SaveArgs(chunk_byte_size=_CHUNK_BYTES), tree)
    registry = ocp.type_handlers.create_type_handler_registry((_Lazy, _InOrder()))
    handler = ocp.PyTreeCheckpointHandler(type_handler_registry=registry)
    with ocp.Checkpointer(handler) as checkpointer:
        checkpointer.save(folder, args=ocp.args.PyTreeSave(tree, save_args=args))
    next(arrays, None)  # the reader knows the fingerprint once it is asked for one leaf more


def _restore(
    folder: Path,
    shapes: dict[str, tuple[int, ...]],
    args: dict[str, ocp.ArrayRestoreArgs],
    finish: Callable[[str, Any], Any],
) -> PyTree:
    """Read leaf after leaf, and return what `finish` makes of each.

    Orbax would hold all of them in host memory a second time.
    """
    leaves, nest = {}, flax.traverse_util.unflatten_dict
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        found: Any = checkpointer.metadata(folder.absolute()).item_metadata
        stored = {name: leaf.shape for name, leaf in named_leaves(found.tree)}
        expected = {name: arg.global_shape for name, arg in args.items()}
        if stored != expected:
            odd = sorted({name for name, _ in stored.items() ^ expected.items()})
            raise ValueError(f"{', '.join(odd[:5])} are missing, unexpected or of another shape")
        for name in shapes:
            parts = {key: arg for key, arg in args.items() if _belongs(key, name)}
            abstract = {
                key: jax.ShapeDtypeStruct(arg.global_shape, arg.dtype) for key, arg in parts.items()
            }
            restore = ocp.args.PyTreeRestore(
                item=nest(abstract, sep="/"),
                restore_args=nest(parts, sep="/"),
                partial_restore=True,
            )
            found = dict(named_leaves(checkpointer.restore(folder.absolute(), args=restore)))
            whole = found.get(name)
            if whole is None:
                whole = Quantized(found[f"{name}/values"], found[f"{name}/scales"])
            leaves[name] = finish(name, whole)
    return nest(leaves, sep="/")


def _belongs(stored: str, name: str) -> bool:
    return stored in (name, f"{name}/values", f"{name}/scales")


def _in_thread(function: Any, *args: Any) -> Any:
    """Call a function in a thread, because Orbax fails where an event loop runs (in notebooks)."""
    with ThreadPoolExecutor(1, thread_name_prefix="base") as thread:
        return thread.submit(function, *args).result()


def _files(folder: Path) -> list[str]:
    found = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return sorted(path.as_posix() for path in found)


def _digest(described: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
