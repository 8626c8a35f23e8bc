"""What is not looked into for examples: files whose framework is not installed."""

from importlib.util import find_spec

collect_ignore = (
    [] if find_spec("triton") else ["symcompile_torch/tiles.py", "symcompile_torch/triton.py"]
)
