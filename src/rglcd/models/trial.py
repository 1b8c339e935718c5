"""A teacher, its scorers and the feature network tried on what needs no data, so that what cannot work is said before anything is made.

Each trial is one caption and one drawn picture, on the CPU, the networks one after the other.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from rglcd.core.condition import Condition
from rglcd.errors import InputError
from rglcd.models.codec import Codec
from rglcd.models.families import STABLE_DIFFUSION, family_of
from rglcd.models.teacher import Teacher
from rglcd.models.text import TextEncoder

CAPTION: Final = "a small apple at the top on a white background"
"""As the toy world says it, whose scorers read no other."""

_LARGE: Final = 1 << 30
"""Bytes of weights above which a network is opened in bfloat16 for its trial: float32's range in half the memory."""
_CPU: Final = torch.device("cpu")


def try_teacher(folder: Path, *, resolution: int, num_ddim_steps: int) -> None:
    """Encode a caption, bring a drawn picture through the VAE and back, and call the network once at its smallest latent.

    Raises :class:`InputError`, one line with the folder and the rule, for another family, for what cannot be called, does not fit
    together or gives what is not finite, and for a grid of ``num_ddim_steps`` that the schedule cannot be divided into.
    """
    family_of(folder)
    refuse_weights_that_are_not_finite(folder)
    shape = _try_codec(folder, resolution=resolution)
    condition = _try_text(folder, resolution=resolution)
    _try_network(folder, condition, shape, resolution=resolution, num_ddim_steps=num_ddim_steps)


