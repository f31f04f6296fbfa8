"""Soft prompts: how they start, how they are stored, and what can be done with stored ones.

`read.read_prompt` is the one reader of a prompt at a path, whatever its format.
"""
