"""The command `spt-jax`: finds the one that is meant, and turns an error into a line and a code.

A command (`spt_jax.cli`) reads its options, calls one library function and prints what that
returns. With `--json`, stdout is one JSON object and everything else goes to stderr. An error is
one line on stderr, and a traceback with `--debug`: exit code 2 for bad input, 1 for a failed run, 3
for a finished one that left rows out, 75 for one that a signal ended and that is saved.
"""

import contextlib
import os
import sys
import traceback
from collections.abc import Sequence

from spt_jax import __version__
from spt_jax.cli.commands import COMMANDS
from spt_jax.cli.printing import hide_orbax_log, warnings_on_stderr
from spt_jax.errors import describe, suggest


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        argv: The arguments after `spt-jax`; those of the process by default.

    Returns:
        0, 2 for bad input, 1 for a failed run, 3 for a finished one that left rows out, 75 for a
        run that a signal ended and that is saved, 130 for Ctrl-C, 141 for a broken pipe.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        with contextlib.suppress(SystemExit), warnings_on_stderr():  # argparse exits after --help
            _dispatch(argv)
        sys.stdout.flush()
        return 0
    except (Exception, KeyboardInterrupt) as error:
        if isinstance(error, BrokenPipeError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush at exit
        if "--debug" in argv:
            traceback.print_exc()
        line, code = describe(error, argv)
        if line:
            print(f"spt-jax: {line}", file=sys.stderr)
        return code


def _dispatch(argv: Sequence[str]) -> None:
    if not argv:
        raise ValueError(f"no command is given; commands: {', '.join(COMMANDS)}")
    name, *rest = argv
    if name in ("-h", "--help"):
        print(_usage())
    elif name == "--version":
        print(f"spt-jax {__version__}")
    elif name in COMMANDS:
        hide_orbax_log()
        COMMANDS[name](rest)
    else:
        raise ValueError(
            f"unknown command '{name}'; commands: {', '.join(COMMANDS)}{suggest(name, COMMANDS)}"
        )


def _usage() -> str:
    commands = "\n".join(f"  {name:<10}{run.__doc__}" for name, run in COMMANDS.items())
    return (
        "usage: spt-jax COMMAND [OPTIONS]\n\nSoft prompts for a frozen T5.\n\n"
        f"commands:\n{commands}\n\n"
        "`spt-jax COMMAND --help` explains every option; `spt-jax --version` prints the version.\n"
        "Exit codes: 0; 2 bad input; 1 the run failed; 3 it is finished but some rows failed;\n"
        "75 SIGTERM or Ctrl-C ended it and it is saved: the same command goes on."
    )
