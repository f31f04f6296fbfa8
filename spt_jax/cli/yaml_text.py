"""Config files: where they are found, and YAML as a tree of text.

A scalar stays the text that was written: `no` is not false, `1.10` keeps its zero, and `1e-5` is a
number where an option wants one. The type of the option alone decides, as for a flag.
"""

import json
import re
from pathlib import Path
from typing import Any, ClassVar

import yaml

from spt_jax.errors import suggest

_PACKAGE = Path(__file__).resolve().parents[1]


def bundled_configs() -> dict[str, Path]:
    """The configs that come with the package, by name, such as `quickstart` or `paper/boolq`."""
    installed, checkout = _PACKAGE / "configs", _PACKAGE.parent / "configs"
    folder = installed if installed.is_dir() else checkout
    paths = [*sorted(folder.glob("*.yaml")), *sorted(folder.glob("*/*.yaml"))]
    return {path.relative_to(folder).with_suffix("").as_posix(): path for path in paths}


def find_config(name: str) -> Path:
    """The path of a config: that of a file, which wins, or of a bundled one by its name.

    Raises:
        FileNotFoundError: If there is neither.
    """
    bundled = bundled_configs()
    if Path(name).is_file():
        return Path(name)
    if name in bundled:
        return bundled[name]
    raise FileNotFoundError(
        f"config '{name}' is neither a file nor bundled; "
        f"bundled configs: {', '.join(bundled)}{suggest(name, bundled)}"
    )


def load_text(text: str, where: str) -> Any:
    """YAML as text, None, and lists and mappings of them.

    Raises:
        ValueError: If it is not YAML, or sets a key twice; `where` opens the message.
    """
    try:
        return yaml.load(text, Loader=_TextLoader)
    except yaml.YAMLError as error:
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
        line = f"line {mark.line + 1}, " if mark is not None else ""
        raise ValueError(f"{where}{line}not valid YAML: {problem or error}") from error
    except RecursionError:
        raise ValueError(f"{where}not valid YAML: nested too deeply") from None


def show(value: Any) -> str:
    """A tree of text as an error message quotes it."""
    return (
        f"'{value}'"
        if isinstance(value, str)
        else json.dumps(value, ensure_ascii=False, default=repr)
    )


class _TextLoader(yaml.SafeLoader):
    """YAML in which plain scalars are text or null, and a key that is set twice is an error."""

    yaml_implicit_resolvers: ClassVar = {
        first: [("tag:yaml.org,2002:null", re.compile(r"(~|null|Null|NULL|)$"))]
        for first in ("~", "n", "N", "")
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        mapping = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.MarkedYAMLError(problem="a key is no text", problem_mark=key.start_mark)
            if key.value in mapping:
                raise yaml.MarkedYAMLError(
                    problem=f"'{key.value}' is set twice", problem_mark=key.start_mark
                )
            mapping[key.value] = self.construct_object(value, deep=True)
        return mapping
