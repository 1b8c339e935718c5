"""The algorithm: reward guided latent consistency distillation as pure functions of tensors.

Torch and the standard library only: no files, no devices, no global state, no configuration, no randomness (every
random number is an argument). Reading order:

    schedule -> prediction -> solver -> guidance     the teacher's probability-flow ODE and one step along it
    condition                                        the networks' conditioning: caption, sizes
    consistency -> distances -> distillation         the student's consistency function and its two losses
    preference                                       the latent proxy of an expert reward model
    timesteps, ema, sampling                         sampling of timesteps, moving average, few-step sampling

Papers: RG-LCD (Li et al., arXiv 2403.11027), LCM (Luo et al., arXiv 2310.04378), consistency models (Song et al.,
arXiv 2303.01469), iCT (Song & Dhariwal, arXiv 2310.14189), DDIM (Song et al., arXiv 2010.02502).
"""
