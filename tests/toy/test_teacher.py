import torch

from rglcd.toy.scene import all_scenes, caption
from rglcd.toy.teacher import build_scheduler, build_text_encoder, tokenize
from rglcd.toy.tokenizer import build_tokenizer


def test_toy_schedule_is_stable_diffusions_with_v_prediction() -> None:
    scheduler = build_scheduler()
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64).square()
    torch.testing.assert_close(scheduler.alphas_cumprod.double(), (1 - betas).cumprod(0), rtol=1e-5, atol=1e-6)
    assert scheduler.config.prediction_type == "v_prediction"
    scheduler.set_timesteps(50)
    assert scheduler.timesteps[-1] == 1


def test_toy_text_encoder_pools_at_the_first_end_token() -> None:
    tokenizer = build_tokenizer()
    torch.manual_seed(0)
    encoder = build_text_encoder(tokenizer, width=16, num_layers=1).eval()
    ids = tokenize(tokenizer, [caption(all_scenes()[0]), ""])
    assert ids.shape == (2, 16)
    with torch.no_grad():
        output = encoder(ids)
    end = (ids == tokenizer.eos_token_id).int().argmax(1)
    assert end.tolist() == [12, 1]
    torch.testing.assert_close(output.pooler_output, output.last_hidden_state[torch.arange(2), end])
