"""Pictures that are no pictures are said by the name of who drew them, never measured as black ones."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from rglcd.errors import InputError
from rglcd.evaluation.observation import Batches
from rglcd.store.shard_tasks import Part


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_picture_that_is_not_finite_ends_the_evaluation_with_the_models_name(value: float, tmp_path: Path) -> None:
    def draw(indices: Any) -> torch.Tensor:
        pixels = torch.zeros(len(indices), 3, 8, 8)
        pixels[-1, 0, 0, 0] = value
        return pixels

    panel: Any = SimpleNamespace(device=torch.device("cpu"))
    with pytest.raises(InputError, match=r"^draw rg-2: a picture among numbers 0 to 3 is not finite"):
        Batches(tmp_path, ["a"] * 8, 4, 8).observe(lambda: draw, lambda: panel, task="draw rg-2", share=Part(0, 1))
