"""Tars encoded once: memory-mapped latents, and the order in which training reads them."""
