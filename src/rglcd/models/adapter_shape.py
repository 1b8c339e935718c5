"""The shape of an adapter from its file alone, for one whose configuration is not at hand."""

from pathlib import Path

from safetensors import SafetensorError, safe_open

from rglcd.errors import InputError
from rglcd.models.student import ADAPTER_FILE, AdapterShape

_DOWN = ".lora_A.weight"


def adapter_shape_of(folder: Path) -> AdapterShape:
    """Rank and layers of the adapter in ``folder``; its scale is one, as loaders take it that are given no alpha.

    Raises :class:`InputError` for a file that is no adapter in diffusers' and peft's names, or one of several ranks.
    """
    path = folder / ADAPTER_FILE
    try:
        with safe_open(str(path), framework="pt") as file:
            ranks = {name: file.get_slice(name).get_shape()[0] for name in file.keys() if name.endswith(_DOWN)}  # noqa: SIM118 (no mapping)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path} cannot be opened: {' '.join(str(error).split())[:300]}") from None
    if not ranks:
        raise InputError(f"{path} has no layer in diffusers' and peft's names ({_DOWN.removeprefix('.')}); convert it with diffusers")
    if len(set(ranks.values())) > 1:
        raise InputError(
            f"{path} has layers of ranks {', '.join(map(str, sorted(set(ranks.values()))))}; adapters of one rank are drawn with"
        )
    rank = next(iter(ranks.values()))
    # Names begin with the network's: unet.down_blocks...
    return AdapterShape(rank, rank, tuple(sorted(name.partition(".")[2].removesuffix(_DOWN) for name in ranks)))
