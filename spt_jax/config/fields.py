"""The check of every config: a value has the type, the choices and the range of its annotation.

A `Config` checks and converts its fields when it is made, so that Python, a YAML file and a flag
meet the same rules and the same messages. The annotation says everything: `Literal` lists choices,
`Annotated[int, Rule(...)]` adds a range, `int | None` allows null.

    int       a whole number, also one of numpy; never a bool
    float     a number, also a whole one
    str       text, or a path, which becomes text
    tuple     any sequence but text
    dict      a mapping; whole numbers as keys become text
"""

import contextlib
import dataclasses
import functools
import json
import math
import os
import types
from collections.abc import Callable, Mapping, Sequence
from numbers import Integral, Real
from typing import Annotated, Any, ClassVar, Literal, Union, get_args, get_origin, get_type_hints

from spt_jax.errors import require, suggest


@dataclasses.dataclass(frozen=True)
class Rule:
    """What the values of a field have in common beside their type.

    Args:
        holds: Tells whether a value is allowed. It is False for NaN.
        words: The allowed values in words, as "expected ..." continues.
    """

    holds: Callable[[Any], bool]
    words: str


_FITS_DEVICES = Rule(lambda n: n < 2**31, "less than 2**31")
"""Whole numbers on devices have 32 bits."""

Count = Annotated[int, Rule(lambda n: n >= 1, "1 or more"), _FITS_DEVICES]
CountOrZero = Annotated[int, Rule(lambda n: n >= 0, "0 or more"), _FITS_DEVICES]
Seed = Annotated[int, Rule(lambda n: 0 <= n < 2**32, "0 or more, and less than 2**32")]
"""jax makes a key of the lowest 32 bits, so larger seeds would repeat the runs of smaller ones."""

Text = Annotated[str, Rule(lambda text: bool(text.strip()), "text that is not empty")]
"""Names and paths. An empty one comes of an unset variable, and as a path it means a folder."""

Positive = Annotated[float, Rule(lambda x: 0 < x < math.inf, "more than 0")]
PositiveOrZero = Annotated[float, Rule(lambda x: 0 <= x < math.inf, "0 or more")]
Finite = Annotated[float, Rule(math.isfinite, "a finite number")]
Lengths = Annotated[
    tuple[int, ...],
    Rule(
        lambda lengths: all(n >= 1 for n in lengths) and list(lengths) == sorted({*lengths}),
        "increasing lengths of 1 or more",
    ),
]
Share = Annotated[float, Rule(lambda x: 0 <= x <= 1, "0 to 1")]
Rate = Annotated[float, Rule(lambda x: 0 <= x < 1, "at least 0 and less than 1")]


class Config:
    """Base class of the frozen dataclasses that hold options.

    A subclass names the section of its fields in messages, as in
    `class DataConfig(Config, section="data")`, and checks in `check` what concerns several fields.
    """

    section: ClassVar[str] = ""

    def __init_subclass__(cls, section: str = "") -> None:
        cls.section = section

    def __post_init__(self) -> None:
        for name, hint in field_types(type(self)).items():
            value = convert(getattr(self, name), hint, self.option(name))
            object.__setattr__(self, name, value)
        self.check()

    def check(self) -> None:
        """Raise ValueError if fields contradict each other. The types are right by then."""

    @classmethod
    def option(cls, name: str) -> str:
        """Return the name of a field as messages and flags have it, such as `data.batch_size`."""
        return f"{cls.section}.{name}" if cls.section else name

    @classmethod
    def unused(cls, values: Mapping[str, Any]) -> frozenset[str]:
        """Return the fields that have no effect beside these values."""
        return frozenset()


