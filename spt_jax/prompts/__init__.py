"""Prompts in and out: those of PEFT and of Google's code as ours, and ours as theirs.

A format is read into a `Stored` prompt or refused, and written whole or not at all.
"""
