"""Documented arguments are found in both styles, and only clear types get a kind."""

import pytest

from spt_jax.data.builtin.arguments import KINDS, Argument, kind_of, parse_arguments

NUMPYDOC = """Computes a thing.

Parameters
----------
x : (N,) array_like
    The points, one for
    each row.
order, kind : int
    Two at once.
`axis` : int or None, optional
    Along which axis.
*args
    The rest.
bare
    Has no type.
empty : int

Returns
-------
out : float
    The thing.

Other Parameters
----------------
tol : float
    When to stop.
"""

GOOGLE = """Does a thing.

Args:
  path (`str`, *optional*, defaults to `"a"`): Where to
    read it from: a file.

    Or a folder.
  retries: How often to try.
  callback (Callable[[int], None]): Called at the end.
  **kwargs: The rest.

Returns:
  count (int): How many.

Raises:
  ValueError: Where it fails.
"""


def test_underlined_sections():
    assert parse_arguments(NUMPYDOC) == [
        Argument("x", "array", "The points, one for each row."),
        Argument("axis", "int", "Along which axis."),
        Argument("bare", None, "Has no type."),
        Argument("tol", "float", "When to stop."),
    ]


def test_indented_sections():
    assert parse_arguments(GOOGLE) == [
        Argument("path", "str", "Where to read it from: a file. Or a folder."),
        Argument("retries", None, "How often to try."),
        Argument("callback", "function", "Called at the end."),
    ]


@pytest.mark.parametrize("text", ["", "Parameters are good.", "Args:\n  no colon here\n"])
def test_nothing_to_be_parsed(text):
    assert parse_arguments(text) == []


@pytest.mark.parametrize(
    ("documented", "annotated", "kind"),
    [
        (None, "int | None", "int"),
        ("int", "int", "int"),
        ("int", "MyInt", "int"),
        ("int", "float", None),
        ("int or str", "int", None),
        ("Thing", None, None),
        (None, None, None),
    ],
)
def test_annotation_serves_where_it_does_not_contradict(documented, annotated, kind):
    written = f"size ({documented})" if documented else "size"
    annotations = {"size": annotated} if annotated else {}
    (argument,) = parse_arguments(f"Does.\n\nArgs:\n  {written}: How many.", annotations)
    assert argument == Argument("size", kind, "How many.")


CLEAR = {
    "int": "int; integer, optional; non-negative int; Optional[int]; None or int; `int`, default 3",
    "float": "float; double (default: 1e-07); float | None; typing.Optional[float]",
    "bool": "bool; boolean; {True, False}; {False, True} optional; `bool`, *optional*",
    "str": "str; string; {'a', 'b'}; {'left', \"right\"}, optional; 'str'; str {'full', 'same'}",
    "array": "array_like; ndarray, shape (n,); 1-D array; (M, N) array_like; array of ints; "
    "`torch.LongTensor` of shape `(a, b)`; jax.typing.ArrayLike | None; complex np.ndarray",
    "list": "list of str; tuple[int, ...]; Sequence[int | str]; `List[str]`; tuple of int",
    "dict": "dict; Mapping[str, int]; `dict[str, list[int]]`, *optional*; dictionary of floats",
    "function": "callable; function; Callable[[int, str], None] | None; tp.Callable[..., Any]",
}


@pytest.mark.parametrize("kind", KINDS)
def test_spellings_of_a_kind(kind):
    assert {written: kind_of(written) for written in CLEAR[kind].split("; ")} == dict.fromkeys(
        CLEAR[kind].split("; "), kind
    )


@pytest.mark.parametrize(
    "written",
    [
        *("int or str", "int | str", "Union[int, str]", "int or list of int", "str, int, or None"),
        *("list[str] | dict[str, int]", "{None, int}", "{1, 2}", "scalar", "Path", "None", "", ","),
        *("ndarray/list", "array_like or scalar", "dtype", "arguments", "{'a', 'b'} or int"),
    ],
)
def test_types_without_a_kind(written):
    assert kind_of(written) is None
