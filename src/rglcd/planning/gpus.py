"""Known GPUs: how much memory torch finds on each, and how fast its data sheet says it is."""

from dataclasses import dataclass

from rglcd.errors import InputError


@dataclass(frozen=True)
class Gpu:
    """One card.

    ``product`` is the value of the label ``nvidia.com/gpu.product`` that NVIDIA's feature discovery puts on its nodes. ``usable_gib``
    is what torch reports as the device's memory, a little less than the data sheet's (binary units, error correction, driver).
    ``bf16_tflops`` are dense, with float32 accumulation, from the data sheet at ``source``; TF32 runs at half of it on all of these.
    """

    name: str
    product: str
    usable_gib: float
    bf16_tflops: float
    source: str


_A100 = "https://www.nvidia.com/content/dam/en-zz/Solutions/Data-Center/a100/pdf/nvidia-a100-datasheet-us-nvidia-1758950-r4-web.pdf"
_RTX_30 = "https://images.nvidia.com/aem-dam/en-zz/Solutions/geforce/ampere/pdf/NVIDIA-ampere-GA102-GPU-Architecture-Whitepaper-V1.pdf"
_RTX_40 = "https://images.nvidia.com/aem-dam/Solutions/Data-Center/l4/nvidia-ada-gpu-architecture-whitepaper-v2.1.pdf"

GPUS = (
    Gpu("l4", "NVIDIA-L4", 22.0, 121.0, "https://www.nvidia.com/en-us/data-center/l4/"),
    Gpu("a10", "NVIDIA-A10", 22.0, 125.0, "https://www.nvidia.com/en-us/data-center/products/a10-gpu/"),
    Gpu("rtx-3090", "NVIDIA-GeForce-RTX-3090", 23.6, 71.0, _RTX_30),
    Gpu("rtx-4090", "NVIDIA-GeForce-RTX-4090", 23.6, 165.2, _RTX_40),
    Gpu("a100-40gb", "NVIDIA-A100-SXM4-40GB", 39.4, 312.0, _A100),
    Gpu("l40s", "NVIDIA-L40S", 44.4, 362.05, "https://www.nvidia.com/en-us/data-center/l40s/"),
    Gpu("a100-80gb", "NVIDIA-A100-SXM4-80GB", 79.1, 312.0, _A100),
    Gpu("h100-80gb", "NVIDIA-H100-80GB-HBM3", 79.1, 989.0, "https://www.nvidia.com/en-us/data-center/h100/"),
    Gpu("h200", "NVIDIA-H200", 139.7, 989.0, "https://www.nvidia.com/en-us/data-center/h200/"),
    Gpu("b200", "NVIDIA-B200", 178.3, 2250.0, "https://www.nvidia.com/en-us/data-center/dgx-b200/"),
)
"""By memory, the smallest first. Half of the sparse figure where a data sheet gives only that."""


def gpu_named(name: str) -> Gpu:
    """The card called ``name``. Raises :class:`InputError` for one that is not known."""
    for gpu in GPUS:
        if gpu.name == name:
            return gpu
    raise InputError(f"unknown GPU {name!r}; known are: {', '.join(gpu.name for gpu in GPUS)}")


def gpu_of_label(label: str) -> Gpu | None:
    """The card that a node label ``key=value`` names, if it is a known one's."""
    value = label.partition("=")[2]
    return next((gpu for gpu in GPUS if value in (gpu.name, gpu.product)), None)


def gpu_of_device(name: str) -> Gpu | None:
    """The card that torch calls ``name``, if it is a known one: feature discovery's label is that name with hyphens."""
    return next((gpu for gpu in GPUS if gpu.product == name.replace(" ", "-")), None)
