"""The page at `/`: one HTML file, which loads nothing from anywhere else.

Its headers allow the style and the script in it, by their hashes, and requests to this server. A
browser then runs no other script, whatever a text or the name of a prompt holds.
"""

import base64
import hashlib
import re
from pathlib import Path

PAGE = (Path(__file__).parent / "page.html").read_bytes()


def _hash_of(tag: bytes) -> str:
    """Return the hash of the element of this kind in the page, as a browser wants it."""
    found = re.search(b"<%b>(.*?)</%b>" % (tag, tag), PAGE, re.DOTALL)
    assert found, f"the page has no {tag.decode()}"
    return f"'sha256-{base64.b64encode(hashlib.sha256(found[1]).digest()).decode()}'"


HEADERS = {
    "Content-Security-Policy": "; ".join(
        (
            "default-src 'none'",
            f"script-src {_hash_of(b'script')}",
            f"style-src {_hash_of(b'style')}",
            "connect-src 'self'",
            "img-src data:",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        )
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
