"""Operations of a training step with gradients of their own: fewer operations, and no map that is only added.

PyTorch's gradients of ``mean``, ``amax`` and ``amin`` over all positions are maps of their own, in the layout of a
contiguous tensor, which then have to be added to a map of another layout: on channels_last maps that took longer than
everything else a gate does in a training step. Other gradients here are one of PyTorch's own kernels where autograd
takes several.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache, wraps
from typing import Any, TypeVar

import torch
import torch.fx
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad

Operation = TypeVar('Operation', bound=Callable[..., Any])


def in_training_for(literal: Operation) -> Callable[[Operation], Operation]:
    """Make a function take over from ``literal``, ordinary operations, where gradients are wanted.

    TorchScript compiles ``literal``. Compilers and exporters get it too, since they join operations themselves, and
    so does forward-mode differentiation.
    """
    def decorate(function: Operation) -> Operation:
        @wraps(function)
        def chosen(*args: Any) -> Any:
            return function(*args) if needs_gradient(args) else literal(*args)

        chosen.__prepare_scriptable__ = lambda: literal  # type: ignore[attr-defined]
        return chosen  # type: ignore[return-value]

    return decorate


def needs_gradient(args: Sequence[Any]) -> bool:
    """Whether gradients of some tensors are wanted, by an ordinary run and in reverse mode."""
    if torch.jit.is_tracing() or torch.compiler.is_compiling() or not torch.is_grad_enabled():
        return False
    if forward_ad._current_level >= 0 or any(isinstance(x, torch.fx.Proxy) for x in args):
        return False
    return any(isinstance(x, Tensor) and x.requires_grad for x in args)


def is_plain(layer: nn.Module) -> bool:
    """Whether a layer does nothing but multiply by its weight and add its bias: no subclass, no hooks (pruning)."""
    return type(layer) in (nn.Conv2d, nn.Linear) and not is_hooked(layer)


def is_hooked(module: nn.Module) -> bool:
    """Whether a module has hooks, which only a call of it runs."""
    return any(hooks_of(module))


def hooks_of(module: nn.Module) -> tuple[dict[int, Any], ...]:
    """Where a module keeps its hooks."""
    return (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)


def alike(*tensors: Tensor) -> bool:
    """Whether tensors are ordinary ones of one dtype, outside of autocast and of ``torch.func``."""
    return (
        all(type(t) in (Tensor, nn.Parameter) and t.dtype == tensors[0].dtype for t in tensors)
        and not torch._C._is_any_autocast_enabled() and not torch._C._are_functorch_transforms_active())


def gradients_of(literal: Callable[..., Any], inputs: tuple[Any, ...], grads: Any) -> tuple[Tensor, ...]:
    """Gradients by ordinary operations, for a backward pass whose own gradient is wanted."""
    return torch.func.vjp(literal, *inputs)[1](grads)


def _average_pool(x: Tensor) -> Tensor:
    return F.adaptive_avg_pool2d(x, 1)


@in_training_for(_average_pool)
def average_pool(x: Tensor) -> Tensor:
    """Global average pooling, (B, C, H, W) -> (B, C, 1, 1)."""
    if x.dtype in (torch.float32, torch.float64):
        # The gradient of a sum is a view as well, and comes without a call of Python in the backward pass.
        return x.sum((2, 3), keepdim=True) / (x.shape[2] * x.shape[3])
    return _AveragePool.apply(x)[1]


def _average_of(x: Tensor) -> tuple[Tensor, Tensor]:
    return x, F.adaptive_avg_pool2d(x, 1).flatten(1)


@in_training_for(_average_of)
def average_of(x: Tensor) -> tuple[Tensor, Tensor]:
    """The map and the average of its channels: (B, C, H, W) -> (B, C, H, W), (B, C).

    The map that comes back must go nowhere but into one product: its gradient is written over.
    """
    x, u = _AveragePool.apply(x)
    return x, u.flatten(1)


class _AveragePool(torch.autograd.Function):
    """The gradient of the average is added to that of the map, in place."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        return x.view_as(x), F.adaptive_avg_pool2d(x, 1)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: tuple[Tensor, ...]) -> None:
        ctx.shape = inputs[0].shape
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, average: Tensor | None) -> Tensor | None:
        pixels = ctx.shape[-2] * ctx.shape[-1]
        if average is None:
            return grad
        if grad is None:
            return (average / pixels).expand(ctx.shape)
        # Where a gradient of the gradient is wanted, this one must stay as it is.
        return (grad.add if torch.is_grad_enabled() else grad.add_)(average, alpha=1 / pixels)


def max_min(x: Tensor) -> Tensor:
    """Maximum and minimum of every channel, (B, C, H, W) -> (B, 2C), all maxima first."""
    return torch.cat([x.amax((2, 3)), x.amin((2, 3))], dim=1)


def _extremes_of(x: Tensor) -> tuple[Tensor, Tensor]:
    return x, max_min(x)


@in_training_for(_extremes_of)
def extremes_of(x: Tensor) -> tuple[Tensor, Tensor]:
    """The map and :func:`max_min` of it. The map must go nowhere but into one product, as in :func:`average_of`."""
    return _Extremes.apply(x)[:2]


