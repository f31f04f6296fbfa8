"""Many processes as one run: who this one is, and what they tell each other.

    if is_main(): ...                         process 0, which alone writes and prints
    text = on_main(path.read_text)            process 0 calls it; all get its result or its error
    @main_process                             the same for every call of a function
    def write_result(path, result): ...

Values travel through the store of jax's coordinator, not through devices, and cost no compilation.
All processes call these functions in the same order. In a single process they cost nothing.
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
"""How long processes wait for each other where all are alive, as when one reads a slow disk."""

_CHUNK_BYTES = 8 << 20

_numbers = itertools.count()

P = ParamSpec("P")
T = TypeVar("T")


def process_count() -> int:
    """Processes of the run."""
    return _state().num_processes


def process_index() -> int:
    """Which of them this one is."""
    return _state().process_id


def is_main() -> bool:
    """Whether this is process 0, which writes and prints for all."""
    return process_index() == 0


def broadcast(value: Any = None) -> Any:
    """The value that process 0 gave, on every process; what the others give is not looked at."""
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
    """The value that each process gave, in their order, on every process."""
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
    """Waits until every process is here.

    Raises:
        RunError: One has not come within `WAIT_SECONDS`.
    """
    if process_count() > 1:
        _waited(_client().wait_at_barrier, name)


def on_main(function: Callable[[], T]) -> T:
    """What a function returns on process 0, where alone it is called; what it raises, on all."""
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
    """A context that process 0 alone enters; what it raises when it is entered is raised on all.

    Args:
        make: Makes it. The other processes have an object instead whose methods do nothing.
    """
    entered: list[Any] = []
    with contextlib.ExitStack() as stack:
        on_main(lambda: entered.append(stack.enter_context(make())))
        yield entered[0] if entered else _Nothing()


def require_same(**values: str) -> None:
    """Raises ValueError on every process where one has another value than process 0.

    Args:
        values: By what they are called, such as `data_fingerprint`.
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
    """Every leaf whole in the memory of this process, as numpy arrays, one after the other.

    What is cut over processes is gathered, so all of them call this.
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
    """Stands for what process 0 alone has: every method does nothing."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *args, **kwargs: None


def _state() -> Any:
    from jax._src import distributed  # the public module does not say what is needed here

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
    """An error that another process can read."""
    try:
        return pickle.loads(pickle.dumps(error))
    except Exception:  # whatever a class of errors makes of its arguments
        return RunError(one_line(error)) if error else None
