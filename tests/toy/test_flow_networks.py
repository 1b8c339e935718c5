"""The flow teacher's zeros, one of which is computed and counted for all."""

import torch
import torch.nn.functional as F
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from torch import Tensor

from rglcd.toy.flow_networks import NUM_ZEROS, FlowTeacherSettings, LastKeyCounts, build_flow_pipeline
from rglcd.toy.tokenizer import build_tokenizer


def test_one_zero_that_counts_for_all_gives_what_all_of_them_do() -> None:
    """The stock transformer's output and every gradient, its zeros one position many times over or each by itself."""
    torch.manual_seed(0)
    codec = AutoencoderKL(
        latent_channels=4,
        block_out_channels=(4,),
        sample_size=8,
        norm_num_groups=1,
        down_block_types=["DownEncoderBlock2D"],
        up_block_types=["UpDecoderBlock2D"],
    )
    transformer = build_flow_pipeline(FlowTeacherSettings(width=16, num_layers=3, text_width=8), codec, build_tokenizer()).transformer
    with torch.no_grad():
        for weights in transformer.parameters():  # new ones have gates of zero, behind which nothing is seen
            weights += 0.2 * torch.randn_like(weights)
    z_t, states, pooled = torch.randn(3, 4, 8, 8), torch.randn(3, 16, 16, requires_grad=True), torch.randn(3, 16)

    def outcome(num_zeros: int) -> list[Tensor]:
        transformer.zero_grad()
        states.grad = None
        padded = F.pad(states, (0, 0, 0, num_zeros))
        given = {"hidden_states": z_t, "timestep": torch.tensor([10.0, 500.0, 999.0]), "encoder_hidden_states": padded}
        predicted = transformer(**given, pooled_projections=pooled).sample
        predicted.square().mean().backward()
        assert states.grad is not None
        return [
            predicted.detach(),
            states.grad,
            *(weights.grad.clone() for weights in transformer.parameters() if weights.grad is not None),
        ]

    stock = outcome(NUM_ZEROS)
    with LastKeyCounts(NUM_ZEROS):
        once = outcome(1)
    torch.testing.assert_close(once, stock, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(outcome(1)[0], stock[0], atol=1e-3), "what one zero gives that counts for itself alone"
