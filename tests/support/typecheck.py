"""The type checker that `conftest` puts into the rooms that compute with arrays."""

import typing
from collections.abc import Callable
from typing import Any

from beartype import beartype
from jaxtyping import AbstractArray


def check(function: Callable) -> Callable:
    """Check the arrays that a function takes and returns at each call.

    Nothing else is checked, because tests give fakes in place of other objects. Fields of
    dataclasses are not either: jax builds pytrees of shapes, of shardings and of None as well.
    """
    if function.__name__ == "__init__":
        return function
    function.__annotations__ = {
        name: annotation if _has_arrays(annotation) else Any
        for name, annotation in function.__annotations__.items()
    }
    return beartype(function)


def _has_arrays(annotation: Any) -> bool:
    """Whether a jaxtyping array is the annotation or a part of it."""
    parts = (annotation, *typing.get_args(annotation))
    return any(isinstance(part, type) and issubclass(part, AbstractArray) for part in parts)
