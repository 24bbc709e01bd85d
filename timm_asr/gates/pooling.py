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
    if not _needs_gradient(x):
        return F.adaptive_avg_pool2d(x, 1)
    if x.dtype in (torch.float32, torch.float64):
        # The gradient of a sum is such a view as well, and comes without a call of Python in the backward pass.
        return x.sum((2, 3), keepdim=True) / (x.shape[2] * x.shape[3])
    return _AveragePool.apply(x)


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
    if _needs_gradient(x) and x.device.type == 'cpu':
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


def _needs_gradient(x: torch.Tensor) -> bool:
    # Compilers and exporters know how to fuse the ordinary operators, and need no more than these.
    plain = isinstance(x, torch.fx.Proxy) or torch.jit.is_tracing() or torch.compiler.is_compiling()
    return not plain and x.requires_grad and torch.is_grad_enabled()


class _AveragePool(torch.autograd.Function):
    """For types in which a sum may overflow. The gradient is a view of one value for all positions, not a map."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: torch.Tensor) -> torch.Tensor:
        return F.adaptive_avg_pool2d(x, 1)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
        ctx.shape = inputs[0].shape

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        return (grad / (ctx.shape[-2] * ctx.shape[-1])).expand(ctx.shape)

    @staticmethod
    def jvp(ctx: Any, tangent: torch.Tensor) -> torch.Tensor:
        return F.adaptive_avg_pool2d(tangent, 1)


class _Extremes(torch.autograd.Function):
    """The gradient of maximum and minimum is added to that of the map, at two positions a channel."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        size = x.shape[2:]
        high, i = F.max_pool2d(x, size, return_indices=True)
        low, j = F.max_pool2d(-x, size, return_indices=True)
        return x.view_as(x), high.flatten(1), -low.flatten(1), torch.cat([i, j], 2).flatten(2).transpose(1, 2)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[torch.Tensor], output: tuple[torch.Tensor, ...]) -> None:
        places = output[3]
        ctx.mark_non_differentiable(places)
        ctx.save_for_backward(places)
        ctx.save_for_forward(places)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor, high: torch.Tensor, low: torch.Tensor, _: object) -> torch.Tensor:
        places, = ctx.saved_tensors
        flat, values = grad.flatten(2).transpose(1, 2), torch.stack([high, low], 1)
        # Where a gradient of the gradient is wanted, this one must stay as it is.
        scatter = flat.scatter_add if torch.is_grad_enabled() else flat.scatter_add_
        return scatter(1, places, values).transpose(1, 2).unflatten(2, grad.shape[2:])

    @staticmethod
    def jvp(ctx: Any, tangent: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        places, = ctx.saved_tensors
        high, low = tangent.flatten(2).transpose(1, 2).gather(1, places).unbind(1)
        return tangent.view_as(tangent), high, low, None
