"""The toy dataset: its images and ground truth, and the training of its teacher, reward model, judge and feature network."""
