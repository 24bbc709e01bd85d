"""What a training step costs on any machine: operations that an accelerator would have to launch.

An operation is a call of ATen below autograd, in the forward and in the backward pass. Views are left out: calls whose
schema says that the result aliases an input without writing to it, and those that are views by another name.
"""

from collections import Counter
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from timm_asr import auxiliary_loss


def is_view(func: Any) -> bool:
    returns = func._schema.returns
    aliases = bool(returns) and all(r.alias_info is not None and not r.alias_info.is_write for r in returns)
    return aliases or func.overloadpacket.__name__ in ('_unsafe_view', '_reshape_alias')


class OperationCounter(TorchDispatchMode):
    """While entered, counts operations by name in ``calls``."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not is_view(func):
            self.calls[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


class StepCount(NamedTuple):
    """Operations of a training step, by name."""

    forward: Counter[str]
    backward: Counter[str]
    optimizer: Counter[str]

    @property
    def total(self) -> int:
        """Operations of the forward and the backward pass."""
        return self.forward.total() + self.backward.total()


def count_step(model: nn.Module, images: torch.Tensor, optimizer: torch.optim.Optimizer | None = None) -> StepCount:
    """Operations of a training step; gradients are set anew, not added to.

    The loss is the sum of the logits, plus the model's auxiliary loss where it has one.

    Args:
        model: Is put into training mode.
        images: (B, 3, H, W), on any device; ``meta`` counts without computing.
        optimizer: Its step is counted too.
    """
    model.train()
    model.zero_grad(set_to_none=True)
    penalised = auxiliary_loss(model).requires_grad
    with OperationCounter() as forward:
        loss = model(images).sum()
        if penalised:
            loss = loss + auxiliary_loss(model)
    with OperationCounter() as backward:
        loss.backward()
    with OperationCounter() as update:
        if optimizer is not None:
            optimizer.step()
    model.zero_grad(set_to_none=True)
    return StepCount(forward.calls, backward.calls, update.calls)
