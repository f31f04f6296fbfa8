"""Orbax's log is not for users: its progress, and the tracebacks of errors that it raises as well.

What it raises reaches the user as an exception of ours. Importing this is enough.
"""

import logging
import os

_PLACE = os.path.join("", "orbax", "checkpoint", "")

logging.getLogger("absl").addFilter(lambda record: _PLACE not in record.pathname)
