"""Gates as inference needs them: pooling, a linear layer that the convolution before can swallow, and the rest.

Average pooling commutes with an affine layer of one pixel, GAP(W y + b) = W GAP(y) + b. So the descriptor of a
bottleneck's branch comes from the four times narrower input y of its last convolution, and a gate that begins with a
linear layer A needs one product, (A W) GAP(y) + (A b + a), in place of both.
"""

import copy
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from ..gates.eca import ECA
from ..gates.gate import ChannelGate
from ..gates.ie import IE
from ..gates.pointwise import PointwiseConv2d
from ..gates.ras import RAS, Recurrent, RecurrentECA, RecurrentSE, RecurrentSPA
from ..gates.se import SE
from ..gates.spa import SPA
from ..gates.spe import SPE
from ..gates.srm import SRM, ChannelAffine

# Largest C' x C matrix that an affine gate gets of its own. Reading a larger one costs more than it saves, since the
# convolution's own weights are read anyway.
_OWN_MATRIX = 2**16


class InplaceReLU(nn.Module):
    """max(x, 0), written over x; called in half the time of ``nn.ReLU``, which counts for a single image."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.relu_()


def in_place(act: nn.Module) -> nn.Module:
    """An activation, in place if that is a ReLU."""
    return InplaceReLU() if type(act) is nn.ReLU else act


class GridPool(nn.Module):
    """SPA's averages over grids of 4x4, 2x2 and 1x1 cells, (B, C, H, W) -> (B, 21C), channel by channel for each."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if torch.jit.is_scripting() or not torch.onnx.is_in_onnx_export():
            return torch.cat([F.adaptive_avg_pool2d(x, size).flatten(1) for size in (4, 2, 1)], dim=1)
        else:  # noqa: RET505 - TorchScript compiles what follows a return
            return torch.cat([self._by_products(x, size).flatten(1) for size in (4, 2, 1)], dim=1)

    @torch.jit.unused
    def _by_products(self, x: torch.Tensor, size: int) -> torch.Tensor:
        """The average over one grid as two matrix products: ONNX has no pooling to a grid of any size."""
        rows, columns = (_cells(int(side), size).to(x) for side in x.shape[2:])
        return rows @ x @ columns.t()


def _cells(side: int, size: int) -> torch.Tensor:
    """The matrix (size, side) that averages over the cells of ``adaptive_avg_pool``."""
    matrix = torch.zeros(size, side)
    for n in range(size):
        start, end = n * side // size, -(-(n + 1) * side // size)
        matrix[n, start:end] = 1 / (end - start)
    return matrix


class MaxMinPool(nn.Module):
    """Maximum and minimum of every channel, (B, C, H, W) -> (B, 2C), all maxima first."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([x.amax((2, 3)), x.amin((2, 3))], dim=1)


class MeanStdPool(nn.Module):
    """Mean and standard deviation of every channel, (B, C, H, W) -> (B, 2C), all means first.

    In two passes, which on the CPU is 10 times as fast as ``torch.var_mean`` on channels-last maps.
    """

    def __init__(self, eps: float) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean = F.adaptive_avg_pool2d(x, 1)
        var = F.adaptive_avg_pool2d((x - mean).square(), 1)
        return torch.cat([mean, (var + self.eps).sqrt()], dim=1).flatten(1)


class Excitation(nn.Module):
    """v = sigmoid(W2 act(W1 u + b1) + b2); without W1 where the layer before has swallowed it.

    A recurrent gate has further layers between the two: from one hidden layer to the next the network is affine,
    h' = M act(h) + m, with M = W1 diag(s) W2 where the connection is a norm of scale s.

    The parameters are its own, since calls of modules are most of what a gate costs for a single image.
    """

    def __init__(self, fc1: nn.Linear | None, act: nn.Module, inner: list[nn.Linear], fc2: nn.Linear) -> None:
        super().__init__()
        self.weight1 = None if fc1 is None else fc1.weight
        self.bias1 = None if fc1 is None else fc1.bias
        self.act = in_place(act)
        self.inner = nn.ModuleList(inner) if inner else None
        self.weight2, self.bias2 = fc2.weight, fc2.bias

    def forward(self, u: torch.Tensor) -> torch.Tensor:
        if self.weight1 is not None:
            u = F.linear(u, self.weight1, self.bias1)
        u = self.act(u)
        if self.inner is not None:
            for layer in self.inner:
                u = self.act(layer(u))
        return F.linear(u, self.weight2, self.bias2).sigmoid()


class LinearSigmoid(nn.Linear):
    """v = sigmoid(W u + b)."""

    def forward(self, u: torch.Tensor) -> torch.Tensor:
        return F.linear(u, self.weight, self.bias).sigmoid()


class ChannelSigmoid(nn.Module):
    """v = sigmoid(w * u + b) channel by channel: IE, and RAS whatever its steps."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight), nn.Parameter(bias)

    def forward(self, u: torch.Tensor) -> torch.Tensor:
        return torch.addcmul(self.bias, u, self.weight).sigmoid()


