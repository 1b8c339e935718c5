"""Presets: what differs from the defaults, with the source of each number beside it."""
