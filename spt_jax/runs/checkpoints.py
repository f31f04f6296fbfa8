"""Checkpoints of a run, with Orbax. What the state holds is defined in `train_state.py`.

A step is a folder `<step>/` with the items `state` (the leaves by name) and `metadata` (the run's
own, and a sha256 over step, leaves and metadata). Invariant: a step counts once it is on the disk,
where no power cut takes it, read back and found whole; only then is an older one deleted. Orbax
reads it without this package:

    import orbax.checkpoint as ocp
    state = ocp.StandardCheckpointer().restore("/absolute/path/runs/mine/checkpoints/3000/state")
    prompt = state["best"]["trained"]["prompt"]  # float32 [P, D]
"""

import functools
import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax.traverse_util import unflatten_dict

from spt_jax.distributed.main_process import (
    is_main,
    main_process,
    on_main,
    process_count,
    to_host,
)
from spt_jax.errors import RunError
from spt_jax.pytree import fingerprint, leaf_name, named_leaves
from spt_jax.runs.log import lock_folder, sync_tree
from spt_jax.typing import PyTree


class Restored(NamedTuple):
    """A whole checkpoint: the step, the state like the template, the metadata saved with it."""

    step: int
    state: PyTree
    metadata: dict


@functools.cache
def _orbax_thread() -> ThreadPoolExecutor:
    """Return the one thread that calls Orbax for all runs of the process.

    Orbax cannot be called where an event loop runs (notebooks), and two saves at a time take each
    other's signals and wait for ten minutes in vain.
    """
    return ThreadPoolExecutor(1, thread_name_prefix="checkpoint")


