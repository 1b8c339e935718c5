"""Where a stage runs: settings, TorchX apps, cluster jobs and their logs, Kubeflow, the process boundary, ``dvc.yaml``."""
