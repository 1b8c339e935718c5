"""Pictures that are no pictures are said by the name of who drew them, never measured as black ones."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from rglcd.errors import InputError
from rglcd.evaluation.measurement import observe


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_picture_that_is_not_finite_ends_the_evaluation_with_the_models_name(value: float) -> None:
    def draw(indices: Any) -> torch.Tensor:
        pixels = torch.zeros(len(indices), 3, 8, 8)
        pixels[-1, 0, 0, 0] = value
        return pixels

    panel: Any = SimpleNamespace(device=torch.device("cpu"))
    with pytest.raises(InputError, match=r"^draw rg-2: a picture among numbers 0 to 3 is not finite"):
        observe(draw, panel, ["a"] * 8, batch_size=4, sheet_images=8, task="draw rg-2")
