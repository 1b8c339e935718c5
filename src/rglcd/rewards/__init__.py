"""Reward models: pixels and captions in, one score a sample out. Whether a score has a gradient is said by its type."""
