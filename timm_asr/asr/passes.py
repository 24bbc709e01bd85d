"""What the sites of a network are handed during one forward pass of it: their scaled tensors, made beforehand."""

import threading
import weakref
from dataclasses import dataclass

import torch
from torch import nn


@dataclass
class Pass:
    """One forward pass of a network in one thread.

    Attributes:
        network: The network.
        tensors: Site -> its scaled tensors by name. A site takes them out, so that it uses them once.
        stamps: Site -> its first psi and the version of it.
        grad: Whether the tensors carry gradients.
        inference: Whether they were made in inference mode.
    """

    network: 'weakref.ref[nn.Module]'
    tensors: dict[nn.Module, dict[str, torch.Tensor]]
    stamps: dict[nn.Module, tuple[torch.Tensor, int]]
    grad: bool
    inference: bool


class _Passes(threading.local):
    def __init__(self) -> None:
        self.stack: list[Pass] = []


_running = _Passes()


def version(tensor: torch.Tensor) -> int:
    """How often a tensor was written to in place, as far as PyTorch counts that."""
    return 0 if tensor.is_inference() else tensor._version


def running() -> Pass | None:
    """The innermost pass of this thread that hands out tensors."""
    return _running.stack[-1] if _running.stack else None


def begin(current: Pass) -> None:
    """Let the sites of a network find their tensors until :func:`end`."""
    _running.stack.append(current)


def end(network: nn.Module) -> None:
    """Forget the pass of this network in this thread, and all that began within it; without one, do nothing."""
    for i in reversed(range(len(_running.stack))):
        if _running.stack[i].network() is network:
            del _running.stack[i:]
            return


def take(site: nn.Module, psi: torch.Tensor) -> dict[str, torch.Tensor] | None:
    """The tensors made for a site in the pass that runs, if there are any that still hold; each is given out once."""
    current = running()
    if current is None or site not in current.tensors:
        return None
    tensors = current.tensors.pop(site)
    known, count = current.stamps[site]
    fresh = known is psi and count == version(psi)
    usable = (current.grad or not torch.is_grad_enabled()) and current.inference == torch.is_inference_mode_enabled()
    return tensors if fresh and usable else None
