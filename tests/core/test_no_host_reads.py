"""A training step needs no host synchronisation: on `meta` tensors, which have no values, any read of one would raise."""

from functools import partial

import torch
from torch import Tensor

from rglcd.core.condition import Condition
from rglcd.core.consistency import BoundaryScalings
from rglcd.core.distances import pseudo_huber
from rglcd.core.distillation import Draws, gradient_share, lcd_terms, reward_gradient, rg_lcd_loss, solved_neighbour, surrogate
from rglcd.core.guidance import guidance_embedding, guided_teacher
from rglcd.core.prediction import Prediction
from rglcd.core.preference import contrastive_loss, hard_preferences, pairwise_preference_kl
from rglcd.core.sampling import multistep_sample
from rglcd.core.schedule import NoiseSchedule
from rglcd.core.solver import DDIMSolver
from rglcd.core.timesteps import inverse_gap_weights, lognormal_weights, uniform_weights, weighted_index


def test_distillation_step_reads_no_tensor_value_on_the_host(schedule: NoiseSchedule) -> None:
    table = schedule.to("meta")
    gain = torch.ones(1, 1, 1, 1, device="meta", requires_grad=True)
    z0, u, cond = (torch.empty(shape, device="meta") for shape in ((4, 4, 8, 8), (4,), (4, 3, 5)))

    def network(z_t: Tensor, t: Tensor, *_: Tensor) -> Prediction:
        return Prediction(x0=gain * z_t, eps=z_t)

    solver = DDIMSolver(table)
    terms = lcd_terms(
        student=network,
        target=network,
        neighbour=solved_neighbour(
            partial(guided_teacher, network), omega=u, cond=Condition(cond), uncond=Condition(cond[:1]), solver=solver
        ),
        z0=z0,
        cond=Condition(cond),
        draws=Draws(index=weighted_index(u, uniform_weights(table.ve_sigma()[solver.boundaries])), omega=u, eps=z0),
        solver=solver,
        scalings=BoundaryScalings(),
        distance=pseudo_huber,
    )
    scores, gradient = reward_gradient(terms.z0_hat, lambda z0, rows: z0.sum(dim=(1, 2, 3)), chunk_size=3)
    rg_lcd_loss(terms.distance, surrogate(terms.z0_hat, gradient), 1.0).backward()
    assert gain.grad is not None
    assert gradient_share(gradient, gradient).device == torch.device("meta")
    assert gain.grad.device == scores.device == guidance_embedding(u).device == torch.device("meta")


def test_preference_loss_reads_no_tensor_value_on_the_host() -> None:
    logits, embeds = torch.empty(3, 4, device="meta"), torch.empty(4, 8, device="meta")
    kl = pairwise_preference_kl(hard_preferences(logits), logits, privileged=2)
    loss = contrastive_loss(embeds, embeds, 10.0, group_ids=torch.empty(4, dtype=torch.long, device="meta"))
    assert kl.device == loss.device == torch.device("meta")


def test_timestep_and_image_sampling_read_no_tensor_value_on_the_host(schedule: NoiseSchedule) -> None:
    table, u = schedule.to("meta"), torch.empty(4, device="meta")
    weights = lognormal_weights(table.ve_sigma()[DDIMSolver(table).boundaries])
    levels = table.ve_sigma()[DDIMSolver(table).boundaries]
    assert weighted_index(u, weights).device == inverse_gap_weights(levels, weights).device == torch.device("meta")
    noise = torch.empty(4, 4, 8, 8, device="meta")
    assert multistep_sample(lambda z_t, t: z_t, [noise, noise], (999, 499), schedule=table).device == torch.device("meta")
