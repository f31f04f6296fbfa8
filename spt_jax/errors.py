"""The one exception of our own."""


class RunError(RuntimeError):
    """The input was good but the run failed: loss not finite, no whole checkpoint, disk, device.

    Bad input raises ValueError, TypeError or FileNotFoundError instead. The command line turns
    those into exit code 2 and this one into exit code 1.
    """
