"""Names that come from outside, and the only way from them to a path.

An index of shards, a listing of a bucket, a checkpoint or an archive names files. Whoever wrote it
may be a stranger, so such a name is never joined to a folder in any other way.
"""

import re
from pathlib import Path

MAX_NAME_BYTES = 1024
"""Of a whole name in UTF-8: the limit of the names in a bucket."""

MAX_COMPONENT_BYTES = 255
"""Of one part between slashes: the limit of the usual file systems."""

_DRIVE = re.compile(r"[A-Za-z]:")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


def require_safe_name(name: object) -> str:
    """Return a name unchanged where it can only mean a place below the folder it is joined to.

    Args:
        name: Parts with single slashes between them, such as `model/config.json`.

    Raises:
        ValueError: The name is no text, is empty or too long, is absolute, holds a backslash or a
            control character (NUL is one), or a part of it is empty, `.`, `..` or starts with a
            drive letter.
    """
    problem = _problem(name)
    if problem:
        shown = ascii(name) if len(str(name)) <= 80 else ascii(str(name)[:77] + "...")
        raise ValueError(
            f"the name {shown} {problem}; expected the name of a file inside the folder, such as "
            "'model/config.json'"
        )
    return str(name)


def safe_join(folder: Path, name: object, *, file_may_be_link: bool = False) -> Path:
    """Return `folder / name`, which lies inside the folder even after its links are followed.

    Args:
        folder: Any folder of this machine; it need not exist yet.
        name: See `require_safe_name`.
        file_may_be_link: Whether the file itself may be a link that leads out of the folder. Set it
            for reading only: the Hub's cache holds links to files that lie elsewhere in the cache.

    Raises:
        ValueError: The name is not safe, or a link on the way leads out of the folder.
    """
    path = folder / require_safe_name(name)
    checked = path.parent if file_may_be_link else path
    if not checked.resolve().is_relative_to(folder.resolve()):
        raise ValueError(
            f"the name {ascii(name)} leads out of {folder} through a link; "
            "remove that link, or give another folder"
        )
    return path


def _problem(name: object) -> str | None:
    if not isinstance(name, str):
        return f"is no text but {type(name).__name__}"
    if not name:
        return "is empty"
    try:
        size = len(name.encode())
        longest = max(len(part.encode()) for part in name.split("/"))
    except UnicodeEncodeError:
        return "holds half of a surrogate pair, which no file name can hold"
    if size > MAX_NAME_BYTES:
        return f"has {size} bytes, more than {MAX_NAME_BYTES}"
    if longest > MAX_COMPONENT_BYTES:
        return f"has a part of {longest} bytes, more than {MAX_COMPONENT_BYTES}"
    if "\\" in name or _CONTROL.search(name):
        return "holds a backslash or a control character"
    if name.startswith("/"):
        return "is absolute"
    for part in name.split("/"):
        if part in ("", ".", ".."):
            return f"has the part {part!r}"
        if _DRIVE.match(part):
            return "has a part that starts with a drive letter"
    return None
