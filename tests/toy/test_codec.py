import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

from rglcd.toy.codec import SCALING_FACTOR, CodecSettings, fold_statistics, reconstruction_loss
from rglcd.toy.scene import all_scenes
from rglcd.toy.training import draw_pixels


def tiny_codec() -> AutoencoderKL:
    torch.manual_seed(0)
    return AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1,
        norm_num_groups=4,
        scaling_factor=SCALING_FACTOR,
    ).eval()


@torch.no_grad()
def test_fold_statistics_standardises_latents_and_keeps_reconstructions() -> None:
    images = draw_pixels(all_scenes(), count=64, first_seed=0) * 2 - 1
    codec = tiny_codec()
    before = codec.encode(images).latent_dist
    decoded = codec.decode(before.mean + 0.1 * before.std).sample
    fold_statistics(codec, images)
    after = codec.encode(images).latent_dist
    torch.testing.assert_close(codec.decode(after.mean + 0.1 * after.std).sample, decoded, rtol=1e-3, atol=1e-4)
    scaled = after.mean * codec.config.scaling_factor
    torch.testing.assert_close(scaled.mean((0, 2, 3)), torch.zeros(4), rtol=0, atol=1e-4)
    torch.testing.assert_close(scaled.std((0, 2, 3)), torch.ones(4), rtol=1e-3, atol=0)


def test_reconstruction_loss_weighs_the_object_above_the_background() -> None:
    image = torch.full((1, 3, 32, 32), -0.5)
    image[:, 0, 8:16, 8:16] = 0.8
    on_object, on_ground = image.clone(), image.clone()
    on_object[:, :, 10, 10] += 0.3
    on_ground[:, :, 28, 28] += 0.3
    settings = CodecSettings()
    costs = [reconstruction_loss(picture, image, settings, progress=1.0) for picture in (image, on_ground, on_object)]
    assert costs[0] == 0
    torch.testing.assert_close(costs[2], settings.foreground_weight * costs[1])
