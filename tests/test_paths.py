"""A name from outside never becomes a path outside of its folder."""

import os
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from spt_jax.paths import require_safe_name, safe_join

REFUSED = {
    "": "is empty",
    ".": "has the part '.'",
    "..": "has the part '..'",
    "../x": "has the part '..'",
    "a/../../x": "has the part '..'",
    "a/./b": "has the part '.'",
    "a//b": "has the part ''",
    "a/": "has the part ''",
    "/etc/passwd": "is absolute",
    "//host/share": "is absolute",
    "..\\x": "holds a backslash or a control character",
    "a\\b": "holds a backslash or a control character",
    "a\0b": "holds a backslash or a control character",
    "a\nb": "holds a backslash or a control character",
    "\x1b[2Ja": "holds a backslash or a control character",
    "C:/x": "has a part that starts with a drive letter",
    "a/c:x": "has a part that starts with a drive letter",
    "a" * 256: "has a part of 256 bytes, more than 255",
    "a/" + "é" * 128: "has a part of 256 bytes, more than 255",
    "/".join(["a" * 9] * 103): "has 1029 bytes, more than 1024",
    "a\ud800": "holds half of a surrogate pair",
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_name_that_may_lead_elsewhere_is_refused(name, tmp_path):
    with pytest.raises(ValueError) as caught:
        safe_join(tmp_path, name)
    assert REFUSED[name] in str(caught.value)
    assert "expected the name of a file inside the folder" in str(caught.value)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("name", [None, 3, b"a", ["a"], Path("a")])
def test_what_is_no_text_is_no_name(name):
    with pytest.raises(ValueError, match=f"is no text but {type(name).__name__}"):
        require_safe_name(name)


@pytest.mark.parametrize(
    "name", ["a", "model/config.json", "...", "..a", "a..", " ", "~", "%2e%2e", "ä:b", "a" * 255]
)
def test_an_ordinary_name_is_joined(name, tmp_path):
    assert safe_join(tmp_path, name) == tmp_path / name
    assert safe_join(tmp_path / "not" / "there", name) == tmp_path / "not" / "there" / name


PIECES = st.sampled_from(["..", ".", "", "/", "\\", "a", "b.c", "C:", "~", "\0", "é", "..."])
NAMES = st.one_of(
    st.text(), st.lists(PIECES, max_size=8).map("/".join), st.lists(PIECES).map("".join)
)


@given(NAMES)
@example("a/../..")
def test_a_name_lies_below_its_folder_or_is_refused(name):
    folder = Path("/somewhere/folder")
    try:
        path = safe_join(folder, name)
    except ValueError:
        return
    assert path.parts == (*folder.parts, *name.split("/"))
    assert os.path.normpath(path) == str(path) and path != folder


def test_links_are_followed_before_a_name_is_believed(tmp_path):
    folder, outside = tmp_path / "folder", tmp_path / "outside"
    outside.mkdir()
    (folder / "inner").mkdir(parents=True)
    (folder / "out").symlink_to(outside)
    (folder / "in").symlink_to(folder / "inner")
    (folder / "file").symlink_to(outside / "file")
    assert safe_join(folder, "in/x") == folder / "in" / "x"
    for name in ("out", "out/x", "file"):
        with pytest.raises(ValueError, match=f"'{name}' leads out of .*folder through a link"):
            safe_join(folder, name)
    # The Hub's cache: a folder whose files are links to files elsewhere.
    assert safe_join(folder, "file", file_may_be_link=True) == folder / "file"
    with pytest.raises(ValueError, match="leads out of .*folder through a link"):
        safe_join(folder, "out/x", file_may_be_link=True)
    # The folder itself may be reached through a link.
    (tmp_path / "alias").symlink_to(folder)
    assert safe_join(tmp_path / "alias", "inner/x") == tmp_path / "alias" / "inner" / "x"
