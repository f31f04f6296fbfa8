"""Flags and YAML files as typed configs: an option is text until it is typed, once, by its name.

A YAML file is read as text too (see yaml_text.py), so a flag and a line of a file mean the same.
Files come first and flags after them, wherever they stand on the command line, and the later
setting of an option wins. jsonargparse types the values and prints the help. Every error is a
ValueError or a FileNotFoundError of one line.
"""

import argparse
import contextlib
import dataclasses
import re
import types
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple, NoReturn, Union, get_args, get_origin, get_type_hints

import docstring_parser
import jsonargparse

from spt_jax.cli.yaml_text import bundled_configs, find_config, load_text, show
from spt_jax.errors import suggest

_REQUIRED = dataclasses.MISSING

_OPTION = re.compile(r"--([A-Za-z][\w.-]*(=.*)?)?", re.DOTALL)
"""What may be an option and not its value; '--' ends the options."""


def option_helps(config: type) -> dict[str, str]:
    """What the docstring of a dataclass says of each field, by its name."""
    docs = docstring_parser.parse(config.__doc__ or "")
    return {param.arg_name: " ".join((param.description or "").split()) for param in docs.params}


class Setting(NamedTuple):
    """An option as given: dotted name, text (or lists and mappings of text), and in which file."""

    name: str
    text: Any
    where: str


