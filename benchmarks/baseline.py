"""The step that ours is compared with: straight calls of torch and diffusers, in the order and with the means of the published scripts.

    plain     diffusers' examples/consistency_distillation/train_lcm_distill_sd_wds.py (https://github.com/huggingface/diffusers)
    pixel     with the reward of the decoded prediction, of the whole batch at once, as https://github.com/Ji4chenLi/rg-lcd has it
    latent    with the proxy's reward, and the proxy tuned to the expert on three candidates, from the same source

As there: the images are encoded in the step, the teacher runs twice, the student trains in float32 under autocast, AdamW and
clipping are torch's defaults (`foreach`), and the moving average is a loop over the parameters. Nothing is slower than there: the
proxy reads the expert's cached text features, where the released code trains a text tower of 354 million parameters beside it.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn
from torch.nn.functional import kl_div, log_softmax, softmax

Score = Callable[[Tensor, Tensor], Tensor]
"""Scores (B,) of pixels (B, 3, H, W) in [0, 1] and the captions' features (B, D)."""

SIGMA_DATA, TIMESTEP_SCALING, HUBER_C, EMA_DECAY, LOGIT_SCALE = 0.5, 10.0, 0.001, 0.95, 100.0


@dataclass(frozen=True)
class Networks:
    """Everything that a step calls. ``teacher``, ``vae``, ``text_encoder`` and ``expert`` are frozen and in the run's precision."""

    student: UNet2DConditionModel
    target: UNet2DConditionModel
    teacher: UNet2DConditionModel
    vae: AutoencoderKL
    text_encoder: nn.Module
    expert: Score
    proxy: nn.Module
    alphas: Tensor
    sigmas: Tensor


@dataclass(frozen=True)
class StepInputs:
    """What one step trains on: ``images`` (B, 3, H, W) in [-1, 1] or, cached, ``latents`` (B, C, h, w), scaled; ids (B, L);
    features (B, D); grid ``index`` (B,), ``omega`` (B,) and ``noise`` (B, C, h, w)."""

    images: Tensor | None
    latents: Tensor | None
    input_ids: Tensor
    empty_ids: Tensor
    features: Tensor
    index: Tensor
    omega: Tensor
    noise: Tensor


