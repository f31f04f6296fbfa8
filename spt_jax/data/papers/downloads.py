"""Downloads by other libraries: one error at the end, and not a warning for each attempt."""

import contextlib
import logging
from collections.abc import Iterator

_LOGGERS = ("urllib3.connectionpool", "huggingface_hub.utils._http")


@contextlib.contextmanager
def quiet_attempts() -> Iterator[None]:
    """While it lasts, the libraries beneath TFDS and `datasets` do not say that they try again."""
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        yield
    finally:
        for logger, level in zip(loggers, levels):
            logger.setLevel(level)
