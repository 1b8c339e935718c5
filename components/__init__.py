"""One thin Kubeflow component per stage: a signature, and a body that hands over to the launch layer.

The signature is the stage table's row: a dict per section, an artifact per input and output, and ``store``, the folder
in which the artifacts' bytes stay. Bodies run in their pods; only there is anything of ``rglcd`` imported.
"""

from pathlib import Path

import yaml

_LOCK = Path(__file__).resolve().parent.parent / "images" / "lock.yaml"

_IMAGES: dict[str, str] = yaml.safe_load(_LOCK.read_text(encoding="utf-8"))

TRAIN_IMAGE = _IMAGES["train"]
"""The image that every stage runs from, by digest: in the task itself, or in the job that the task launches."""

STEP_IMAGE = _IMAGES["step"]
"""The light image, by digest: what launches the jobs of the stages that need GPUs."""
