"""Properties over random specs."""