class Checkpoints:
    """The checkpoints of one run, written in a thread while the run goes on.

    A context manager; leaving it waits for the last save. Of several processes, all make it and
    call its methods, and process 0 reads and writes.

    Args:
        directory: The folder of the steps; made if missing, and locked until `close`.
        keep: The newest steps kept.
        saved: Called in the thread when a step is on disk and older ones are deleted.

    Raises:
        ValueError: `keep` is below 1, or a file is where the folder should be.
        RunError: Another process has the folder open, or it cannot be written.
    """

    def __init__(
        self,
        directory: str | os.PathLike,
        *,
        keep: int = 3,
        saved: Callable[[], None] = lambda: None,
    ):
        if keep < 1:
            raise ValueError(f"keep is {keep} checkpoints, expected 1 or more")
        self._directory = Path(directory).absolute()
        self._keep, self._saved = keep, saved
        self._unusable: set[int] = set()
        self._pending: Future | None = None
        self._open()

    @main_process
    def _open(self) -> None:
        self._lock = lock_folder(self._directory)
        for pattern in ("*.orbax-checkpoint-tmp*", "*.deleted"):
            for left in self._directory.glob(pattern):  # by a process that was killed
                shutil.rmtree(left, ignore_errors=True)
        # No leaf is a jax.Array, but without a handler for it Orbax warns at each start.
        unused = ocp.type_handlers.ArrayHandler(array_metadata_store=None)
        registry = ocp.type_handlers.create_type_handler_registry(
            (np.ndarray, _OneByOne()), (jax.Array, unused)
        )
        # Process 0 alone writes, so Orbax must not wait for the others.
        alone = ocp.options.MultiprocessingOptions(
            primary_host=jax.process_index(), active_processes={jax.process_index()}
        )
        self._orbax = ocp.Checkpointer(
            ocp.CompositeCheckpointHandler(
                composite_options=ocp.CompositeOptions(multiprocessing_options=alone),
                state=ocp.PyTreeCheckpointHandler(
                    type_handler_registry=registry, multiprocessing_options=alone
                ),
                metadata=ocp.JsonCheckpointHandler(multiprocessing_options=alone),
            ),
            multiprocessing_options=alone,
        )

    def steps(self) -> list[int]:
        """Steps with a folder, ascending; that does not say that they are whole."""
        names = [path.name for path in self._directory.iterdir() if path.is_dir()]
        return sorted(int(name) for name in names if re.fullmatch(r"0|[1-9]\d*", name))

    def save(self, step: int, state: PyTree, metadata: Mapping[str, Any]) -> None:
        """Starts saving; returns once the state is copied, so that it may be donated.

        Args:
            step: Above every usable step in the folder.
            state: A tree of jax or numpy arrays and Python numbers.
            metadata: JSON values that describe the run.

        Raises:
            RunError: The save before this one failed.
            TypeError: A leaf is no array or number, or `metadata` has no JSON form.
            ValueError: The step is not new, or a leaf has no elements.
        """
        if process_count() > 1:
            state = to_host(state)  # All processes gather what is cut over them.
        if not is_main():
            return
        self._wait()
        newest = max(set(self.steps()) - self._unusable, default=-1)
        if step <= newest:
            raise ValueError(
                f"checkpoint step {step} is not above {newest}, the newest in {self._directory}; "
                "restore that one first, or start over with --overwrite"
            )
        for _, leaf in named_leaves(state):
            if isinstance(leaf, jax.Array):
                leaf.copy_to_host_async()
        leaves = {name: _host_copy(name, leaf) for name, leaf in named_leaves(state)}
        tree, plain = unflatten_dict(leaves, sep="/"), json.loads(json.dumps(metadata))
        self._pending = _orbax_thread().submit(self._write, step, tree, plain)

    def restore_newest(self, template: PyTree, *, added: Sequence[str] = ()) -> Restored | None:
        """The newest whole step; for each newer one that is not, one warning in the log.

        Args:
            template: A tree like the saved one. Where it has jax arrays or `ShapeDtypeStruct`s,
                jax arrays come back, placed as those are; the other leaves keep their type.
            added: Names of leaves that earlier versions did not save. Where a checkpoint lacks one,
                the leaf of the template stays.

        Returns:
            None where the folder holds no step.

        Raises:
            RunError: There are steps, and none is whole.
            ValueError: The newest whole step does not fit the template.
        """
        if process_count() == 1:
            return self._restore_newest(template, added)
        host = jax.tree.map(np.asarray, to_host(template))
        restored = on_main(lambda: self._restore_newest(host, added))

        def place(leaf, value):
            return jax.make_array_from_callback(leaf.shape, leaf.sharding, value.__getitem__)

        return restored and restored._replace(state=jax.tree.map(place, template, restored.state))

    def _restore_newest(self, template: PyTree, added: Sequence[str]) -> Restored | None:
        self._wait()
        steps = self.steps()
        for step in reversed(steps):
            try:
                tree, metadata = _orbax_thread().submit(self._read, step).result()
            except Exception as error:  # whatever a damaged file makes Orbax raise
                self._unusable.add(step)
                logging.getLogger("spt_jax").warning(
                    "checkpoint %d in %s is not usable (%s); trying the one before",
                    step,
                    self._directory,
                    _reason(error),
                )
            else:
                state = _fill(template, tree, f"{self._directory / str(step)}", added)
                return Restored(step, state, metadata)
        if steps:
            raise RunError(
                f"none of the checkpoints {', '.join(map(str, steps))} in {self._directory} is "
                "whole; restore the folder from a copy, or start over with --overwrite"
            )
        return None

    @main_process
    def wait(self) -> None:
        """Block all processes until the last save is on disk, and what `saved` does is done.

        Raises:
            RunError: It failed (disk full); older steps are untouched. Raised once.
        """
        self._wait()

    def _wait(self) -> None:
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def close(self) -> None:
        """Waits for the last save and unlocks the folder; harmless when repeated.

        Raises:
            RunError: The last save failed.
        """
        if not is_main():
            return
        try:
            self._wait()
        finally:
            self._orbax.close()
            self._lock.close()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind, error, traceback) -> None:
        try:
            self.close()
        except RunError:
            if error is None:  # else a failed save would hide what ended the run
                raise

    def _write(self, step: int, tree: PyTree, metadata: dict) -> None:
        """In the thread: writes a step, reads it back, deletes the oldest ones."""
        folder = self._directory / str(step)
        manifest = {"sha256": _digest(step, tree, metadata), "metadata": metadata}
        args = ocp.args.Composite(
            state=ocp.args.PyTreeSave(tree), metadata=ocp.args.JsonSave(manifest)
        )
        try:
            for unusable in self._unusable.intersection(self.steps()):
                self._move(unusable, "unusable")
            try:
                self._orbax.save(folder, args=args)
                sync_tree(folder)  # Orbax leaves names and JSON to the system
                self._read(step)
            except Exception:
                for left in self._directory.glob(f"{step}.orbax-checkpoint-tmp*"):
                    shutil.rmtree(left, ignore_errors=True)
                if folder.exists():
                    self._move(step, "deleted")
                raise
            for old in self.steps()[: -self._keep]:
                self._move(old, "deleted")
        except Exception as error:
            older = [f"checkpoint {whole} is untouched" for whole in self.steps()[-1:]]
            raise RunError(
                f"checkpoint {step} could not be written to {self._directory}: {_reason(error)} "
                f"({', '.join(older) or 'there is no older one'}); free space or fix the folder, "
                "and run the same command again"
            ) from error
        self._saved()

    def _read(self, step: int) -> tuple[PyTree, dict]:
        """In the thread: the arrays and the metadata of a step; raises if it is not whole."""
        args = ocp.args.Composite(state=ocp.args.PyTreeRestore(), metadata=ocp.args.JsonRestore())
        restored = self._orbax.restore(self._directory / str(step), args=args)
        tree, metadata = restored.state, restored.metadata["metadata"]
        if _digest(step, tree, metadata) != restored.metadata["sha256"]:
            raise ValueError("its content differs from its sha256")
        return tree, metadata

    def _move(self, step: int, suffix: str) -> None:
        """Renames a step, so that it is gone at once; removes it if it is to be deleted."""
        moved = self._directory / f"{step}.{suffix}"
        shutil.rmtree(moved, ignore_errors=True)
        os.rename(self._directory / str(step), moved)
        if suffix == "deleted":
            shutil.rmtree(moved, ignore_errors=True)


