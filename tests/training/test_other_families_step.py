"""A training step of the families beside Stable Diffusion waits for no device either, but for what docs/teachers.md says."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from rglcd.stages.assembly import make_distiller
from rglcd.training.distiller import Distiller
from tests.tiny_flows import write_tiny_flux, write_tiny_lumina2, write_tiny_pixart, write_tiny_sana, write_tiny_sd3
from tests.tiny_line import published_model_settings, run, tiny_config, write_published_models, write_tiny_source
from tests.training.conftest import materials_of
from tests.training.waits import NothingListed, NothingRead

pytestmark = pytest.mark.slow
SAME, FULL = ("distillation.student={kind: same_inputs}",), ("distillation.student={kind: full}",)
CACHED = "caching.text_embeddings=true"


def distiller_of(root: Path, write: Callable[[Path], None], *overrides: str) -> Distiller:
    """After one step, which makes the grid."""
    write_published_models(root / "models", teacher=write)
    plain = ("distillation.omega=[4, 4]", "distillation.arms=[lcm]", "reward={kind: none}")
    config = tiny_config(*published_model_settings(root / "models"), *plain, *overrides)
    write_tiny_source(root / "data")
    for stage in ("prepare", "shard", "cache"):
        run(root, config, stage)
    materials = materials_of(root, config)
    distiller = make_distiller(materials, config.reward, num_steps=4, world=materials.world)
    distiller.step(0)
    return distiller


@pytest.mark.parametrize(
    ("write", "overrides"),
    [
        (write_tiny_sd3, SAME),
        (write_tiny_pixart, (*SAME, CACHED)),
        (write_tiny_sana, SAME),
        (write_tiny_sana, (*FULL, CACHED)),
        (write_tiny_flux, SAME),
    ],
    ids=["sd3", "pixart", "sana", "sana-sprint", "flux-dev"],
)
def test_a_step_of_another_family_never_waits_for_the_device(
    tmp_path: Path, write: Callable[[Path], None], overrides: tuple[str, ...]
) -> None:
    distiller = distiller_of(tmp_path, write, *overrides)
    with NothingRead(), NothingListed():
        figures = distiller.step(1)
    assert torch.isfinite(figures["distance"])


@pytest.mark.parametrize(
    ("write", "overrides"), [(write_tiny_pixart, SAME), (write_tiny_lumina2, (*SAME, CACHED))], ids=["pixart-not-cached", "lumina2"]
)
def test_two_wait_as_the_page_on_teachers_says(tmp_path: Path, write: Callable[[Path], None], overrides: tuple[str, ...]) -> None:
    distiller = distiller_of(tmp_path, write, *overrides)
    with pytest.raises(AssertionError, match="the step waits for"), NothingRead(), NothingListed():
        distiller.step(1)
