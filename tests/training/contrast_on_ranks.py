"""``python -m tests.training.contrast_on_ranks FOLDER``: one contrastive step's gradients, by however many ranks torchrun starts."""

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from rglcd.core.preference import contrastive_loss
from rglcd.models.latent_reward import LatentRewardModel, LatentRewardShape
from rglcd.models.latent_towers import VitShape
from rglcd.training.distributed import join_world
from rglcd.training.preference import caption_groups

BATCH = 8


def main(folder: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    latents, text = torch.randn(BATCH, 4, 8, 8, generator=generator).double(), torch.randn(BATCH, 6, generator=generator).double()
    ids = torch.tensor([0, 1, 2, 3, 0, 4, 1, 5])[:, None]  # two captions on both ranks
    shape = LatentRewardShape((4, 8, 8), 6, VitShape(patch=4, width=16, num_layers=1, num_heads=2))
    model = LatentRewardModel.at_random(shape, seed=0).double()
    with join_world() as world:
        rows, network = world.rows(BATCH), world.wrap(model)
        ours = network(latents[rows], text[rows])
        groups = caption_groups(world.gather(ids[rows]))
        loss = contrastive_loss(world.gather(ours.latents), world.gather(ours.text), ours.scale, group_ids=groups)
        loss.backward()
        gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
        save_file({"loss": loss.detach(), **gradients}, folder / f"{world.rank}-of-{world.size}.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