@functools.cache
def field_types(cls: type) -> dict[str, Any]:
    """Return the annotation of each field of a dataclass, by its name."""
    hints = get_type_hints(cls, include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


def convert(value: Any, hint: Any, name: str, given: Any = None) -> Any:
    """Return a value as its annotation wants it: a list as a tuple, a path as text, 1 as 1.0.

    Args:
        value: Whatever was given for the option.
        hint: Its annotation.
        name: The option as the message names it.
        given: The text that the value was read from, which a message about its type quotes.

    Raises:
        ValueError: The value is not of this type, not one of the choices, or out of range.
    """
    try:
        return _fit(value, hint)
    except _Misfit as misfit:
        shown = show(value if given is None or str(misfit) else given)
        known = [str(choice) for member in members(hint) for choice in choices(member)]
        expected = str(misfit) or f"{in_words(hint)}{suggest(str(value), known)}"
        raise ValueError(f"{name} is {shown}, expected {expected}") from None


class _Misfit(Exception):
    """A value does not fit; without text it has another type, else the text is what is allowed."""


def _fit(value: Any, hint: Any) -> Any:
    origin, args = get_origin(hint), get_args(hint)
    if hasattr(value, "item") and getattr(value, "shape", None) == ():  # a scalar of numpy or jax
        value = value.item()
    if origin is Annotated:
        fitted = _fit(value, args[0])
        for rule in args[1:]:
            if isinstance(rule, Rule) and not rule.holds(fitted):
                raise _Misfit(rule.words)
        return fitted
    if origin in (Union, types.UnionType):
        for member in args:
            try:
                return _fit(value, member)
            except _Misfit as misfit:
                if str(misfit):
                    raise
    elif origin is Literal:
        if isinstance(value, str) and value in args:
            return str.__str__(value)  # also of a class of text that prints as something else
    elif origin in (tuple, list):
        if isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
            return origin(_fit(inner, args[0]) for inner in value)
    elif origin is dict:
        if isinstance(value, Mapping):
            fitted = {_key(key): _fit(inner, args[1]) for key, inner in value.items()}
            if len(fitted) < len(value):
                raise _Misfit("keys that differ as text")
            return fitted
    elif hint is int:
        if isinstance(value, Integral) and not isinstance(value, bool):
            return int(value)
    elif hint is float:
        if isinstance(value, Real) and not isinstance(value, bool):
            with contextlib.suppress(OverflowError):
                return float(value)
    elif hint is str:
        value = os.fspath(value) if isinstance(value, os.PathLike) else value
        if isinstance(value, str):
            return str.__str__(value)
    elif isinstance(value, hint):  # bool, None, a config
        return value
    raise _Misfit


def _key(key: Any) -> str:
    if isinstance(key, str):
        return str.__str__(key)
    if isinstance(key, bool) or not isinstance(key, Integral):
        raise _Misfit
    return str(int(key))


def members(hint: Any) -> tuple[Any, ...]:
    """Return the types that an annotation allows: (int, None) for `int | None`."""
    if get_origin(hint) is Annotated:
        return members(get_args(hint)[0])
    if get_origin(hint) in (Union, types.UnionType):
        return tuple(inner for member in get_args(hint) for inner in members(member))
    return (hint,)


def choices(hint: Any) -> tuple[Any, ...]:
    """Return what a `Literal` lists, and nothing for another type."""
    return get_args(hint) if get_origin(hint) is Literal else ()


def config_class(hint: Any) -> Any:
    """Return the config class that an annotation allows, or None if it allows none."""
    return next((member for member in members(hint) if dataclasses.is_dataclass(member)), None)


def in_words(hint: Any, rules: bool = False) -> str:
    """Return an annotation in words, such as "a whole number or null".

    Args:
        hint: The annotation. Text in `Annotated` stands for its words.
        rules: Add the ranges.
    """
    origin, args = get_origin(hint), get_args(hint)
    if origin is Annotated:
        ranges = [rule.words.partition(";")[0] for rule in args[1:] if isinstance(rule, Rule)]
        texts = [text for text in args[1:] if isinstance(text, str)]
        return ", ".join([*(texts or [in_words(args[0])]), *(ranges if rules else ())])
    if origin in (Union, types.UnionType):
        return " or ".join(in_words(member, rules) for member in args)
    if origin is Literal:
        return f"one of {', '.join(map(str, args))}"
    if origin is dict:
        return f"a mapping, each value {in_words(args[1], rules)}"
    if origin in (list, tuple):
        return f"a list, each value {in_words(args[0], rules)}"
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    return {**words, type(None): "null"}.get(hint) or hint.__name__


def show(value: Any) -> str:
    """Return a value as messages quote it: text in quotes, everything else as in YAML."""
    if isinstance(value, str):
        return f"'{value}'"
    if isinstance(value, float):
        return str(value)
    try:
        return json.dumps(value, ensure_ascii=False, default=repr)
    except TypeError:  # keys that JSON does not have
        return repr(value)


def to_dict(config: Any) -> dict[str, Any]:
    """Return a config as nested dicts, lists and scalars, ready for YAML or JSON."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(inner) for key, inner in value.items()}
        return [plain(inner) for inner in value] if isinstance(value, (tuple, list)) else value

    return plain(dataclasses.asdict(config))


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested options by their dotted names: {"prompt": {"length": 5}} as "prompt.length"."""
    flat = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = list(value) if isinstance(value, tuple) else value
    return flat


def from_dict(cls: Any, values: Mapping[str, Any], default: Any = None, *, saved: bool = False):
    """Return the config that nested dicts describe. What they lack has its default.

    Args:
        cls: Class of the config.
        values: Fields by name; a section is a mapping, an instance or None.
        default: An instance that the missing fields are taken from, instead of the class's
            defaults.
        saved: Leave out the fields that have no effect, which older versions wrote into the
            folder of a run.

    Raises:
        ValueError: A field is unknown, missing without having a default, or its value not allowed.
    """
    fields = {field.name: field for field in dataclasses.fields(cls)}
    for name in values:
        require(
            name in fields,
            f"{cls.__name__} has no field '{name}'; it has {', '.join(fields)}"
            f"{suggest(str(name), fields)}",
        )
    given: dict[str, Any] = {}
    for name, field in fields.items():
        section = config_class(field_types(cls)[name])
        inherited = default_of(field, default)
        value = values.get(name, inherited)
        if section is not None and value is dataclasses.MISSING:
            value = {}
        require(
            value is not dataclasses.MISSING,
            f"option '{cls.option(name)}' is not set, and it has no default",
        )
        if section is not None and isinstance(value, Mapping):
            base = inherited if isinstance(inherited, section) else None
            value = from_dict(section, value, base, saved=saved)
        given[name] = value
    kept = () if saved else values
    unused = cls.unused(given)
    return cls(**{name: given[name] for name in fields if name in kept or name not in unused})


def default_of(field: dataclasses.Field, instance: Any) -> Any:
    """Return a field's value in an instance, or else its default; `MISSING` if it has none."""
    if instance is not None:
        return getattr(instance, field.name)
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default
