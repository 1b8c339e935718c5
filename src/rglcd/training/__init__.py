"""Training: the step loop, what is trained in it, and how it is saved, resumed and shared among ranks."""
