"""Memory that a training step keeps."""

from collections.abc import Callable

import torch
from torch import nn


def saved_for_backward(forward: Callable[[], object], model: nn.Module) -> int:
    """Bytes that autograd keeps from a forward pass (with its loss) for the backward pass.

    Each storage is counted once; parameters and buffers of the model, which are there anyway, are not.
    """
    own = {t.untyped_storage()._cdata for t in (*model.parameters(), *model.buffers())}
    saved: dict[int, torch.UntypedStorage] = {}  # which keeps them, or a freed storage's address would be used again

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            saved[storage._cdata] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = forward()
    del result
    return sum(storage.nbytes() for storage in saved.values())
