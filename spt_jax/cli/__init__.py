"""The commands of `spt-jax`, a module each: read the options, call the library, print.

A new command is a new module here, and an entry in `COMMANDS` of `commands.py`.
"""
