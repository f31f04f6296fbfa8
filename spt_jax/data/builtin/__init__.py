"""Tasks made of the docstrings of installed packages, which need no download."""
