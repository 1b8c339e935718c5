"""Artifacts: manifests, files in folders and object stores, local copies, locks and disk space."""
