"""The Kubeflow pipeline: the stage table, walked. ``python -m pipelines compile | run | submit``."""
