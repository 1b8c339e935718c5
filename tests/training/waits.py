"""Modes that refuse what a training step may not do: make the host wait for its device."""

from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class NothingRead(TorchDispatchMode):
    """Refuses what needs a value on the host: on a GPU it would wait until all that was asked before is done."""

    READS = frozenset(
        {"aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::_unique2", "aten::unique_dim", "aten::is_nonzero"}
    )

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket._qualified_op_name
        masks = name in ("aten::index", "aten::index_put_") and any(index is not None and index.dtype == torch.bool for index in args[1])
        waits = masks or name in self.READS
        assert not waits, f"the step waits for {name}"
        return func(*args, **(kwargs or {}))


class NothingListed(TorchFunctionMode):
    """Refuses to make a list of a tensor: torch's dispatcher does not see it."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func is not torch.Tensor.tolist, "the step waits for tolist"
        return func(*args, **(kwargs or {}))


class NothingMadeThere(TorchFunctionMode):
    """Refuses tensors that are made on ``meta``, which stands for a GPU here, of the host's numbers: their copy waits."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        assert func not in (torch.tensor, torch.as_tensor) or not result.is_meta, "numbers of the host are made a tensor of the device"
        return result


class NothingCopied(TorchDispatchMode):
    """Refuses to bring the host's tensors to ``meta``: a GPU copies unpinned memory while the host waits. A number is an argument."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given, made = (
            [tensor for tensor in tree_leaves(values) if isinstance(tensor, torch.Tensor)] for values in ((args, kwargs), result)
        )
        copies = func.overloadpacket._qualified_op_name in ("aten::_to_copy", "aten::copy_")
        host = [tensor for tensor in given if tensor.device.type == "cpu" and (copies or tensor.ndim)]
        assert not host or not any(tensor.is_meta for tensor in (*given, *made)), f"the step copies to the device in {func}"
        return result
