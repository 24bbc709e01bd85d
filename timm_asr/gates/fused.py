"""Products of channels by one of PyTorch's own kernels, forward and backward.

A BatchNorm whose mean is 0 and whose variance is 1 multiplies each channel by its weight and adds its bias. Its
backward pass gives the gradients of input, weight and bias by one operation, where a product and a sum take four.
"""

from functools import lru_cache
from typing import Any

import torch

from .pooling import needs_gradient


def affine(u: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """weight * u + bias, channel by channel: (B, C), (C,), (C,) -> (B, C)."""
    if torch.jit.is_scripting():
        return torch.addcmul(bias, u, weight)
    else:  # noqa: RET505 - TorchScript compiles what follows a return
        return _affine(u, weight, bias)


@torch.jit.unused
def _affine(u: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    if not needs_gradient(u, weight, bias) or u.shape[0] == 1:  # in this order: a tracer knows no shape
        return torch.addcmul(bias, u, weight)
    return torch.native_batch_norm(u, weight, bias, *standard(weight), False, 0.0, 0.0)[0]


def weigh(x: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """x * v with a weight for each image and channel, (B, C, H, W), (B, C) -> (B, C, H, W)."""
    if torch.jit.is_scripting():
        return x * v[:, :, None, None]
    else:  # noqa: RET505 - TorchScript compiles what follows a return
        return _weigh(x, v)


def weigh_map(x: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """x * v, with v (B, C, 1, 1), or broadcast over x (B, C, H, W) in another way."""
    if torch.jit.is_scripting():
        return x * v
    else:  # noqa: RET505 - TorchScript compiles what follows a return
        return _weigh_map(x, v)


@torch.jit.unused
def _weigh_map(x: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    if needs_gradient(x, v) and v.shape[1:] == (x.shape[1], 1, 1):
        return _weigh(x, v.flatten(1))
    return x * v


@torch.jit.unused
def _weigh(x: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    # In other layouts images and channels are no one dimension. Compilers fuse the product themselves.
    if not needs_gradient(x, v) or x.dtype != v.dtype or not x.is_contiguous() or x.numel() == 0:
        return x * v[:, :, None, None]
    return _Weigh.apply(x, v)


class _Weigh(torch.autograd.Function):
    """The gradients of both factors of a contiguous map come from one operation."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return x * v[:, :, None, None]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[torch.Tensor, torch.Tensor], output: torch.Tensor) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x, v = ctx.saved_tensors
        if torch.is_grad_enabled() or not grad.is_contiguous():
            return grad * v[:, :, None, None], (grad * x).sum((2, 3))
        one_image, weight = (1, v.numel(), *x.shape[2:]), v.flatten()
        of_x, of_v, _ = torch.ops.aten.native_batch_norm_backward(
            grad.view(one_image), x.view(one_image), weight, *standard(weight), None, None, False, 0.0,
            [True, True, False])
        return of_x.view_as(x), of_v.view_as(v)

    @staticmethod
    def jvp(ctx: Any, of_x: torch.Tensor, of_v: torch.Tensor) -> torch.Tensor:
        x, v = ctx.saved_tensors
        return of_x * v[:, :, None, None] + x * of_v[:, :, None, None]


def standard(like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return _zeros_and_ones(len(like), like.dtype, like.device)


@lru_cache(maxsize=64)
def _zeros_and_ones(count: int, dtype: torch.dtype, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    with torch.inference_mode(False):
        return torch.zeros(count, dtype=dtype, device=device), torch.ones(count, dtype=dtype, device=device)
