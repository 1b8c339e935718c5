"""A laptop, CI and the pipeline compiler need no torch: what launches and compiles imports without it."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

BLOCKED = ("torch", "torchvision", "diffusers", "transformers", "safetensors", "webdataset", "numpy", "PIL")

IMPORT_ALL = f"""
import sys
for name in {BLOCKED!r}:
    sys.modules[name] = None  # importing it now raises
import importlib, pkgutil
import components, pipelines, rglcd.launch
for package in (components, pipelines, rglcd.launch):
    for module in pkgutil.iter_modules(package.__path__, package.__name__ + "."):
        importlib.import_module(module.name)
for name in ("rglcd.config", "rglcd.progress", "rglcd.errors", "rglcd.cli", "rglcd.stages.table", "rglcd.stages.run"):
    importlib.import_module(name)
"""


def test_launcher_and_pipeline_import_without_torch() -> None:
    ran = subprocess.run([sys.executable, "-c", IMPORT_ALL], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr


def test_run_in_one_process_imports_no_launcher_library() -> None:
    """``rglcd run`` in this process pays for neither Kubeflow, TorchX nor DVC."""
    code = "import sys, rglcd.cli, rglcd.launch.execute; print({'kfp', 'torchx', 'dvc', 'kubernetes'} & sys.modules.keys())"
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "set()"
