"""The latent proxy reward model: its score, its gradient, and saving and loading."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn.functional import cosine_similarity, normalize

from rglcd.errors import InputError
from rglcd.models.latent_reward import LatentRewardModel, LatentRewardShape
from rglcd.models.latent_towers import ResNetShape, VitShape

TOWERS = {"vit": VitShape(patch=4, width=16, num_layers=2, num_heads=2), "resnet": ResNetShape(blocks=(1, 2), width=32)}
CPU = torch.device("cpu")


@pytest.fixture(params=TOWERS)
def model(request: pytest.FixtureRequest) -> LatentRewardModel:
    return LatentRewardModel.at_random(LatentRewardShape(latent=(4, 8, 8), text_dim=12, tower=TOWERS[request.param]), seed=0)


def with_all_parts_at_work(model: LatentRewardModel) -> LatentRewardModel:
    """A residual block starts as its shortcut, which hides its branch: no weight stays where it started."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
    return model


@pytest.fixture
def pair() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(5, 4, 8, 8, generator=generator), torch.randn(5, 12, generator=generator)


def test_saved_latent_reward_model_loads_with_equal_weights(model: LatentRewardModel, pair, tmp_path: Path) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save(tmp_path / "lrm")
    loaded = LatentRewardModel.load(tmp_path / "lrm", device=CPU)
    assert loaded.shape == model.shape
    assert all(torch.equal(theirs, ours) for theirs, ours in zip(loaded(*pair), model(*pair), strict=True))
    loaded.save(tmp_path / "again")
    assert {path.name: path.read_bytes() for path in (tmp_path / "again").iterdir()} == {
        path.name: path.read_bytes() for path in (tmp_path / "lrm").iterdir()
    }


def test_score_is_a_cosine_and_logits_are_it_times_the_inverse_temperature(model: LatentRewardModel, pair) -> None:
    latents, text = pair
    score = model.score(latents, text)
    assert score.shape == (5,)
    assert score.abs().max() <= 1 + 1e-6
    torch.testing.assert_close(score, cosine_similarity(model.embed_latents(latents), model.embed_text(text)))
    torch.testing.assert_close(model(latents, text).logits, score / 0.07, rtol=1e-3, atol=1e-4)


def test_new_text_projection_is_the_identity(model: LatentRewardModel, pair) -> None:
    _, text = pair
    torch.testing.assert_close(model.embed_text(text), normalize(text, dim=-1))


def test_score_of_a_sample_does_not_depend_on_the_batch(model: LatentRewardModel, pair) -> None:
    latents, text = pair
    alone = torch.cat([model.score(latents[row : row + 1], text[row : row + 1]) for row in range(5)])
    torch.testing.assert_close(model.score(latents, text), alone)


def test_gradient_of_score_at_latents_equals_the_finite_difference(model: LatentRewardModel, pair) -> None:
    model, (latents, text) = with_all_parts_at_work(model.double()), (part.double() for part in pair)
    latents.requires_grad_()
    (gradient,) = torch.autograd.grad(model.score(latents, text).sum(), latents)
    direction, step = torch.randn(latents.shape, dtype=torch.float64), 1e-6
    with torch.no_grad():
        up, down = (model.score(latents + sign * step * direction, text).sum() for sign in (1, -1))
    assert (gradient * direction).sum().item() == pytest.approx((up - down).item() / (2 * step), rel=1e-6)


def test_seed_determines_the_weights_and_leaves_the_global_generator_alone(model: LatentRewardModel) -> None:
    torch.manual_seed(5)
    expected, _ = torch.randn(3), torch.manual_seed(5)
    again, other = (LatentRewardModel.at_random(model.shape, seed=seed) for seed in (0, 1))
    assert torch.equal(torch.randn(3), expected)
    same, different = (
        [torch.equal(ours, theirs) for ours, theirs in zip(model.parameters(), another.parameters(), strict=True)]
        for another in (again, other)
    )
    assert all(same)
    assert not all(different)


def learning(model: LatentRewardModel) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize("text", [True, False])
def test_train_last_trains_the_last_blocks_only(model: LatentRewardModel, text: bool) -> None:
    everything, last = learning(model), len(model.tower.blocks) - 1
    model.train_last(1, text=text)
    blocks = {name for name in everything if name.startswith(f"tower.blocks.{last}.")}
    head = {name for name in everything if name.startswith("tower.head.")}
    assert blocks
    assert head
    assert learning(model) == blocks | head | {"log_scale"} | ({"text_projection.weight"} if text else set())
    model.train_last(0, text=text)
    assert not blocks & learning(model)
    model.train_last(last + 1, text=True)
    before = everything - learning(model)
    assert before
    assert not any(name.startswith(("tower.blocks.", "tower.head.")) for name in before)


def test_train_last_refuses_more_blocks_than_the_tower_has(model: LatentRewardModel) -> None:
    with pytest.raises(InputError, match=f"num_blocks is 9; the latent tower has {len(model.tower.blocks)} blocks"):
        model.train_last(9, text=True)


def _config(folder: Path, **values: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def _drop_a_tensor(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["log_scale"]
    save_file(tensors, folder / "model.safetensors")


SPOILT = {
    "of another width": lambda folder: _config(folder, text_dim=13),
    "with an unknown tower": lambda folder: _config(folder, tower={"kind": "mixer"}),
    "with a tower of an unknown size": lambda folder: _config(folder, tower={"kind": "vit", "patch": 4, "depth": 2}),
    "with a tower that cannot be": lambda folder: _config(folder, tower={"kind": "resnet", "blocks": [1], "width": 20}),
    "with an unknown size": lambda folder: _config(folder, depth=3),
    "with a latent that is no shape": lambda folder: _config(folder, latent=4),
    "without weights": lambda folder: (folder / "model.safetensors").unlink(),
    "with a bad header": lambda folder: (folder / "model.safetensors").write_bytes(b"\xff" * 64),
    "without one tensor": _drop_a_tensor,
    "without a config": lambda folder: (folder / "config.json").unlink(),
}


@pytest.mark.parametrize("harm", SPOILT)
def test_folder_that_is_no_latent_reward_model_is_refused_in_one_line(model: LatentRewardModel, tmp_path: Path, harm: str) -> None:
    model.save(tmp_path)
    SPOILT[harm](tmp_path)
    with pytest.raises(InputError, match=str(tmp_path)) as refusal:
        LatentRewardModel.load(tmp_path, device=CPU)
    assert "\n" not in str(refusal.value)
