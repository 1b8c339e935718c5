"""Where a stage runs and who hears of it: TorchX apps, the process boundary, progress on a console, ``dvc.yaml``."""