def refuse_weights_that_are_not_finite(folder: Path) -> None:
    """Raise :class:`InputError` naming the first tensor below ``folder`` with a value that is NaN or infinite; one tensor in memory."""
    for path in sorted(folder.rglob("*.safetensors")):
        try:
            with safe_open(str(path), framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 (no dictionary: it has keys() alone)
                    tensor = file.get_tensor(name)
                    if tensor.is_floating_point() and tensor.itemsize == 1:
                        tensor = tensor.float()  # torch does not ask this of eight bits
                    if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
                        what = "NaN" if bool(tensor.isnan().any()) else "infinite"
                        raise InputError(f"{path}: the tensor {name} holds values that are {what}; fetch or train it again")
        except (OSError, SafetensorError) as error:
            raise InputError(f"{path} cannot be opened as safetensors: {_one_line(error)}") from None


def try_scorer(name: str, score: Callable[[Tensor], Tensor]) -> None:
    """Give ``score`` a drawn picture (1, 3, H, W); :class:`InputError` unless one finite score (1,) comes back."""
    with _called(f"the scorer {name!r}"), torch.no_grad():
        scores = score(drawn_picture(64))
    _require(f"the scorer {name!r}", "a score", scores, (1,))


def try_features(folder: Path, features: Callable[[Tensor], Tensor]) -> None:
    """Give ``features`` a drawn picture (1, 3, H, W); :class:`InputError` unless one finite vector (1, D) comes back."""
    with _called(str(folder)):
        found = features(drawn_picture(64))
    _require(str(folder), "features", found, (1, found.shape[-1]))


def drawn_picture(side: int) -> Tensor:
    """Pixels (1, 3, side, side) in [0, 1]: a red circle on a blue ground, of shades."""
    line = torch.linspace(-1, 1, side)
    inside = ((line[:, None].square() + line[None].square()) < 0.5).float()
    shade = 0.5 + 0.4 * line.expand(side, side)
    return torch.stack([inside * shade, 0.1 * shade, (1 - inside) * shade])[None]


def _try_codec(folder: Path, *, resolution: int) -> tuple[int, int, int]:
    codec = Codec.load(folder, dtype=dtype_to_try(folder / "vae"), device=_CPU)
    shape = codec.latent_shape(resolution)
    side = 8 * resolution // shape[1]
    with _called(f"{folder}/vae"), torch.no_grad():
        pixels = drawn_picture(side).to(codec.vae.dtype)
        moments = codec.moments(pixels)
        latents = codec.latents(moments, torch.zeros_like(moments.mean))
        # Not Codec.decode, whose clamp makes ones of infinities.
        back = codec.vae.decode(moments.mean).sample
    _require(f"{folder}/vae", "latents", latents, (1, shape[0], 8, 8))
    _require(f"{folder}/vae", "the picture that it gives back", back, (1, 3, side, side))
    return shape


def _try_text(folder: Path, *, resolution: int) -> Condition:
    dtype = dtype_to_try(folder / family_of(folder).text_parts(folder)[-1].encoder)
    encoder = TextEncoder.load(folder, dtype=dtype, device=_CPU)
    with _called(f"{folder}/text_encoder"):
        condition = encoder.encode(encoder.tokenise([CAPTION])).with_time_ids(encoder.drawing_sizes(resolution))
        encoder.null()
    _require(f"{folder}/text_encoder", "the caption's embedding", condition.embeddings, tuple(condition.embeddings.shape))
    return condition


def _try_network(folder: Path, condition: Condition, shape: tuple[int, int, int], *, resolution: int, num_ddim_steps: int) -> None:
    family = family_of(folder)
    where = folder / family.folder
    teacher = Teacher.load(folder, dtype=dtype_to_try(where), device=_CPU, resolution=resolution)
    config = teacher.unet.config
    family.refuse(config, latent_channels=shape[0], where=where)
    width = condition.embeddings.shape[-1]
    if family is STABLE_DIFFUSION and config.encoder_hid_dim_type is None and config.cross_attention_dim != width:
        raise InputError(f"{where} reads captions of width {config.cross_attention_dim}, and the text encoder gives {width}")
    _require_grid(folder, teacher.schedule.num_timesteps, num_ddim_steps)
    side = family.patch(config)
    if family is not STABLE_DIFFUSION and shape[1] % side:
        raise InputError(f"model.resolution {resolution}: its {shape[1]} latents a side are not a multiple of {side}, the patch of {where}")
    z_t = torch.randn(1, shape[0], side, side, generator=torch.Generator().manual_seed(0))
    with _called(str(where)):
        predicted = teacher(z_t, torch.tensor([teacher.schedule.num_timesteps // 2]), condition)
    _require(str(where), "the predicted latents", predicted.x0, tuple(z_t.shape))


def _require_grid(folder: Path, num_timesteps: int, num_ddim_steps: int) -> None:
    """Training rounds such a grid up and diffusers' LCMScheduler rounds it down: the student would draw between its own timesteps."""
    if num_timesteps % num_ddim_steps:
        good = [steps for steps in range(2, num_timesteps // 2 + 1) if num_timesteps % steps == 0 and 10 <= steps <= 250]
        raise InputError(
            f"model.num_ddim_steps {num_ddim_steps} does not divide the {num_timesteps} timesteps of {folder}/scheduler: the student would "
            f"draw at other timesteps than it is trained at; choose one of {', '.join(map(str, good))}"
        )


def dtype_to_try(folder: Path) -> torch.dtype:
    """In which a network is opened for a trial: bfloat16 if its weights are more than 1 GiB, else float32."""
    num_bytes = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    return torch.bfloat16 if num_bytes > _LARGE else torch.float32


@contextmanager
def _called(what: str) -> Iterator[None]:
    """Whatever a network that others published, or a user's own reward, raises when it is called becomes one line."""
    try:
        yield
    except InputError as error:
        raise InputError(str(error)) from None
    except Exception as error:  # own rewards raise anything, and torch RuntimeError, IndexError, TypeError for parts that do not fit
        raise InputError(f"{what} cannot be called: {_one_line(error)}") from error


def _require(what: str, given: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    if tuple(tensor.shape) != shape:
        raise InputError(f"{what}: {given} has shape {tuple(tensor.shape)}, not {shape}")
    if not bool(tensor.isfinite().all()):
        raise InputError(f"{what}: {given} is not finite (NaN or infinite) for a drawn picture and the caption {CAPTION!r}")


def _one_line(error: BaseException) -> str:
    return re.sub(r"\s+", " ", f"{type(error).__name__}: {error}")[:300]
