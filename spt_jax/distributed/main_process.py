"""Exchange values between the processes of a run, and let process 0 write and print for all.

    if is_main(): ...                         process 0, which alone writes and prints
    text = on_main(path.read_text)            process 0 calls it; all get its result or its error
    @main_process                             the same for every call of a function
    def write_result(path, result): ...

Values are sent through the store of jax's coordinator and not through devices, so nothing is
compiled. All processes call these functions in the same order. A single process skips the exchange.
"""

import contextlib
import functools
import itertools
import pickle
from collections.abc import Callable, Iterator
from typing import Any, ParamSpec, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from spt_jax.errors import RunError, one_line
from spt_jax.typing import PyTree

WAIT_SECONDS = 3600
"""Seconds that living processes wait for each other, as when one reads a slow disk."""

_CHUNK_BYTES = 8 << 20

_numbers = itertools.count()

P = ParamSpec("P")
T = TypeVar("T")


def process_count() -> int:
    """Return the number of processes of the run."""
    return _state().num_processes


def process_index() -> int:
    """Return the index of this process, from 0."""
    return _state().process_id


def is_main() -> bool:
    """Return whether this is process 0, which writes and prints for all."""
    return process_index() == 0


def broadcast(value: Any = None) -> Any:
    """Return the value of process 0 on every process. The values of the others are ignored."""
    if process_count() == 1:
        return value
    key, data = _key(), pickle.dumps(value) if is_main() else b""
    if is_main():
        chunks = range(0, max(1, len(data)), _CHUNK_BYTES)
        for number, start in enumerate(chunks):
            _client().key_value_set_bytes(f"{key}/{number}", data[start : start + _CHUNK_BYTES])
        _client().key_value_set(f"{key}/count", str(len(chunks)))
    else:
        read = _client().blocking_key_value_get_bytes
        count = int(_waited(_client().blocking_key_value_get, f"{key}/count"))
        value = pickle.loads(b"".join(_waited(read, f"{key}/{n}") for n in range(count)))
    barrier(key)
    if is_main():
        _client().key_value_delete(f"{key}/")
    return value


def gather(value: Any) -> list[Any]:
    """Return the values of all processes, in their order, on every process."""
    if process_count() == 1:
        return [value]
    key = _key()
    _client().key_value_set_bytes(f"{key}/{process_index()}", pickle.dumps(value))
    found = [
        pickle.loads(_waited(_client().blocking_key_value_get_bytes, f"{key}/{index}"))
        for index in range(process_count())
    ]
    barrier(key)
    if is_main():
        _client().key_value_delete(f"{key}/")
    return found


def barrier(name: str) -> None:
    """Wait until every process has called this.

    Raises:
        RunError: A process did not call it within `WAIT_SECONDS`.
    """
    if process_count() > 1:
        _waited(_client().wait_at_barrier, name)


def on_main(function: Callable[[], T]) -> T:
    """Call a function on process 0 only; return its result, or raise its error, on all."""
    if process_count() == 1:
        return function()
    value, error = None, None
    if is_main():
        try:
            value = function()
        except Exception as raised:
            error = raised
    value, sent = broadcast((value, _portable(error)))
    if sent is not None:
        raise error or sent
    return value


def main_process(function: Callable[P, T]) -> Callable[P, T]:
    """Decorate a function that process 0 alone runs; all processes call it, see `on_main`."""

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        return on_main(lambda: function(*args, **kwargs))

    return call


@contextlib.contextmanager
def main_only(make: Callable[[], contextlib.AbstractContextManager[Any]]) -> Iterator[Any]:
    """Enter a context on process 0 only. An error on entering is raised on all processes.

    Args:
        make: Function that makes the context. The other processes get an object whose methods do
            nothing.
    """
    entered: list[Any] = []
    with contextlib.ExitStack() as stack:
        on_main(lambda: entered.append(stack.enter_context(make())))
        yield entered[0] if entered else _Nothing()


def require_same(**values: str) -> None:
    """Raise ValueError on every process if the values of one differ from those of process 0.

    Args:
        values: Values by their name in the error, such as `data_fingerprint`.
    """
    of_all = gather(values)
    for index, others in enumerate(of_all):
        for name, value in others.items():
            if value != of_all[0][name]:
                raise ValueError(
                    f"process {index} has another {name.replace('_', ' ')} ({value[:12]}) than "
                    f"process 0 ({of_all[0][name][:12]}); give all processes the same options, "
                    "files and versions"
                )


def to_host(tree: PyTree) -> PyTree:
    """Return a tree with every leaf as a complete numpy array.

    All processes call this, because leaves that are split over processes are gathered.
    """

    for leaf in jax.tree.leaves(tree):
        if isinstance(leaf, jax.Array) and leaf.is_fully_addressable:
            leaf.copy_to_host_async()

    def fetch(leaf):
        if isinstance(leaf, jax.Array) and not (
            leaf.is_fully_addressable or leaf.is_fully_replicated
        ):
            return multihost_utils.process_allgather(leaf, tiled=True)
        return np.asarray(leaf)

    return jax.tree.map(fetch, tree)


class _Nothing:
    """A substitute, on other processes, for an object of process 0. Its methods do nothing."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *args, **kwargs: None


def _state() -> Any:
    from jax._src import distributed  # the public module lacks these values

    return distributed.global_state


def _client() -> Any:
    return _state().client


def _key() -> str:
    return f"spt_jax/{next(_numbers)}"


def _waited(call: Callable[[str, int], T], name: str) -> T:
    try:
        return call(name, WAIT_SECONDS * 1000)
    except jax.errors.JaxRuntimeError as error:
        if "DEADLINE_EXCEEDED" not in str(error):
            raise
        raise RunError(
            f"the other processes have not come to '{name}' within {WAIT_SECONDS} s; "
            "see what they are doing"
        ) from error


def _portable(error: Exception | None) -> Exception | None:
    """Return an error that can be sent to another process."""
    try:
        return pickle.loads(pickle.dumps(error))
    except Exception:  # some classes of errors cannot be pickled or unpickled
        return RunError(one_line(error)) if error else None
