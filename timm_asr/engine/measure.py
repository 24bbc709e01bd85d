"""Figures of one model that do not depend on the clock: memory, bytes kept for the backward pass."""

import weakref
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter


def _tensors(tree: Any) -> Iterator[torch.Tensor]:
    return (leaf for leaf in tree_iter(tree) if isinstance(leaf, torch.Tensor))


class _LiveTensors(TorchDispatchMode):
    """Follows the bytes of every tensor storage that comes to life inside, and their peak."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: dict[int, int] = {}

    def _meet(self, tensor: torch.Tensor, is_new: bool) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._known:
            size = storage.nbytes() if is_new else 0
            self._known[key] = size
            self.now += size
            weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        self.now -= self._known.pop(key)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for tensor in _tensors((args, kwargs)):
            self._meet(tensor, is_new=False)
        out = func(*args, **(kwargs or {}))
        for tensor in _tensors(out):
            self._meet(tensor, is_new=True)
        self.peak = max(self.peak, self.now)
        return out


def peak_memory(step: Callable[[], object], device: torch.device) -> int:
    """Bytes that one step holds at its peak, on top of what was there before it.

    On CUDA this is the allocator's own count. Elsewhere it is the sum of all live tensors, which leaves out what a
    kernel needs for itself, and is the same in every run. Run the step before, so that optimizer state is not counted.
    """
    if device.type == 'cuda':
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        step()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with _LiveTensors() as live:
        step()
    return live.peak


def saved_for_backward(forward: Callable[[], object], model: nn.Module) -> int:
    """Bytes that autograd keeps from a forward pass (with its loss) for the backward pass.

    Each storage is counted once; parameters and buffers of the model, which are there anyway, are not.
    """
    own = {t.untyped_storage()._cdata for t in (*model.parameters(), *model.buffers())}
    saved: dict[int, int] = {}
    kept = []  # a freed storage's address would be used again

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            saved[storage._cdata] = storage.nbytes()
            kept.append(storage)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = forward()
    del result
    return sum(saved.values())
