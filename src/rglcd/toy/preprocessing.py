"""How the toy's expert and feature network want a picture: in [-1, 1]."""

from typing import Final

from torch import Tensor

from rglcd.toy.scene import CANVAS

PREPROCESSOR: Final = {
    "image_processor_type": "CLIPImageProcessor",
    "do_resize": True,
    "size": {"shortest_edge": CANVAS},
    "do_center_crop": True,
    "crop_size": {"height": CANVAS, "width": CANVAS},
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "do_convert_rgb": True,
    "resample": 3,
}


def normalise(pixels: Tensor) -> Tensor:
    """From [0, 1] to the [-1, 1] that `PREPROCESSOR` says the vision tower sees."""
    return (pixels - 0.5) / 0.5
