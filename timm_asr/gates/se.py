"""SE, squeeze-and-excitation."""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .bottleneck import BottleneckGate, dense
from .fused import (
    MixPool,
    alike,
    average_of,
    average_pool,
    check_mix,
    factors,
    gradients_of,
    in_training_for,
    is_hooked,
    is_plain,
    weigh,
)


class SE(BottleneckGate):
    """Squeeze-and-excitation, v = sigmoid(W2 relu(W1 u + b1) + b2), u = GAP(x).

    Hu, Shen, Sun: Squeeze-and-Excitation Networks, CVPR 2018, https://arxiv.org/abs/1709.01507.
    The hidden width is round(C / 16), not rounded up to a multiple of eight. timm's ``SEModule`` has the same keys.
    The papers' counts on ResNets include the biases.

    With ``depth`` k the gate is as deep as Eq. 2 of the RAS paper makes it: g^k = W2^k relu(W1^k g^(k-1)), g^0 = u,
    v = sigmoid(g^k), each application with layers of its own.

    Args:
        pooling: 'average', 'max', 'min', or a number lambda for lambda * max + (1 - lambda) * min (SPENet paper,
            Figure 2).
        depth: Applications k, 1 to 4.

    Raises:
        ValueError: ``pooling`` or ``depth`` is out of range.
    """

    options = {**BottleneckGate.options, 'se_bias': 'bias', 'se_pool': 'pooling', 'se_depth': 'depth'}
    # One pixel is the same however it is pooled; deeper hidden units could be dead for ever, as in a recurrence.
    under_asr = {'pooling': 'average', 'depth': 1}
    layer = partial(nn.Conv2d, kernel_size=1)
    paper = 'hu2018squeeze'

    def __init__(
            self, channels: int, *args: Any, pooling: str | float = 'average', depth: int = 1, **kwargs: Any) -> None:
        super().__init__(channels, *args, **kwargs)
        if not 1 <= depth <= 4:
            raise ValueError(f'se_depth is {depth}; SE is 1 to 4 deep.')
        if pooling != 'average':
            self.pooling, self.averages = MixPool(check_mix(pooling, 'se_pool')), False
        self.deeper = nn.ModuleList(SE(channels, *args, **kwargs) for _ in range(depth - 1))

    def logits(self, u: Tensor) -> Tensor:
        u = self.second(self.act(self.hidden(u)))
        for gate in self.deeper:
            u = gate.logits(u)
        return u

    def forward(self, x: Tensor) -> Tensor:
        if not torch.jit.is_scripting() and torch.is_grad_enabled() and self._joined():
            return squeeze_excite(x, self.fc1.weight, self.fc1.bias, self.fc2.weight, self.fc2.bias)
        x, u = self.read(x)
        return self.scale(x, self.excite(u))

    @torch.jit.ignore
    def _joined(self) -> bool:  # asked at each call in training, since a layer may be replaced by then
        if torch.compiler.is_compiling():  # which joins operations itself
            return False
        return type(self) is SE and self.averages and not self.deeper and type(self.act) is nn.ReLU and (
            is_plain(self.fc1) and is_plain(self.fc2) and not is_hooked(self.act))

    @torch.jit.ignore
    def layer_pairs(self) -> list[tuple[Any, Any]]:
        return [(self.fc1, self.fc2), *((gate.fc1, gate.fc2) for gate in self.deeper)]


def _squeeze_excite(x: Tensor, w1: Tensor, b1: Tensor | None, w2: Tensor, b2: Tensor | None) -> Tensor:
    x, u = average_of(x)
    return weigh(x, dense(dense(u, w1, b1).relu(), w2, b2).sigmoid()[..., None, None])


@in_training_for(_squeeze_excite)
def squeeze_excite(x: Tensor, w1: Tensor, b1: Tensor | None, w2: Tensor, b2: Tensor | None) -> Tensor:
    """The gate without options as a function of its map (B, C, H, W) and parameters."""
    joined = b1 is not None and b2 is not None and alike(x, w1, b1, w2, b2)
    return (_SqueezeExcite.apply if joined else _squeeze_excite)(x, w1, b1, w2, b2)


class _SqueezeExcite(torch.autograd.Function):
    """Product, bias and ReLU are one operation; so are, in other layouts, the two summands of the map's gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
        u = average_pool(x).flatten(1)
        if x.device.type in ('cpu', 'cuda', 'xpu', 'meta'):
            h = torch._addmm_activation(b1, u, w1.flatten(1).t())
        else:
            h = dense(u, w1, b1).relu_()
        v = dense(h, w2, b2).sigmoid_()
        ctx.save_for_backward(x, w1, b1, w2, b2, u, h, v)
        return x * v[..., None, None]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        *inputs, u, h, v = ctx.saved_tensors
        if torch.is_grad_enabled():
            return gradients_of(_squeeze_excite, tuple(inputs), grad)
        x, w1, _, w2, _ = inputs
        v4, pixels = v[..., None, None], x.shape[2] * x.shape[3]
        contiguous = x.is_contiguous() and grad.is_contiguous() and x.numel() > 0
        of_x, of_v = factors(grad, x, v4) if contiguous else (grad, (grad * x).sum((2, 3)))
        of_z = torch.ops.aten.sigmoid_backward(of_v.flatten(1), v)
        of_h = torch.ops.aten.threshold_backward(of_z @ w2.flatten(1), h, 0)
        of_u = torch.addmm(u, of_h, w1.flatten(1), beta=0, alpha=1 / pixels)[..., None, None]
        of_x = of_x.add_(of_u) if contiguous else torch.addcmul(of_u, grad, v4)
        return of_x, (of_h.t() @ u).view_as(w1), of_h.sum(0), (of_z.t() @ h).view_as(w2), of_z.sum(0)