class _OneByOne(ocp.type_handlers.NumpyHandler):
    """Gives each array an event loop of its own.

    In a batch the first error closes the loop under the other arrays, which makes TensorStore
    print a traceback on stderr that nothing can catch.
    """

    async def serialize(self, values, infos, args=None):
        futures = []
        for value, info, arg in zip(values, infos, args or [ocp.SaveArgs()] * len(values)):
            futures += await super().serialize([value], [info], [arg])
        return futures

    async def deserialize(self, infos, args=None):
        arrays = []
        for info, arg in zip(infos, args or [ocp.RestoreArgs()] * len(infos)):
            arrays += await super().deserialize([info], [arg])
        return arrays


def _host_copy(name: str, leaf: Any) -> np.ndarray:
    # A copy also on CPU: np.asarray shares the device buffer, which could then not be donated.
    array = np.array(leaf, order="C", copy=True)
    if array.dtype.kind in "OUSMm":
        raise TypeError(
            f"checkpoint leaf '{name}' is a {type(leaf).__name__}, expected an array or a number"
        )
    if array.size == 0:
        raise ValueError(
            f"checkpoint leaf '{name}' has shape {array.shape}, expected at least one element"
        )
    return array


def _digest(step: int, tree: PyTree, metadata: dict) -> str:
    described = {"step": step, "leaves": fingerprint(tree), "metadata": metadata}
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()


def _fill(template: PyTree, tree: PyTree, origin: str, added: Sequence[str]) -> PyTree:
    """The template with the leaves of a checkpoint."""

    def describe(leaf):
        return f"{leaf.dtype if hasattr(leaf, 'dtype') else np.asarray(leaf).dtype}{np.shape(leaf)}"

    leaves = dict(named_leaves(tree))
    old = {name: leaf for name, leaf in named_leaves(template) if name in added}
    leaves = old | leaves
    found = {name: describe(leaf) for name, leaf in leaves.items()}
    expected = {name: describe(leaf) for name, leaf in named_leaves(template)}
    for name in sorted(expected.keys() | found.keys()):
        if found.get(name) != expected.get(name):
            raise ValueError(
                f"checkpoint {origin} is of another run: its '{name}' is "
                f"{found.get(name, 'missing')}, expected {expected.get(name, 'no such leaf')}; "
                "use the options that it was made with, or start over with --overwrite"
            )

    def fill(path, leaf):
        value = leaves[leaf_name(path)]
        if isinstance(leaf, (jax.Array, jax.ShapeDtypeStruct)):
            return jax.device_put(
                value, leaf.sharding if getattr(leaf, "committed", True) else None
            )
        return value if isinstance(leaf, np.ndarray) else type(leaf)(value.item())

    return jax.tree_util.tree_map_with_path(fill, template)


def _reason(error: Exception) -> str:
    """An error in a few words: the operating system's where there are such."""
    code = re.search(r"os_error_code='(\d+)'", str(error))
    if code:
        return os.strerror(int(code[1]))
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
