"""The latent towers: the published sizes, latents of any size, no parameter without effect."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from rglcd.config import ResNetTower as ResNetConfig
from rglcd.config import VitTower as VitConfig
from rglcd.errors import InputError
from rglcd.models.latent_towers import Attention, GridPositions, ResNetShape, VitShape, build_tower
from rglcd.stages.pretrain import tower_shape

SMALL = {"vit": VitShape(patch=4, width=16, num_layers=2, num_heads=2), "resnet": ResNetShape(blocks=(1, 2), width=32)}


def small(kind: str, *, latent: tuple[int, int, int] = (4, 16, 16)) -> nn.Module:
    torch.manual_seed(0)
    tower = build_tower(SMALL[kind], latent=latent, output=6)
    with torch.no_grad():
        # A residual block starts as its shortcut: let its branch be seen.
        for parameter in tower.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return tower.eval()


@pytest.mark.parametrize(("config", "millions"), [(VitConfig(), 38.5), (ResNetConfig(), 38.2)], ids=["vit", "resnet"])
@pytest.mark.parametrize("side", [64, 96, 128])
def test_latent_towers_have_the_published_parameter_counts(config: object, millions: float, side: int) -> None:
    """RG-LCD's latent_ViT and latent_RN50 on 512 pixels; a larger picture adds its positions, and nothing else."""
    with torch.device("meta"):
        tower = build_tower(tower_shape(config), latent=(4, side, side), output=1024)
        features = tower(torch.empty(2, 4, side, side))
    num_positions = sum(parameter.numel() for name, parameter in tower.named_parameters() if name.endswith("positions.table"))
    with torch.device("meta"):
        at_512 = build_tower(tower_shape(config), latent=(4, 64, 64), output=1024)
    published = sum(parameter.numel() for parameter in at_512.parameters())
    assert round(published / 1e6, 1) == millions
    position_width = next(parameter for name, parameter in tower.named_parameters() if name.endswith("positions.table")).shape[1]
    side_of_grid = side // 4 if isinstance(config, VitConfig) else side // 32
    assert num_positions == (side_of_grid**2 + 1) * position_width
    assert features.shape == (2, 1024)


@settings(max_examples=25, deadline=None)
@given(kind=st.sampled_from(sorted(SMALL)), height=st.integers(1, 40), width=st.integers(1, 40))
def test_latent_towers_accept_latents_of_any_height_and_width(kind: str, height: int, width: int) -> None:
    made_for_it = build_tower(SMALL[kind], latent=(4, height, width), output=6)
    latents = torch.randn(2, 4, height, width)
    for tower in (made_for_it, small(kind)):
        features = tower(latents)
        assert features.shape == (2, 6)
        assert features.isfinite().all()


@pytest.mark.parametrize("kind", SMALL)
@pytest.mark.parametrize("shape", [(16, 16), (15, 18), (32, 12)])
def test_features_depend_on_every_latent(kind: str, shape: tuple[int, int]) -> None:
    latents = torch.randn(1, 4, *shape, requires_grad=True)
    (gradient,) = torch.autograd.grad(small(kind)(latents).sum(), latents)
    assert (gradient.abs().sum(dim=(0, 1)) > 0).all(), "no row or column falls off an edge"


def test_positions_are_exact_on_their_own_grid_and_interpolated_on_another() -> None:
    positions = GridPositions((6, 4), 2)
    with torch.no_grad():
        rows, columns = torch.meshgrid(torch.arange(6.0), torch.arange(4.0), indexing="ij")
        positions.table[1:] = torch.stack([rows.flatten(), columns.flatten()], dim=1)
    assert positions((6, 4)) is positions.table
    other = positions((12, 4))
    assert torch.equal(other[0], positions.table[0])
    down, across = other[1:].T.unflatten(1, (12, 4))
    # Away from the edges two of twice as many rows are one of before, and the columns are where they were.
    torch.testing.assert_close(down[6:8] - down[4:6], torch.ones(2, 4))
    torch.testing.assert_close(across, torch.arange(4.0).expand(12, 4))


@pytest.mark.parametrize("kind", SMALL)
def test_features_depend_on_the_position_of_patches(kind: str) -> None:
    latents = torch.randn(1, 4, 16, 16)
    tower = small(kind)
    assert not torch.allclose(tower(latents), tower(latents.roll((8, 8), (2, 3))), atol=1e-4)


def test_attention_equals_torchs_whatever_its_key_bias() -> None:
    """The bias that is left out is one that a softmax does not see."""
    torch.manual_seed(0)
    attention, theirs = Attention(8, 2, output=8), nn.MultiheadAttention(8, 2, batch_first=True)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([attention.query.weight, attention.key.weight, attention.value.weight]))
        theirs.in_proj_bias.copy_(torch.cat([attention.query.bias, torch.randn(8), attention.value.bias]))
        theirs.out_proj.load_state_dict(attention.output.state_dict())
    queries, context = torch.randn(3, 2, 8), torch.randn(3, 5, 8)
    torch.testing.assert_close(attention(queries, context), theirs(queries, context, context)[0])


@pytest.mark.parametrize("kind", SMALL)
def test_every_parameter_has_a_gradient_above_rounding(kind: str) -> None:
    """In float64 every parameter's gradient stands far above rounding: Adam would turn noise into steps of full size."""
    tower = small(kind).double()
    tower(torch.randn(4, 4, 16, 16, dtype=torch.float64)).square().sum().backward()
    for name, parameter in tower.named_parameters():
        assert parameter.grad.norm() > 1e-9 * parameter.numel() ** 0.5, name


@pytest.mark.parametrize("kind", SMALL)
def test_features_do_not_depend_on_the_batch_in_training_mode(kind: str) -> None:
    tower, latents = small(kind).train(), torch.randn(3, 4, 16, 16)
    torch.testing.assert_close(tower(latents), torch.cat([tower(latent[None]) for latent in latents]), rtol=1e-4, atol=1e-5)
    assert not list(tower.buffers()), "nothing is averaged from batch to batch"


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: replace(SMALL["vit"], num_heads=3), "num_heads 3 does not divide its width 16"),
        (lambda: replace(SMALL["resnet"], width=48), "multiples of 32"),
        (lambda: replace(SMALL["resnet"], blocks=()), "has stages"),
    ],
)
def test_impossible_tower_sizes_are_refused(make, said: str) -> None:
    with pytest.raises(InputError, match=said):
        make()