class PairSigmoid(nn.Module):
    """v = sigmoid(w1 * u1 + w2 * u2 + b) on two descriptors side by side, (B, 2C) -> (B, C): SRM.

    With ``factors`` > 1 there are that many such weights, and v is their product: SPE.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight), nn.Parameter(bias)  # (2, factors, C), (factors, C)
        self.factors = len(bias)

    def forward(self, u: torch.Tensor) -> torch.Tensor:
        u1, u2 = u.unsqueeze(1).chunk(2, 2)
        v = torch.addcmul(torch.addcmul(self.bias, u1, self.weight[0]), u2, self.weight[1]).sigmoid()
        return v.prod(1) if self.factors > 1 else v.squeeze(1)


class Excite(nn.Module):
    """Any gate without its pooling and scaling."""

    def __init__(self, gate: ChannelGate) -> None:
        super().__init__()
        self.gate = gate

    def forward(self, u: torch.Tensor) -> torch.Tensor:
        return self.gate.excite(u)


class InferenceGate(nn.Module):
    """A gate alone, x' = x * v, where nothing is known of what comes before and after."""

    def __init__(self, pool: nn.Module | None, gate: nn.Module) -> None:
        super().__init__()
        self.pool, self.gate = pool, gate
        self.train(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        u = F.adaptive_avg_pool2d(x, 1).flatten(1) if self.pool is None else self.pool(x)
        return x * self.gate(u)[:, :, None, None]

    def train(self, mode: bool = True) -> 'InferenceGate':
        return super().train(False)


@dataclass
class GateForm:
    """How a gate runs at inference: v = gate(pool(...)), pool being global average pooling where it is None.

    ``reads`` says what is pooled: 'output' is the branch itself; 'input' is the input of its last convolution, which
    the gate's first layer has swallowed; 'projected' is that input too, and the convolution maps the pooled values.
    """

    reads: str
    pool: nn.Module | None
    gate: nn.Module


def double(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor in float64, on the CPU where its device has none, without gradient."""
    return (tensor.cpu() if tensor.device.type == 'mps' else tensor).detach().double()


def linear(
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        like: torch.Tensor,
        kind: type[nn.Linear] = nn.Linear,
) -> nn.Linear:
    """A linear layer of given weight and bias, with the dtype and on the device of another tensor."""
    layer = kind(weight.shape[1], weight.shape[0], bias=bias is not None, device='meta')
    layer.weight = nn.Parameter(weight.to(like))
    layer.bias = None if bias is None else nn.Parameter(bias.to(like))
    return layer.eval()


def swallow(weight: torch.Tensor, bias: torch.Tensor | None, conv: PointwiseConv2d) -> nn.Linear:
    """The linear layer u -> A u + a of a convolution's pooled output, as one of its pooled input.

    Args:
        weight: A, (R, cells * C'), where u has ``cells`` values a channel, grid by grid as :class:`GridPool`.
        bias: a, (R,).
        conv: The convolution, C -> C' channels.
    """
    before = double(conv.weight).flatten(1)
    a = double(weight)
    parts, sums = [], []
    for part in a.split([n * len(before) for n in _grids(a.shape[1] // len(before))], dim=1):
        part = part.unflatten(1, (len(before), -1))  # (R, C', cells)
        parts.append(torch.einsum('rcn,cw->rwn', part, before).flatten(1))
        sums.append(part.sum(2))
    shift = torch.zeros(len(a), dtype=a.dtype, device=a.device) if bias is None else double(bias)
    if conv.bias is not None:
        shift = shift + sum(sums) @ double(conv.bias)
    return linear(torch.cat(parts, dim=1), shift, like=conv.weight)


def _grids(cells: int) -> tuple[int, ...]:
    return (16, 4, 1) if cells == 21 else (cells,)


def _has_norms(gate: RAS | Recurrent) -> bool:
    return all(isinstance(m, nn.BatchNorm1d | ChannelAffine) for m in gate.connections)


def _is_affine(gate: ChannelGate) -> bool:
    return isinstance(gate, IE | ECA) or (isinstance(gate, RAS | RecurrentECA) and _has_norms(gate))


def has_inference_form(gate: nn.Module | None) -> bool:
    """Whether :func:`inference_gate` knows this gate: all of this package but those that weigh positions too."""
    if isinstance(gate, Recurrent):
        return isinstance(gate.gate, SE | ECA) or (isinstance(gate.gate, SPA) and _has_norms(gate))
    if not isinstance(gate, ChannelGate) or type(gate).scale is not ChannelGate.scale:
        return False
    return isinstance(gate, SPA | SRM | SPE) or type(gate).pool is ChannelGate.pool


@torch.no_grad()
def inference_gate(gate: ChannelGate, conv: nn.Module | None = None) -> GateForm:
    """The inference form of a gate.

    Args:
        gate: A gate that has one, in eval mode.
        conv: The convolution before it, where it reads through that, norm folded.
    """
    through = conv if isinstance(conv, PointwiseConv2d) else None
    if isinstance(gate, SE | SPA):
        return _bottleneck(gate, [], through)
    if isinstance(gate, RecurrentSE | RecurrentSPA) and _has_norms(gate):
        return _bottleneck(gate.gate, _inner_layers(gate), through)
    if isinstance(gate, SRM):
        return _srm(gate)
    if isinstance(gate, SPE):
        return _spe(gate)
    rest: nn.Module = Excite(gate)
    if _is_affine(gate):
        if through is not None and through.weight.numel() <= _OWN_MATRIX:
            return GateForm('input', None, affine_through(gate, through))
        if isinstance(gate, IE | RAS):
            rest = _channel_sigmoid(gate)
    return GateForm('output' if through is None else 'projected', None, rest)


def _bottleneck(gate: SE | SPA, inner: list[nn.Linear], through: PointwiseConv2d | None) -> GateForm:
    pool = None if isinstance(gate, SE) else GridPool()
    fc1, fc2 = (linear(fc.weight.detach().flatten(1), fc.bias, like=fc.weight) for fc in (gate.fc1, gate.fc2))
    if through is None:
        return GateForm('output', pool, Excitation(fc1, gate.act, inner, fc2))
    return GateForm('input', pool, Excitation(swallow(fc1.weight, fc1.bias, through), gate.act, inner, fc2))


def _inner_layers(recurrent: RecurrentSE | RecurrentSPA) -> list[nn.Linear]:
    """The layers from one hidden layer to the next of a recurrent gate whose connections are norms."""
    gate, layers = recurrent.gate, []
    first, second = double(gate.fc1.weight).flatten(1), double(gate.fc2.weight).flatten(1)
    cells = first.split([n * len(second) for n in _grids(first.shape[1] // len(second))], dim=1)
    first = sum(part.unflatten(1, (len(second), -1)).sum(2) for part in cells)  # a map of one pixel fills every cell
    b1, b2 = (0 if fc.bias is None else double(fc.bias) for fc in (gate.fc1, gate.fc2))
    for connection in list(recurrent.connections) * recurrent.passes:
        scale, shift = _affine(connection)
        layers.append(linear((first * scale) @ second, first @ (scale * b2 + shift) + b1, like=gate.fc1.weight))
    return layers


def _affine(norm: nn.BatchNorm1d | ChannelAffine) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale and shift (C,) of a norm in eval mode, in float64."""
    scale, shift = double(norm.weight), double(norm.bias)
    if isinstance(norm, nn.BatchNorm1d):
        scale = scale / (double(norm.running_var) + norm.eps).sqrt()
        shift = shift - double(norm.running_mean) * scale
    return scale, shift


def affine_through(gate: ChannelGate, conv: PointwiseConv2d) -> LinearSigmoid:
    """The matrix and shift of a gate whose logits are an affine function of the pooled output, on the pooled input.

    Found by applying the gate to the convolution's columns and to its bias.
    """
    gate = copy.deepcopy(gate).to(dtype=torch.float64, device='cpu' if conv.weight.device.type == 'mps' else None)
    columns = double(conv.weight).flatten(1).t()
    shift = torch.zeros_like(columns[:1]) if conv.bias is None else double(conv.bias)[None]
    matrix = gate.logits(columns) - gate.logits(torch.zeros_like(columns[:1]))
    return linear(matrix.t().contiguous(), gate.logits(shift)[0], conv.weight, LinearSigmoid)


def _channel_sigmoid(gate: IE | RAS) -> ChannelSigmoid:
    like = gate.weight
    gate = copy.deepcopy(gate).to(dtype=torch.float64, device='cpu' if like.device.type == 'mps' else None)
    zero = torch.zeros_like(gate.weight)[None]
    shift = gate.logits(zero)
    return ChannelSigmoid((gate.logits(zero + 1) - shift)[0].to(like), shift[0].to(like))


def _srm(gate: SRM) -> GateForm:
    scale, shift = _affine(gate.bn)
    like, weight = gate.cfc, (double(gate.cfc) * scale[:, None]).t().unsqueeze(1).contiguous()
    return GateForm('output', MeanStdPool(gate.eps), PairSigmoid(weight.to(like), shift[None].to(like)))


def _spe(gate: SPE) -> GateForm:
    like = gate.exc_weight
    excite: nn.Module = Excite(gate)
    if gate.reweight in ('shared', 'a', 'f', 'g', 'none'):  # in the others, a sigmoid is not the last step
        high, low = gate.shares().double() if gate.fixed_mix is None else (gate.fixed_mix, 1 - gate.fixed_mix)
        w = double(gate.exc_weight)
        weights, biases = [torch.stack([high * w, low * w])], [double(gate.exc_bias)]
        if gate.rew_weight is not None:
            w, b = double(gate.rew_weight), double(gate.rew_bias)
            if gate.reweight == 'a':
                weights.append(w.view(2, -1))
                biases.append(b.view(2, -1).sum(0))
            else:
                weights.append(torch.stack([w * (gate.reweight != 'g'), w * (gate.reweight != 'f')]))
                biases.append(b)
        excite = PairSigmoid(torch.stack(weights, dim=1).to(like), torch.stack(biases).to(like))
    return GateForm('output', MaxMinPool(), excite)
