"""Score heads: one linear layer, or five without activations, from a network's feature vector to a score."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from rglcd.errors import InputError

HEAD_FILE = "head.safetensors"


def score_head(widths: Sequence[int]) -> nn.Sequential:
    """Linear layers of ``widths``, without activations, as ImageReward and the aesthetic predictor v2 were trained."""
    return nn.Sequential(*(nn.Linear(width, next_width) for width, next_width in pairwise(widths)))


def widths_of(tensors: Mapping[str, Tensor], *, prefix: str = "") -> list[int]:
    """The widths of the head whose tensors are ``<prefix>0.weight``, ``<prefix>1.weight``, ..."""
    count = sum(name.startswith(prefix) and name.endswith(".weight") for name in tensors)
    weights = [tensors[f"{prefix}{number}.weight"] for number in range(count)]
    return [weights[0].shape[1], *(weight.shape[0] for weight in weights)]


def load_head(folder: Path) -> nn.Sequential:
    """The head in ``folder``, frozen. Raises :class:`InputError`."""
    try:
        tensors = load_file(str(folder / HEAD_FILE))
        head = score_head(widths_of(tensors))
        head.load_state_dict(tensors)
    except (OSError, KeyError, IndexError, RuntimeError, SafetensorError) as error:
        raise InputError(
            f"{folder / HEAD_FILE} cannot be read as a score head (0.weight, 0.bias, ...): {' '.join(str(error).split())[:300]}"
        ) from None
    return head.eval().requires_grad_(False)
