"""Counts the operations of a training step: what an accelerator would have to launch, whatever the machine.

An operation is a call of ATen below autograd, in the forward and in the backward pass. Views are left out: calls whose
schema says that the result aliases an input without writing to it, and those that are views by another name. The loss
is the sum of the logits, plus the model's auxiliary loss where it has one.
"""

from collections import Counter

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from timm_asr import auxiliary_loss

_VIEWS_BY_ANOTHER_NAME = {'_unsafe_view', '_reshape_alias'}


def is_view(func: torch._ops.OpOverload) -> bool:
    """Whether an operation's result is a view of its input."""
    returns = func._schema.returns
    aliases = bool(returns) and all(r.alias_info is not None and not r.alias_info.is_write for r in returns)
    return aliases or func.overloadpacket.__name__ in _VIEWS_BY_ANOTHER_NAME


class OperationCounter(TorchDispatchMode):
    """While entered, counts operations by name in ``calls``."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    @property
    def total(self) -> int:
        return sum(self.calls.values())

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if not is_view(func):
            self.calls[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


def count_step(model: nn.Module, images: torch.Tensor) -> Counter[str]:
    """Operations of a forward and a backward pass in training mode, by name; gradients are set anew, not added to."""
    model.train()
    penalised = bool(auxiliary_loss(model).requires_grad)
    model.zero_grad(set_to_none=True)
    with OperationCounter() as counter:
        loss = model(images).sum()
        if penalised:
            loss = loss + auxiliary_loss(model)
        loss.backward()
    model.zero_grad(set_to_none=True)
    return counter.calls
