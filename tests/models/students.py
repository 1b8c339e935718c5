"""Students as if they had learnt, and what their exported cards say run as it stands."""

import re
from pathlib import Path

import pytest
import torch

from rglcd.models.student import Student


def learnt(student: Student, *, by: float = 0.05) -> Student:
    """``student``, each weight moved by a normal number of deviation ``by``, always the same."""
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in student.trainable_parameters.values():
            parameter.add_(by * torch.randn(parameter.shape, generator=generator))
    return student


def card_example(folder: Path) -> str:
    """The one Python block of the card in ``folder``."""
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), flags=re.DOTALL)
    return code


def run_card(folder: Path, *, teacher: Path, monkeypatch: pytest.MonkeyPatch) -> torch.Tensor:
    """The latents that the card's own lines draw, from seed 7."""
    places = {'"this folder"': repr(str(folder)), '"org/teacher"': repr(str(teacher))}
    asked = {"manual_seed(0)": "manual_seed(7)", ").images[0]": ', output_type="latent").images[0]'}
    code = card_example(folder)
    for written, meant in (places | asked).items():
        code = code.replace(written, meant)
    monkeypatch.chdir(folder)
    names: dict[str, object] = {}
    exec(code, names)
    image = names["image"]
    assert isinstance(image, torch.Tensor)
    return image
