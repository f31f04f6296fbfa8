"""Bytes become text: UTF-8, UTF-16 by its mark, or the encoding that the user names.

Nothing is guessed in silence, because a wrong guess trains on wrong letters. What is not UTF-8 is
an error that names the line and, where the bytes show it, the encoding to give.
"""

import codecs
import re

_MARKS = (  # UTF-32 first: its mark begins with that of UTF-16
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_NO_TEXT = {
    b"PK\x03\x04": "a zip archive or an Excel workbook",
    b"\x1f\x8b": "a file that gzip packed",
    b"BZh91AY": "a file that bzip2 packed",
    b"\xfd7zXZ\x00": "a file that xz packed",
    b"(\xb5/\xfd": "a file that zstd packed",
    b"PAR1\x15": "a Parquet file",
    b"\xd0\xcf\x11\xe0": "an old Excel workbook",
}
"""What files of other kinds start with."""


def decode(data: bytes, encoding: str, place: str, *, table: bool = False) -> str:
    r"""Return the text of a file, every line break as '\n'.

    Args:
        data: The file. A mark at its start (BOM) decides over `encoding`.
        encoding: Python's name of an encoding.
        place: What to call the file in a message.
        table: Whether a '\r' inside a line stays. In a table it belongs to a cell, unless it ends
            all lines of the file.

    Raises:
        ValueError: The bytes are not of that encoding.
    """
    encoding = next((name for mark, name in _MARKS if data.startswith(mark)), encoding)
    if kind := next((kind for mark, kind in _NO_TEXT.items() if data.startswith(mark)), None):
        raise ValueError(
            f"{place}:1: this is {kind}, whatever its name says; expected text, so give it the "
            "suffix of what it is, or unpack or save it as text"
        )
    if bare := _utf16_without_mark(data, encoding):
        raise ValueError(
            f"{place}:1: zero bytes stand as in UTF-16, but it has no mark; set "
            f"--task.encoding={bare}, or save the file as UTF-8"
        )
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        byte = f"byte 0x{data[error.start]:02x} at offset {error.start}"
        named = "UTF-8" if encoding.startswith("utf-8") else encoding
        advice = _advise(data) if named == "UTF-8" else "set task.encoding to how it was saved"
        raise ValueError(f"{place}:{line}: {byte} is not {named}; {advice}") from None
    text = text.replace("\r\n", "\n")
    return text if table and "\n" in text else text.replace("\r", "\n")


def _utf16_without_mark(data: bytes, encoding: str) -> str | None:
    """Return the name of an encoding of two bytes a letter that looks likely, or None.

    In ASCII every other byte is 0 then. In other alphabets the line breaks still have a 0 beside
    them, all on the same side.
    """
    if encoding.replace("_", "-").startswith(("utf-16", "utf-32")):
        return None
    start = data[:4096]
    even, odd = start[::2], start[1::2]
    for name, zeros, letters in (("utf-16-le", odd, even), ("utf-16-be", even, odd)):
        if len(odd) > 1 and 2 * zeros.count(0) > len(zeros) > 10 * letters.count(0):
            return name
        breaks = [at for at, letter in enumerate(letters) if letter == 10]
        if breaks and not any(zeros[at : at + 1] != b"\0" for at in breaks) and 10 not in zeros:
            return name
    return None


def _advise(data: bytes) -> str:
    """Return what to do about bytes that are not UTF-8: which encoding they are likely to have."""
    kept = len(re.findall(r"[^\x00-\x7f]", data.decode("utf-8", "ignore")))
    broken = data.decode("utf-8", "replace").count("\ufffd")
    if kept > broken:
        return (
            f"the other {kept} characters beyond ASCII are UTF-8, so the file is damaged there; "
            "mend the line"
        )
    high, letters = len(re.findall(rb"[\x80-\xff]", data)), len(re.findall(rb"[a-zA-Z]", data))
    try:
        data.decode("cp1252")
        western = high <= 1 + letters // 2  # other alphabets are written in high bytes throughout
    except UnicodeDecodeError:
        western = False
    if western:
        return (
            "it looks like Windows-1252, which Excel writes; set --task.encoding=cp1252, or "
            "convert it: iconv -f WINDOWS-1252 -t UTF-8"
        )
    return (
        "it does not look like Windows-1252 either; set --task.encoding to how it was saved, such "
        "as gb18030, shift_jis, euc_kr or cp1251, or save it as UTF-8"
    )