class PublishedStep:
    """A student, its target, their optimiser, and :meth:`step`."""

    def __init__(self, networks: Networks, *, mode: str, dtype: torch.dtype, learning_rate: float = 1e-6, num_grid_steps: int = 50) -> None:
        self.networks, self.mode, self.dtype = networks, mode, dtype
        self.parameters = list(networks.student.parameters())
        self.optimizer = torch.optim.AdamW(self.parameters, lr=learning_rate, weight_decay=0.0)
        self.proxy_optimizer = torch.optim.AdamW(networks.proxy.parameters(), lr=3.3e-6, weight_decay=0.0)
        self.device = networks.alphas.device
        skip = len(networks.alphas) // num_grid_steps
        self.ddim_timesteps = torch.arange(1, num_grid_steps + 1, device=self.device) * skip - 1
        self.skip = skip

    def step(self, given: StepInputs) -> Tensor:
        """One step of everything that trains; the loss."""
        loss = self.backward(given)
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            for averaged, trained in zip(self.networks.target.parameters(), self.networks.student.parameters(), strict=True):
                averaged.mul_(EMA_DECAY).add_(trained, alpha=1 - EMA_DECAY)
        if self.mode == "latent":
            self._tune_proxy(given)
        return loss

    def backward(self, given: StepInputs) -> Tensor:
        """The loss (a scalar), whose gradients are then in the student."""
        networks = self.networks
        with torch.no_grad():
            self.latents = self._latents(given)
            prompt = networks.text_encoder(given.input_ids).last_hidden_state
            empty = networks.text_encoder(given.empty_ids).last_hidden_state.expand_as(prompt)
        start = self.ddim_timesteps[given.index]
        end = (start - self.skip).clamp(min=0)
        noisy = self._at(networks.alphas, start) * self.latents + self._at(networks.sigmas, start) * given.noise
        embedded = guidance_scale_embedding(given.omega, dim=networks.student.config.time_cond_proj_dim)
        with self._autocast():
            output = networks.student(noisy, start, timestep_cond=embedded, encoder_hidden_states=prompt.float()).sample
        self.predicted = self._consistency(output, noisy, start)
        with torch.no_grad():
            previous = self._teacher_step(noisy, start, end, given.omega, prompt, empty)
            with self._autocast():
                output = networks.target(previous, end, timestep_cond=embedded, encoder_hidden_states=prompt.float()).sample
            self.aim = self._consistency(output, previous, end)
        loss = ((self.predicted.float() - self.aim.float()).square() + HUBER_C**2).sqrt().sub(HUBER_C).mean()
        if self.mode == "pixel":
            loss = loss - networks.expert(self._decoded(self.predicted), given.features).mean()
        if self.mode == "latent":
            for parameter in networks.proxy.parameters():
                parameter.requires_grad_(False)
            loss = loss - networks.proxy(self.predicted, given.features).logits.mean() / LOGIT_SCALE
        loss.backward()
        return loss.detach()

    def _latents(self, given: StepInputs) -> Tensor:
        if given.latents is not None:
            return given.latents
        assert given.images is not None, "images or latents"
        encoded = self.networks.vae.encode(given.images.to(self.networks.vae.dtype)).latent_dist.sample()
        scaled: Tensor = encoded * self.networks.vae.config.scaling_factor
        return scaled.float()

    def _teacher_step(self, noisy: Tensor, start: Tensor, end: Tensor, omega: Tensor, prompt: Tensor, empty: Tensor) -> Tensor:
        """One DDIM step of the guided teacher: a pass with the caption, a pass without."""
        passes = []
        for condition in (prompt, empty):
            output = self.networks.teacher(noisy.to(self.dtype), start, encoder_hidden_states=condition.to(self.dtype)).sample.float()
            alpha, sigma = self._at(self.networks.alphas, start), self._at(self.networks.sigmas, start)
            passes.append((alpha * noisy - sigma * output, alpha * output + sigma * noisy))
        (x0, eps), (x0_empty, eps_empty) = passes
        scale = omega.reshape(-1, 1, 1, 1)
        x0, eps = x0 + scale * (x0 - x0_empty), eps + scale * (eps - eps_empty)
        stepped: Tensor = self._at(self.networks.alphas, end) * x0 + self._at(self.networks.sigmas, end) * eps
        return stepped

    def _consistency(self, output: Tensor, noisy: Tensor, t: Tensor) -> Tensor:
        x0 = self._at(self.networks.alphas, t) * noisy - self._at(self.networks.sigmas, t) * output.float()
        scaled = (TIMESTEP_SCALING * t.float()).reshape(-1, 1, 1, 1)
        root = (scaled.square() + SIGMA_DATA**2).sqrt()
        return SIGMA_DATA**2 / root.square() * noisy + scaled / root * x0

    def _tune_proxy(self, given: StepInputs) -> None:
        """The proxy learns the expert's preferences between prediction, target and real latents."""
        networks = self.networks
        for parameter in networks.proxy.parameters():
            parameter.requires_grad_(True)
        candidates = torch.cat([self.predicted.detach(), self.aim, self.latents])
        features = given.features.repeat(3, 1)
        with torch.no_grad():
            labels = LOGIT_SCALE * networks.expert(self._decoded(candidates), features).float().view(3, -1)
        logits = networks.proxy(candidates, features).logits.view(3, -1)
        loss = torch.zeros((), device=self.device)
        for one, other in ((0, 1), (0, 2), (1, 2)):
            expert = softmax(torch.stack([labels[one], labels[other]], dim=1), dim=1)
            proxy = log_softmax(torch.stack([logits[one], logits[other]], dim=1), dim=1)
            loss = loss + kl_div(proxy, expert, reduction="batchmean")
        loss.backward()
        self.proxy_optimizer.step()
        self.proxy_optimizer.zero_grad(set_to_none=True)

    def _decoded(self, latents: Tensor) -> Tensor:
        vae = self.networks.vae
        decoded: Tensor = vae.decode((latents / vae.config.scaling_factor).to(vae.dtype)).sample
        return (decoded / 2 + 0.5).clamp(0, 1)

    def _autocast(self) -> AbstractContextManager[Any]:
        return nullcontext() if self.dtype == torch.float32 else torch.autocast(self.device.type, dtype=self.dtype)

    def _at(self, table: Tensor, t: Tensor) -> Tensor:
        return table[t].reshape(-1, 1, 1, 1)


def guidance_scale_embedding(omega: Tensor, *, dim: int) -> Tensor:
    """Sines and cosines (B, dim) of 1000 omega, as the scripts' function of this name."""
    half = dim // 2
    frequencies = torch.exp(torch.arange(half, device=omega.device, dtype=omega.dtype) * -(torch.log(torch.tensor(10000.0)) / (half - 1)))
    phases = 1000.0 * omega[:, None] * frequencies
    return torch.cat([phases.sin(), phases.cos()], dim=1)
