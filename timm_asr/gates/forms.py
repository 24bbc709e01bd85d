"""What gates become at inference: the parts that their ``inference_form`` is put together from.

Average pooling commutes with an affine layer of one pixel, GAP(W y + b) = W GAP(y) + b. So the descriptor of a
bottleneck's branch comes from the four times narrower input y of its last convolution. A gate that begins with a
linear layer A then needs one product, (A W) GAP(y) + (A b + a), in place of two.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import register_notrace_module
from torch import Tensor, nn

# Largest C' x C matrix that an affine gate gets of its own. Reading a larger one costs more than it saves, since the
# convolution's own weights are read anyway.
OWN_MATRIX = 2**16
# Multiply-accumulates up to which starting a convolution costs more than computing it. On two CPU cores a matrix
# product took half the time at 10^6 and twice the time at 5 * 10^7.
_SMALL = 2**22


@dataclass
class GateForm:
    """How a gate runs at inference: v = gate(pool(...)).

    Attributes:
        reads: What is pooled. 'output' is the residual branch itself. 'input' is the input of the branch's last
            convolution, which the gate's first layer has swallowed. 'projected' is that input too, and the
            convolution maps the pooled values.
        pool: The pooling, (B, C, H, W) -> (B, D); global average pooling where it is None.
        gate: The rest, (B, D) -> (B, C). One that swallows a convolution has a method ``split``: the part that each
            block of a stage must have of its own, and the part that the blocks share. Of a shared unit, the unit.
        squeezes: For each block of a stage a layer that acts on its pooled values before the unit does, or None.
    """

    reads: str
    pool: nn.Module | None
    gate: nn.Module
    squeezes: Sequence[nn.Module | None] = ()


class InferenceForm(nn.Module):
    """Base of the modules that only run: there is no training mode, whatever is asked for."""

    def train(self, mode: bool = True) -> 'InferenceForm':
        return super().train(False)


@register_notrace_module
class PointwiseConv2d(nn.Conv2d):
    """A 1x1 convolution of stride 1, (B, C, H, W) -> (B, C', H, W), with the parameters of ``nn.Conv2d``.

    A small, channels-last input, one image say, is multiplied by the weight as a matrix. Compiled, traced and exported
    graphs hold an ordinary convolution.
    """

    @staticmethod
    def fits(conv: nn.Module) -> bool:
        """Whether a module is an ordinary convolution of one pixel, stride 1 and no groups."""
        return (
            type(conv) is nn.Conv2d and conv.kernel_size == (1, 1) and conv.stride == (1, 1)
            and conv.groups == 1 and conv.padding in ((0, 0), 'same', 'valid'))

    @classmethod
    def of(cls, conv: nn.Conv2d) -> 'PointwiseConv2d':
        """The same layer, with the same parameter objects, for a convolution that fits."""
        new = cls(conv.in_channels, conv.out_channels, 1, bias=conv.bias is not None, device='meta')
        new.weight, new.bias = conv.weight, conv.bias
        return new.train(conv.training)

    def forward(self, x: Tensor) -> Tensor:
        if torch.jit.is_scripting():
            return F.conv2d(x, self.weight, self.bias)
        else:  # noqa: RET505 - TorchScript compiles what follows a return
            return self._forward(x)

    @torch.jit.unused
    def _forward(self, x: Tensor) -> Tensor:
        if (
                torch.jit.is_tracing() or torch.compiler.is_compiling()
                or x.numel() * self.out_channels > _SMALL or not x.is_contiguous(memory_format=torch.channels_last)
        ):
            return F.conv2d(x, self.weight, self.bias)
        return F.linear(x.permute(0, 2, 3, 1), self.weight.flatten(1), self.bias).permute(0, 3, 1, 2)


class InplaceReLU(nn.Module):
    """max(x, 0), written over x; called in half the time of ``nn.ReLU``, which counts for a single image."""

    def forward(self, x: Tensor) -> Tensor:
        return x.relu_()


def in_place(act: nn.Module) -> nn.Module:
    """An activation, in place if that is a ReLU."""
    return InplaceReLU() if type(act) is nn.ReLU else act


class Excite(nn.Module):
    """Any gate without its pooling and scaling."""

    def __init__(self, gate: Any) -> None:
        super().__init__()
        self.gate = gate

    def forward(self, u: Tensor) -> Tensor:
        return self.gate.excite(u)


class Excitation(nn.Module):
    """v = sigmoid(W2 act(W1 u + b1) + b2); without W1 where the layer before has swallowed it.

    A recurrent gate has ``inner`` layers between the two: from one hidden layer to the next the network is affine,
    h' = M act(h) + m, with M = W1 diag(s) W2 where the connection is a norm of scale s.

    The parameters are its own, since calls of modules are most of what a gate costs for a single image.
    """

    def __init__(self, fc1: nn.Linear, act: nn.Module, inner: list[nn.Linear], fc2: nn.Linear) -> None:
        super().__init__()
        self.weight1: nn.Parameter | None = fc1.weight
        self.bias1: nn.Parameter | None = fc1.bias
        self.act = in_place(act)
        self.inner = nn.ModuleList(inner) if inner else None
        self.weight2, self.bias2 = fc2.weight, fc2.bias

    def forward(self, u: Tensor) -> Tensor:
        if self.weight1 is not None:
            u = F.linear(u, self.weight1, self.bias1)
        u = self.act(u)
        if self.inner is not None:
            for layer in self.inner:
                u = self.act(layer(u))
        return F.linear(u, self.weight2, self.bias2).sigmoid()

    @torch.jit.ignore
    def split(self) -> tuple[nn.Module, nn.Module]:
        """The first layer, and what is left without it."""
        assert self.weight1 is not None
        first = linear(self.weight1, self.bias1, like=self.weight1)
        self.weight1 = self.bias1 = None
        return first, self


class LinearSigmoid(nn.Linear):
    """v = sigmoid(W u + b)."""

    def forward(self, u: Tensor) -> Tensor:
        return F.linear(u, self.weight, self.bias).sigmoid()

    @torch.jit.ignore
    def split(self) -> tuple[nn.Module, nn.Module]:
        """All of it; nothing is left to share."""
        return self, nn.Identity()


class ChannelSigmoid(nn.Module):
    """v = sigmoid(w * u + b) channel by channel, w and b (C,): IE, and RAS whatever its steps."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight), nn.Parameter(bias)

    def forward(self, u: Tensor) -> Tensor:
        return torch.addcmul(self.bias, u, self.weight).sigmoid()


class PairSigmoid(nn.Module):
    """v = sigmoid(w1 * u1 + w2 * u2 + b) on two descriptors side by side, (B, 2C) -> (B, C): SRM.

    With more than one row of weights v is the product of as many such factors: SPE. The weights are (2, factors, C),
    b is (factors, C).
    """

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight), nn.Parameter(bias)
        self.factors = len(bias)

    def forward(self, u: Tensor) -> Tensor:
        u1, u2 = u.unsqueeze(1).chunk(2, 2)
        v = torch.addcmul(torch.addcmul(self.bias, u1, self.weight[0]), u2, self.weight[1]).sigmoid()
        return v.prod(1) if self.factors > 1 else v.squeeze(1)


