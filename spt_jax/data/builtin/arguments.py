"""Read the arguments that a docstring documents: name, kind of value, description.

Two styles are read: sections underlined with hyphens (numpydoc) and sections indented below `Args:`
(Google). A kind is one of a few plain words that stand for many spellings of a type.

Invariant: an argument has a kind only if its type, as written, allows no other kind.
"""

import re
from collections.abc import Mapping
from typing import NamedTuple

import docstring_parser
from docstring_parser import DocstringStyle, ParseError

KINDS: dict[str, tuple[str, ...]] = {
    "int": ("int", "integer"),
    "float": ("float", "double"),
    "bool": ("bool", "boolean"),
    "str": ("str", "string"),
    "array": ("array", "arraylike", "ndarray", "tensor", "longtensor", "floattensor"),
    "list": ("list", "tuple", "sequence", "iterable"),
    "dict": ("dict", "dictionary", "mapping"),
    "function": ("function", "callable"),
}
"""Last words of the types of each kind, in lower case and without '-' and '_'."""

_KIND_OF = {word: kind for kind, words in KINDS.items() for word in words}
_UNDERLINED = re.compile(r"^(?:Other )?Parameters\s*\n-+\s*$", re.MULTILINE)
_INDENTED = re.compile(r"^(?:Args|Arguments|Params|Parameters):\s*$", re.MULTILINE)
_NAME = re.compile(r"[`*]{0,2}([A-Za-z_]\w*)[`*]{0,2}")
_STRINGS = re.compile(r"\{\s*(?:'[^']*'|\"[^\"]*\")(?:\s*,\s*(?:'[^']*'|\"[^\"]*\"))*,?\s*\}")
_TRUTHS = re.compile(r"\{\s*(?:true\s*,\s*false|false\s*,\s*true)\s*\}")
_BRACKETED = re.compile(r"\[[^][]*\]|\([^()]*\)|\{[^{}]*\}")
_REMARK = re.compile(
    r",?\s+(?:optional|defaults?|shape|dtype|required|returned|length|keyword|positional)\b.*"
)


class Argument(NamedTuple):
    """A documented argument.

    Args:
        name: Name in the code.
        kind: A key of `KINDS`, or None if the type is missing, unclear or of no such kind.
        description: Its description in one line.
    """

    name: str
    kind: str | None
    description: str


def parse_arguments(text: str, annotations: Mapping[str, str] | None = None) -> list[Argument]:
    """Return the arguments that a docstring describes, in its order.

    Entries for several arguments at once, and for `*args` and `**kwargs`, are left out. A docstring
    that cannot be parsed has no arguments.

    Args:
        text: The docstring with line breaks and without common indentation.
        annotations: {name: type} of the code. It is used where the docstring gives no type. If the
            two contradict each other, the argument has no kind.
    """
    if _UNDERLINED.search(text):
        style = DocstringStyle.NUMPYDOC
    elif _INDENTED.search(text):
        style = DocstringStyle.GOOGLE
    else:
        return []
    try:
        parsed = docstring_parser.parse(text, style=style)
    except ParseError:
        return []
    found = []
    for entry in parsed.params:
        name = _NAME.fullmatch(entry.arg_name.strip())
        described = entry.args[0] in ("param", "other_param") and entry.description
        if not name or not described or entry.arg_name.startswith("*"):
            continue
        kind = _agreed(entry.type_name, (annotations or {}).get(name[1]))
        found.append(Argument(name[1], kind, " ".join(described.split())))
    return found


def kind_of(written: str) -> str | None:
    """Return the kind that a type means, or None: `int, optional` is an int, `int or str` unclear.

    `Optional[int]`, `int or None` and `int | None` are an int. Choices in quotes, such as
    `{'left', 'right'}`, are a string. A container has its own kind: a `list of int` is a list.
    """
    text = " ".join(re.sub(r"[`*]", "", written).split()).lower()
    if _STRINGS.match(text):
        text = _STRINGS.sub("str", text, count=1)
    text = _TRUTHS.sub("bool", text).strip("'\" ")
    inner = re.fullmatch(r"(?:\w+\.)?optional\[(.*)\]", text)
    text = inner[1] if inner else text
    while (bare := _BRACKETED.sub(" ", text)) != text:
        text = bare
    text = re.sub(r"\bof shape\b.*", "", text)
    text = _REMARK.sub("", text).strip(" ,.")
    parts = [part for part in re.split(r"\s+or\s+|\|", text) if part.strip(" .,") != "none"]
    if len(parts) != 1 or "," in parts[0] or "/" in parts[0]:
        return None
    words = re.split(r"\s+of\b", parts[0].strip())[0].split()
    last = words[-1].rpartition(".")[2] if words else ""
    return _KIND_OF.get(re.sub(r"[-_]", "", last))


def _agreed(documented: str | None, annotated: str | None) -> str | None:
    kinds = [kind_of(written) for written in (documented, annotated) if written]
    return kinds[0] if kinds and set(kinds) <= {kinds[0], None} else None
