"""The arguments that a docstring documents: name, kind of value, description.

Both common styles are read: sections underlined with hyphens (numpydoc) and indented ones below
`Args:` (Google). A kind is one of a few plain words for what many spellings mean. The invariant: an
argument has a kind only where what is written allows no other one.
"""

import re
from collections.abc import Mapping
from typing import NamedTuple

import docstring_parser
from docstring_parser import DocstringStyle, ParseError

# Kind -> last word of the types that are of this kind, in lower case, without '-' and '_'.
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
        name: As it is written in code.
        kind: A key of `KINDS`, or None where its type is not given, unclear or none of them.
        description: What the docstring says about it, in one line.
    """

    name: str
    kind: str | None
    description: str


def parse_arguments(text: str, annotations: Mapping[str, str] | None = None) -> list[Argument]:
    """The arguments that a docstring describes, in its order; none where it cannot be parsed.

    Entries for several arguments at once, and for `*args` and `**kwargs`, are left out.

    Args:
        text: The docstring with its line breaks, without the indentation of the whole.
        annotations: {name: type} in the code. It serves where the docstring gives no type; one
            that contradicts the docstring leaves the argument without a kind.
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
    """The kind that a type stands for, or None: `int, optional` is an int, `int or str` is unclear.

    That None is allowed, too, does not count: `Optional[int]`, `int or None` and `int | None` are
    an int. Choices in quotes, such as `{'left', 'right'}`, are a string. A container counts, not
    what it holds: a `list of int` is a list.
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