class Parser(jsonargparse.ArgumentParser):
    """The command line of one command: no abbreviations, and errors that are one-line ValueErrors.

    Args:
        command: Name of the command.
        description: What it does, for `--help`.
        config: A dataclass whose fields are dotted flags and the lines of `--config` files.
    """

    def __init__(self, command: str, description: str, config: type | None = None):
        super().__init__(
            prog=f"spt-jax {command}",
            description=description,
            allow_abbrev=False,
            print_config=None,
        )
        self.config = config
        self.flags: dict[str, Any] = {}  # type of each flag of the command itself
        self.hints: dict[str, Any] = {}  # type of each leaf of the config: {"prompt.length": int}
        self.sections: dict[str, type] = {}  # class of each inner node: {"": TrainConfig, ...}
        if config is not None:
            self.usage = "%(prog)s [--config FILE] [--OPTION=VALUE ...]"
            self.add_argument(
                "--config",
                action="append",
                default=[],
                metavar="FILE",
                help="YAML file of the options below, or the name of a bundled one "
                f"({', '.join(bundled_configs())}). Flags win over it, wherever they stand.",
            )
            self.add_argument(
                "--print-config",
                action="store_true",
                help="Print all options as YAML, files and flags applied, and exit.",
            )
            self._add_options(config, "", None, "")

    def add_flag(self, name: str, hint: Any, default: Any, help: str, **kwargs: Any) -> None:
        """Adds `--name`, a typed flag of the command itself: no line of a config file sets it."""
        self.flags[name] = hint
        self.add_argument(f"--{name}", type=hint, default=default, help=help, **kwargs)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raises `message` as a ValueError of one line, where argparse prints usage and exits."""
        raise ValueError(" ".join(message.split())) from ex

    def read(self, argv: Sequence[str]) -> tuple[jsonargparse.Namespace, Any]:
        """Reads a command line.

        Returns:
            The command's own flags, and the config (None for a parser without config class).

        Raises:
            ValueError: For an unknown option, or a value that does not fit its option.
            FileNotFoundError: For a `--config` that does not exist.
        """
        flags, values = self.read_values(argv)
        return flags, None if self.config is None else _build(self.config, values)

    def read_values(self, argv: Sequence[str]) -> tuple[jsonargparse.Namespace, dict[str, Any]]:
        """Read a command line as `read` does, without making the config.

        Returns:
            The command's own flags, and the value of each option that is given, by its dotted name.
        """
        given, others = self._split(argv)
        flags = self.parse_args(others)
        for setting in given:
            if setting.name in self.flags:
                flags[setting.name] = self.typed(setting)
        if self.config is None:
            return flags, {}
        settings = [setting for name in flags.config for setting in self._read_file(name)]
        settings += [setting for setting in given if setting.name not in self.flags]
        values: dict[str, Any] = {}
        for setting in settings:
            value = self.typed(setting)
            for name in list(values):  # `prompt: null` and prompt.length replace each other
                if name.startswith(f"{setting.name}.") or setting.name.startswith(f"{name}."):
                    del values[name]
            values[setting.name] = value
        return flags, values

    def _add_options(self, config: type, prefix: str, default: Any, title: str) -> None:
        hints, helps = get_type_hints(config), option_helps(config)
        self.sections[prefix.removesuffix(".")] = config
        summary = docstring_parser.parse(config.__doc__ or "").short_description or ""
        group = self.add_argument_group(title or summary.rstrip("."))
        sections = []
        for field in dataclasses.fields(config):
            name, hint, value = prefix + field.name, hints[field.name], _default(field, default)
            section, text = _section(hint), helps.get(field.name, "")
            if section is not None:
                sections.append((section, f"{name}.", value, f"{name}: {text}".rstrip(".")))
                continue
            self.hints[name] = hint
            if value is _REQUIRED:
                text, value = f"{text} Must be set.", argparse.SUPPRESS
            action: Any = group.add_argument(f"--{name}", type=hint, default=value, help=text)
            action.option_strings = [f"--{name}"]  # without jsonargparse's `--name+` for lists
        for arguments in sections:
            self._add_options(*arguments)

    def _split(self, argv: Sequence[str]) -> tuple[list[Setting], list[str]]:
        """Typed flags and options as settings, and every other argument as it is."""
        settings: list[Setting] = []
        others: list[str] = []
        position = 0
        while position < len(argv):
            argument, position = argv[position], position + 1
            name, equals, text = argument.removeprefix("--").partition("=")
            if argument == "--":
                return settings, [*others, *argv[position - 1 :]]
            if not argument.startswith("--"):
                others.append(argument)
            elif name in self.flags or name in self.hints or name in self.sections:
                if not equals and position < len(argv) and not _OPTION.fullmatch(argv[position]):
                    text, position = argv[position], position + 1
                elif not equals and self.hints.get(name) is bool:
                    text = "true"
                elif not equals:
                    raise ValueError(f"option '{name}' has no value; write --{name}=VALUE")
                tree = load_text(text, f"option '{name}': ") if self.is_tree(name) else text
                if name in self.flags:
                    settings.append(Setting(name, tree, ""))
                else:
                    settings += self.flatten(name, tree, "")
            elif action := self._option_string_actions.get(f"--{name}"):
                takes_value = not equals and action.nargs is None and position < len(argv)
                if takes_value and not _OPTION.fullmatch(argv[position]):
                    # argparse would take a value such as '--- so' or '-1' for an option.
                    argument, position = f"{argument}={argv[position]}", position + 1
                others.append(argument)
            else:
                raise ValueError(self._unknown(name, ""))
        return settings, others

    def is_tree(self, name: str) -> bool:
        """Return whether the text of an option is YAML: that of a section, list or mapping."""
        return name in self.sections or _is_container(self.hints.get(name))

    def _read_file(self, name: str) -> list[Setting]:
        tree, where = read_tree(name)
        settings = list(self.flatten("", tree, where))
        names = [setting.name for setting in settings]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f"{where}'{twice}' is set twice; keep one of them")
        return settings

    def flatten(self, name: str, tree: Any, where: str) -> Iterator[Setting]:
        """Yield the settings in a tree of text: {"prompt": {"length": "5"}} is prompt.length = 5.

        Raises:
            ValueError: There is no such option; `where` opens the message.
        """
        if name in self.hints or (name in self.sections and tree is None):
            yield Setting(name, tree, where)
        elif name not in self.sections:
            raise ValueError(self._unknown(name, where))
        elif isinstance(tree, dict):
            for key, value in tree.items():
                yield from self.flatten(f"{name}.{key}" if name else key, value, where)
        else:
            raise ValueError(
                f"{where}{name or 'the file'} is {show(tree)}, expected a mapping of options; "
                f"{self._has(name)}"
            )

    def typed(self, setting: Setting) -> Any:
        """Return the value of a setting with the type of its option.

        Raises:
            ValueError: The text does not fit the type.
        """
        name, text, where = setting
        if name in self.sections:
            parent, _, leaf = name.rpartition(".")
            hint = get_type_hints(self.sections[parent])[leaf]
        else:
            hint = self.flags[name] if name in self.flags else self.hints[name]
        if text is None and type(None) in _members(hint):
            return None
        # YAML 1.1 reads 1:30 as the number 90.
        clock = isinstance(text, str) and ":" in text and {int, float} & {*_members(hint)}
        if text is not None and not clock:
            parser = jsonargparse.ArgumentParser(exit_on_error=False)
            parser.add_argument("--value", type=hint)
            with contextlib.suppress(argparse.ArgumentError):
                return parser.parse_object({"value": text}, defaults=False)["value"]
        guess = suggest(str(text), [str(v) for m in _members(hint) for v in _choices(m)])
        raise ValueError(f"{where}{name} is {show(text)}, expected {_expected(hint)}{guess}")

    def _has(self, name: str) -> str:
        fields = sorted(field.name for field in dataclasses.fields(self.sections[name]))
        return f"{self.sections[name].__name__} has: {', '.join(fields)}"

    def _unknown(self, name: str, where: str) -> str:
        known = [*self.hints, *filter(None, self.sections)]
        flags = sorted(o[2:] for o in self._option_string_actions if o.startswith("--"))
        owner = name
        while owner and owner not in self.sections:
            owner = owner.rpartition(".")[0]
        has = self._has(owner) if self.config else f"{self.prog} has: {', '.join(flags)}"
        guess = suggest(name, known if where else {*known, *flags})
        return f"{where}unknown option '{name}'; {has}{guess}"


def read_tree(name: str) -> tuple[Any, str]:
    """Read a config file.

    Args:
        name: Its path, or the name of a bundled one.

    Returns:
        Its content as a tree of text, and the words that open a message about it.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is not YAML in UTF-8.
    """
    path = find_config(name)
    try:
        text = path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not text in UTF-8: {error}") from error
    return load_text(text, f"{path}: ") or {}, f"{path}: "


def _build(config: Any, values: dict[str, Any], prefix: str = "", default: Any = None) -> Any:
    """An instance of `config` with the dotted `values` over its defaults."""
    given: dict[str, Any] = {}
    hints = get_type_hints(config)
    for field in dataclasses.fields(config):
        name, section = prefix + field.name, _section(hints[field.name])
        inner = _default(field, default)
        required = inner is _REQUIRED
        if name in values:
            given[field.name] = values[name]
        elif section and (required or any(key.startswith(f"{name}.") for key in values)):
            given[field.name] = _build(section, values, f"{name}.", inner)
        elif required:
            raise ValueError(f"option '{name}' is not set, and it has no default")
    if default is None or default is _REQUIRED:
        return config(**given)
    return dataclasses.replace(default, **given)


def _default(field: dataclasses.Field, instance: Any) -> Any:
    if instance is not None and instance is not _REQUIRED:
        return getattr(instance, field.name)
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def _members(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def _section(hint: Any) -> Any:
    """The dataclass in a hint, or None for a leaf."""
    return next((member for member in _members(hint) if dataclasses.is_dataclass(member)), None)


def _is_container(hint: Any) -> bool:
    return any(get_origin(member) in (list, tuple, dict) for member in _members(hint))


def _choices(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) is Literal else ()


def _expected(hint: Any) -> str:
    """A type in words."""
    if len(_members(hint)) > 1:
        return " or ".join(_expected(member) for member in _members(hint))
    if _choices(hint):
        return f"one of {', '.join(map(str, _choices(hint)))}"
    if get_origin(hint) is dict:
        return f"a mapping, each value {_expected(get_args(hint)[1])}"
    if get_origin(hint) in (list, tuple):
        return f"a list, each value {_expected(get_args(hint)[0])}"
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    return {**words, type(None): "null"}.get(hint, getattr(hint, "__name__", str(hint)))
