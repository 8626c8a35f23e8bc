"""The site: its pages, the drawings (`draw`), and how docstrings are read for it."""