class _Extremes(torch.autograd.Function):
    """The gradient of maximum and minimum is added to that of the map, at two positions a channel."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> tuple[Tensor, ...]:
        return x.view_as(x), *(by_pooling if x.device.type == 'cpu' else by_reduction)(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: tuple[Tensor, ...]) -> None:
        ctx.shape, places = inputs[0].shape, output[2:]
        ctx.mark_non_differentiable(*places)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*places)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, extremes: Tensor | None, *_: object) -> Tensor | None:
        if extremes is None:
            return grad
        flat = (extremes.new_zeros(ctx.shape) if grad is None else grad).flatten(2)
        # Where a gradient of the gradient is wanted, this one must stay as it is.
        scatter = Tensor.scatter_add if torch.is_grad_enabled() else Tensor.scatter_add_
        for place, extreme in zip(ctx.saved_tensors, extremes.unsqueeze(2).chunk(2, 1), strict=True):
            flat = scatter(flat, 2, place, extreme)
        return flat.unflatten(2, ctx.shape[2:])


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


class MixPool(nn.Module):
    """mix * max + (1 - mix) * min over positions, (B, C, H, W) -> (B, C): SPENet paper, Eq. 2."""

    def __init__(self, mix: float) -> None:
        super().__init__()
        self.mix = mix

    def forward(self, x: Tensor) -> Tensor:
        return torch.lerp(x.amin((2, 3)), x.amax((2, 3)), self.mix)


def by_pooling(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """:func:`max_min` of a map, and the positions (B, C, 1) of both: as a CPU finds them fastest."""
    high, i = F.max_pool2d(x, x.shape[2:], return_indices=True)
    low, j = F.max_pool2d(-x, x.shape[2:], return_indices=True)
    return torch.cat([high, -low], 1).flatten(1), i.flatten(2), j.flatten(2)


def by_reduction(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The same in fewer operations, for accelerators."""
    (high, i), (low, j) = x.flatten(2).max(2, keepdim=True), x.flatten(2).min(2, keepdim=True)
    return torch.cat([high, low], 1).flatten(1), i, j


def _affine(u: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return torch.addcmul(bias, u, weight)


@in_training_for(_affine)
def affine(u: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """weight * u + bias, channel by channel: (B, C), (C,), (C,) -> (B, C)."""
    # A BatchNorm of mean 0 and variance 1, whose three gradients are one operation. It takes no single image.
    if u.shape[0] == 1:
        return _affine(u, weight, bias)
    return torch.native_batch_norm(u, weight, bias, *standard(weight), False, 0.0, 0.0)[0]


def _weigh(x: Tensor, v: Tensor, shortcut: Tensor | None = None) -> Tensor:
    x = x * v
    return x if shortcut is None else x + shortcut


@in_training_for(_weigh)
def weigh(x: Tensor, v: Tensor, shortcut: Tensor | None = None) -> Tensor:
    """x * v, plus a shortcut like x if there is one.

    v has a weight for each image and channel of x (B, C, H, W), (B, C, 1, 1), or is broadcast over it otherwise.
    """
    if v.shape[1:] != (x.shape[1], 1, 1) or x.dtype != v.dtype or x.numel() == 0:
        return _weigh(x, v, shortcut)
    if shortcut is None:  # in other layouts images and channels are no one dimension
        return _Weigh.apply(x, v, None) if x.is_contiguous() else x * v
    fits = shortcut.shape == x.shape and shortcut.dtype == x.dtype
    return _Weigh.apply(x, v, shortcut) if fits else _weigh(x, v, shortcut)


class _Weigh(torch.autograd.Function):
    """The gradients of both factors of a contiguous map come from one operation, as in :func:`affine`."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, v: Tensor, shortcut: Tensor | None) -> Tensor:
        return x * v if shortcut is None else torch.addcmul(shortcut, x, v)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:2])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, v = ctx.saved_tensors
        of_shortcut = grad if ctx.needs_input_grad[2] else None
        if torch.is_grad_enabled() or not (x.is_contiguous() and grad.is_contiguous()):
            return grad * v, (grad * x).sum((2, 3), keepdim=True), of_shortcut
        return *factors(grad, x, v), of_shortcut


def factors(grad: Tensor, x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of both factors of x * v, all contiguous, x (B, C, H, W) and v (B, C, 1, 1)."""
    one_image, weight = (1, v.numel(), *x.shape[2:]), v.flatten()
    of_x, of_v, _ = torch.ops.aten.native_batch_norm_backward(
        grad.view(one_image), x.view(one_image), weight, *standard(weight), *unsaved(weight), False, 0.0,
        [True, True, False])
    return of_x.view_as(x), of_v.view_as(v)


def standard(like: Tensor) -> tuple[Tensor, Tensor]:
    """Zeros and ones, as many as there are rows: mean and variance of a norm that does nothing."""
    if type(like) not in (Tensor, nn.Parameter):  # a FakeTensor's must not stay for others
        return like.new_zeros(len(like)), like.new_ones(len(like))
    found = _zeros_and_ones(len(like), like.dtype, like.device)
    if type(found[0]) is not Tensor:  # nor one that a mode made
        _zeros_and_ones.cache_clear()
    return found


def unsaved(like: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """What ``native_batch_norm_backward`` takes for the statistics of a forward pass that saved none.

    CUDA has a kernel, for one dimension beside the channels, that refuses None and takes an empty tensor.
    """
    if like.device.type not in ('cuda', 'xpu'):
        return None, None
    none = like.new_empty(0, dtype=torch.promote_types(like.dtype, torch.float32))
    return none, none


@lru_cache(maxsize=64)
def _zeros_and_ones(count: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    with torch.inference_mode(False):
        return torch.zeros(count, dtype=dtype, device=device), torch.ones(count, dtype=dtype, device=device)
