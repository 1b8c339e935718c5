"""Reward models: pixels and captions in, one score per sample out. A type says whether the score has a gradient."""
