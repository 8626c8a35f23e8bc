"""Tests, importable as a package: helpers are imported as `tests.x`."""
