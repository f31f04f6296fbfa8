"""Tasks made from the docstrings of installed packages; nothing is downloaded."""
