"""Reward guided latent consistency distillation, as a Kubernetes-native pipeline."""

__version__ = "0.1.0"
