"""The toy world: its pictures, its ground truth, and the models made for it."""
