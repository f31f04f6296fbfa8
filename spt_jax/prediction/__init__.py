"""Rows of text answered by one frozen model, each with its own prompt."""
