"""Safetensors files written one tensor at a time: safetensors' own writer holds all of them in memory, and their bytes beside them."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_NAMES: Mapping[torch.dtype, str] = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.float64: "F64"}


def write_tensors(path: Path, read: Mapping[str, Callable[[], Tensor]]) -> None:
    """Write to ``path`` what each of ``read`` returns, by name; each is called twice, first for its type and shape alone.

    Integers, such as the positions in some published text encoders, are no weights and are left out.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    written, end = [], 0
    for name in sorted(read):
        tensor = read[name]()
        if tensor.dtype not in _NAMES:
            continue
        begin, end = end, end + tensor.nbytes
        header[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
        written.append(name)
    head = json.dumps(header, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as stream:
        stream.write(len(head).to_bytes(8, "little") + head)
        for name in written:
            stream.write(read[name]().contiguous().view(-1).view(torch.uint8).numpy().data)
