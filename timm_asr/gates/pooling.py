"""Global poolings of a feature map whose gradients cost next to nothing.

PyTorch's own gradients of ``mean``, ``amax`` and ``amin`` over all positions are maps of their own, in the layout of a
contiguous tensor, which then have to be added to a map of another layout: on channels_last maps that took longer than
everything else a gate does in a training step.
"""

from typing import Any

import torch
import torch.fx
import torch.nn.functional as F


def average_pool(x: torch.Tensor) -> torch.Tensor:
    """Global average pooling, (B, C, H, W) -> (B, C, 1, 1)."""
    if torch.jit.is_scripting():
        return F.adaptive_avg_pool2d(x, 1)
    else:  # noqa: RET505 - TorchScript compiles what follows a return
        return _average_pool(x)


@torch.jit.unused
def _average_pool(x: torch.Tensor) -> torch.Tensor:
    if not needs_gradient(x):
        return F.adaptive_avg_pool2d(x, 1)
    if x.dtype in (torch.float32, torch.float64):
        # The gradient of a sum is such a view as well, and comes without a call of Python in the backward pass.
        return x.sum((2, 3), keepdim=True) / (x.shape[2] * x.shape[3])
    return _AveragePool.apply(x)[1]


def average_of(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The map and the average of its channels: (B, C, H, W) -> (B, C, H, W), (B, C).

    The map that comes back must go nowhere but into one product: its gradient is written over.
    """
    if torch.jit.is_scripting():
        return x, F.adaptive_avg_pool2d(x, 1).flatten(1)
    else:  # noqa: RET505 - TorchScript compiles what follows a return
        return _average_of(x)


@torch.jit.unused
def _average_of(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    if needs_gradient(x):
        x, u = _AveragePool.apply(x)
    else:
        u = F.adaptive_avg_pool2d(x, 1)
    return x, u.flatten(1)


def extremes(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The map and the maximum and minimum of its channels: (B, C, H, W) -> (B, C, H, W), (B, C), (B, C).

    The map that comes back must go nowhere but into one product: its gradient is written over.
    """
    if torch.jit.is_scripting():
        return x, x.amax((2, 3)), x.amin((2, 3))
    else:  # noqa: RET505 - TorchScript compiles what follows a return
        return _extremes(x)


@torch.jit.unused
def _extremes(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    if needs_gradient(x) and x.device.type == 'cpu':
        return _Extremes.apply(x)[:3]
    return x, x.amax((2, 3)), x.amin((2, 3))


def check_mix(mix: str | float, keyword: str) -> float:
    """'max', 'min' or a number from 0 to 1 as the share of the maximum.

    Raises:
        ValueError: It is none of these.
    """
    share = {'max': 1.0, 'min': 0.0}.get(mix, mix) if isinstance(mix, str) else mix
    if isinstance(share, str) or not 0 <= share <= 1:
        raise ValueError(
            f"{keyword} is {mix!r}; it takes 'average', 'max', 'min', or a number from 0 (min) to 1 (max).")
    return float(share)


def mixed_pool(x: torch.Tensor, mix: float) -> torch.Tensor:
    """mix * max + (1 - mix) * min over positions, (B, C, H, W) -> (B, C): SPENet paper, Eq. 2."""
    if mix == 1:
        return x.amax((2, 3))
    if mix == 0:
        return x.amin((2, 3))
    return torch.lerp(x.amin((2, 3)), x.amax((2, 3)), mix)


class MixPool(torch.nn.Module):
    """:func:`mixed_pool` as a module.

    Args:
        mix: The share of the maximum.
    """

    def __init__(self, mix: float) -> None:
        super().__init__()
        self.mix = mix

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return mixed_pool(x, self.mix)


def needs_gradient(*tensors: torch.Tensor) -> bool:
    """Whether gradients of some tensors are wanted, by an ordinary run: nothing is compiled, traced or scripted."""
    # Compilers and exporters know how to fuse the ordinary operators, and need no more than these.
    if torch.jit.is_tracing() or torch.compiler.is_compiling() or not torch.is_grad_enabled():
        return False
    return not any(isinstance(x, torch.fx.Proxy) for x in tensors) and any(x.requires_grad for x in tensors)


class _AveragePool(torch.autograd.Function):
    """The gradient of the average is added to that of the map, in place."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x.view_as(x), F.adaptive_avg_pool2d(x, 1)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[torch.Tensor], output: tuple[torch.Tensor, ...]) -> None:
        ctx.shape = inputs[0].shape
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor | None, average: torch.Tensor | None) -> torch.Tensor | None:
        pixels = ctx.shape[-2] * ctx.shape[-1]
        if average is None:
            return grad
        if grad is None:
            return (average / pixels).expand(ctx.shape)
        # Where a gradient of the gradient is wanted, this one must stay as it is.
        return (grad.add if torch.is_grad_enabled() else grad.add_)(average, alpha=1 / pixels)

    @staticmethod
    def jvp(ctx: Any, tangent: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return tangent.view_as(tangent), F.adaptive_avg_pool2d(tangent, 1)


class _Extremes(torch.autograd.Function):
    """The gradient of maximum and minimum is added to that of the map, at two positions a channel."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        size = x.shape[2:]
        high, i = F.max_pool2d(x, size, return_indices=True)
        low, j = F.max_pool2d(-x, size, return_indices=True)
        return x.view_as(x), high.flatten(1), -low.flatten(1), i.flatten(2), j.flatten(2)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[torch.Tensor], output: tuple[torch.Tensor, ...]) -> None:
        ctx.shape, places = inputs[0].shape, output[3:]
        ctx.mark_non_differentiable(*places)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*places)
        ctx.save_for_forward(*places)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor | None, *extremes: torch.Tensor | None) -> torch.Tensor | None:
        if grad is None:
            given = [e for e in extremes if e is not None]
            if not given:
                return None
            grad = given[0].new_zeros(ctx.shape)
        flat = grad.flatten(2)
        # Where a gradient of the gradient is wanted, this one must stay as it is.
        scatter = torch.Tensor.scatter_add if torch.is_grad_enabled() else torch.Tensor.scatter_add_
        for place, extreme in zip(ctx.saved_tensors, extremes, strict=False):
            if extreme is not None:
                flat = scatter(flat, 2, place, extreme.unsqueeze(2))
        return flat.unflatten(2, ctx.shape[2:])

    @staticmethod
    def jvp(ctx: Any, tangent: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        i, j = ctx.saved_tensors
        flat = tangent.flatten(2)
        return tangent.view_as(tangent), flat.gather(2, i).squeeze(2), flat.gather(2, j).squeeze(2), None, None
