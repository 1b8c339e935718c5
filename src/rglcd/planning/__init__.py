"""``rglcd plan``: the memory and hours of a run, counted on tensors without values, before a GPU is asked for."""
