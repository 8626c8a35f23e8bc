"""Leaves the extension of the site's builder to those who have installed the builder."""

from importlib.util import find_spec

collect_ignore = [] if find_spec("griffe") else ["docstrings.py"]
