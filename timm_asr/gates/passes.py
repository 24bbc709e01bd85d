"""What modules of a network are handed during one forward pass of it: tensors that were made for all of them at once.

ASR's sites get their scaled tensors so, SPE's gates their shares of maximum and minimum.
"""

import threading
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks


@dataclass
class Pass:
    """One forward pass of a network in one thread.

    Attributes:
        owner: Who began it, such as the network.
        tensors: Module -> its tensors by name. It takes them out, so that it uses them once.
        stamps: Module -> one of the parameters that they were made of, and the version of it.
        grad, inference: Whether the tensors carry gradients, and were made in inference mode.
    """

    owner: 'weakref.ref[object]'
    tensors: dict[nn.Module, dict[str, Tensor]]
    stamps: dict[nn.Module, tuple[Tensor, int]]
    grad: bool
    inference: bool


class _Passes(threading.local):
    def __init__(self) -> None:
        self.stack: list[Pass] = []


_running = _Passes()


def version(tensor: Tensor) -> int:
    """How often a tensor was written to in place, as far as PyTorch counts that."""
    return 0 if tensor.is_inference() else tensor._version


def find(module: nn.Module) -> Pass | None:
    """The innermost pass of this thread that has tensors for a module."""
    return next((current for current in reversed(_running.stack) if module in current.tensors), None)


def within() -> bool:
    """Whether a pass runs in this thread."""
    return bool(_running.stack)


def begin(owner: object, tensors: dict[nn.Module, dict[str, Tensor]], made_of: dict[nn.Module, Tensor]) -> None:
    """Let modules find their tensors until :func:`end`; ``made_of`` has one of the parameters for each module."""
    stamps = {module: (p, version(p)) for module, p in made_of.items()}
    _running.stack.append(Pass(
        weakref.ref(owner), tensors, stamps, torch.is_grad_enabled(), torch.is_inference_mode_enabled()))


def end(owner: object) -> None:
    """Forget the pass of this owner in this thread, and all that began within it; without one, do nothing."""
    for i in reversed(range(len(_running.stack))):
        if _running.stack[i].owner() is owner:
            del _running.stack[i:]
            return


def take(module: nn.Module, parameter: Tensor) -> dict[str, Tensor] | None:
    """The tensors made for a module in a pass that runs, if there are any that still hold; each is given out once."""
    current = find(module)
    if current is None:
        return None
    tensors = current.tensors.pop(module)
    known, count = current.stamps[module]
    fresh = known is parameter and count == version(parameter)
    usable = (current.grad or not torch.is_grad_enabled()) and current.inference == torch.is_inference_mode_enabled()
    return tensors if fresh and usable else None


#: Not within ``torch.func.grad`` and the like.
_may_save_by_hooks: Callable[[], bool] = getattr(torch._C._autograd, '_saved_tensors_hooks_is_enabled')  # noqa: B009


def detached(tensor: Tensor) -> Tensor:
    """What a hook keeps of a saved tensor. An operation that kept its own result, graph and all, would never be freed.

    PyTorch gives the tensor its place in the graph again when it is taken out.
    """
    return tensor if tensor.grad_fn is None else tensor.detach()


def uncounted(pack: Callable[[Tensor], Any] = detached, unpack: Callable[[Any], Tensor] = lambda packed: packed,
              ) -> AbstractContextManager[object]:
    """Where a module makes its tensors itself: a checkpoint must not count what is saved for the backward pass.

    When the checkpoint ran for the first time, the tensors may have been handed out.
    """
    if torch.is_grad_enabled() and _may_save_by_hooks():
        return saved_tensors_hooks(pack, unpack)
    return nullcontext()