def double(tensor: Tensor) -> Tensor:
    """A tensor in float64, on the CPU where its device has none, without gradient."""
    return (tensor.cpu() if tensor.device.type == 'mps' else tensor).detach().double()


def doubled(module: nn.Module) -> Any:
    """A copy of a module in eval mode and float64, on the CPU where its device has none."""
    mps = any(p.device.type == 'mps' for p in module.parameters())
    return copy.deepcopy(module).eval().to(dtype=torch.float64, device='cpu' if mps else None)


def affine_map(run: Callable[[Tensor], Tensor], inputs: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Matrix and shift in float64 of an affine function (B, inputs) -> (B, outputs), found by trying it."""
    rows = torch.eye(inputs).to(double(like))
    shift = run(torch.zeros_like(rows[:1]))
    return (run(rows) - shift).t(), shift[0]


def linear(weight: Tensor, bias: Tensor | None, like: Tensor, kind: type[nn.Linear] = nn.Linear) -> nn.Linear:
    """A linear layer of given weight and bias, with the dtype and on the device of another tensor."""
    layer = kind(weight.shape[1], weight.shape[0], bias=bias is not None, device='meta')
    layer.weight = nn.Parameter(weight.detach().to(like).contiguous())
    layer.bias = None if bias is None else nn.Parameter(bias.detach().to(like))
    return layer.eval()


def swallow(weight: Tensor, bias: Tensor | None, conv: PointwiseConv2d, grids: Sequence[int] = (1,)) -> nn.Linear:
    """The linear layer u -> A u + a of a convolution's pooled output, as one of its pooled input.

    Args:
        weight: A, (R, sum(grids) * C'): for each grid in turn, as many values a channel as it has cells.
        bias: a, (R,).
        conv: The convolution, C -> C' channels.
        grids: Cells of each grid that the pooling averages over; (1,) is global average pooling.
    """
    before, a = double(conv.weight).flatten(1), double(weight)
    # Each part is (R, C', cells).
    parts = [part.unflatten(1, (len(before), -1)) for part in a.split([n * len(before) for n in grids], dim=1)]
    shift = a.new_zeros(len(a)) if bias is None else double(bias)
    if conv.bias is not None:
        shift = shift + sum(part.sum(2) for part in parts) @ double(conv.bias)
    return linear(torch.cat([(before.t() @ part).flatten(1) for part in parts], dim=1), shift, like=conv.weight)


def swallows(gate: Any, conv: PointwiseConv2d) -> LinearSigmoid:
    """A gate whose logits are an affine function of the pooled output of a convolution, on the pooled input."""
    gate, before = doubled(gate), doubled(conv)
    matrix, shift = affine_map(
        lambda u: gate.logits(F.linear(u, before.weight.flatten(1), before.bias)), conv.in_channels, conv.weight)
    return linear(matrix, shift, conv.weight, LinearSigmoid)  # type: ignore[return-value]


def scale_and_shift(run: Callable[[Tensor], Tensor], like: Tensor) -> tuple[Tensor, Tensor]:
    """Scale and shift (C,) in float64 of a function (B, C) -> (B, C) that is affine channel by channel."""
    zero = torch.zeros_like(double(like))[None]
    shift = run(zero)
    return (run(zero + 1) - shift)[0], shift[0]
