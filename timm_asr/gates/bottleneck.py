"""What gates with a hidden layer have in common."""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from math import inf
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import create_act_layer, make_divisible
from torch import Tensor, nn

from .forms import Excitation, GateForm, PointwiseConv2d, affine_map, doubled, linear, swallow
from .fused import average_pool, is_plain
from .gate import ChannelGate


def hidden_width(channels: float, rd_ratio: float = 1 / 16, rd_channels: int | None = None, rd_divisor: int = 1) -> int:
    """R, by timm's rule: ``rd_channels``, or C * ``rd_ratio`` rounded to a multiple of ``rd_divisor``.

    Raises:
        ValueError: The ratio, or R, is not positive.
    """
    if not 0 < rd_ratio < inf:
        raise ValueError(f'rd_ratio is {rd_ratio}; the hidden width over channels is positive, such as 1/16.')
    if rd_channels is None:
        rd_channels = make_divisible(channels * rd_ratio, rd_divisor, round_limit=0.0)
    if rd_channels < 1:
        raise ValueError(f'The hidden layer of a gate would have {rd_channels} values; it takes at least one.')
    return rd_channels


class BottleneckGate(ChannelGate):
    """v = sigmoid(W2 act(W1 u + b1) + b2), with R hidden values.

    Args:
        rd_ratio: Hidden width R over C.
        rd_channels: R, instead of ``rd_ratio``.
        rd_divisor: R is rounded to a multiple of this.
        act_layer: Activation of the hidden layer.
        bias: Whether there are b1 and b2.

    Raises:
        ValueError: R is not positive.
    """

    options: dict[str, str] = {'rd_ratio': 'rd_ratio'}
    #: Makes W1 and W2 from the numbers of inputs and outputs; weights may have further dimensions of size one.
    layer: Callable[..., Any] = nn.Linear

    def __init__(
            self, channels: int, rd_ratio: float = 1 / 16, rd_channels: int | None = None, rd_divisor: int = 1,
            act_layer: type[nn.Module] = nn.ReLU, bias: bool = True, device: torch.device | str | None = None,
            dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.averages = type(self).pool is BottleneckGate.pool
        #: Instead of global average pooling; None for that.
        self.pooling: nn.Module | None = None
        width = hidden_width(channels, rd_ratio, rd_channels, rd_divisor)
        self.fc1 = self.layer(sum(self.grids) * channels, width, bias=bias, device=device, dtype=dtype)
        self.act = create_act_layer(act_layer, inplace=True)
        self.fc2 = self.layer(width, channels, bias=bias, device=device, dtype=dtype)

    def pool(self, x: Tensor) -> Tensor:
        return average_pool(x).flatten(1) if self.pooling is None else self.pooling(x)

    def hidden(self, u: Tensor) -> Tensor:
        if torch.jit.is_scripting():
            return dense(u, self.fc1.weight, self.fc1.bias)
        else:  # noqa: RET505 - TorchScript compiles what follows a return
            return through(self.fc1, u)

    def second(self, h: Tensor) -> Tensor:
        """The layer after the hidden one, (B, R) -> (B, C)."""
        if torch.jit.is_scripting():
            return dense(h, self.fc2.weight, self.fc2.bias)
        else:  # noqa: RET505
            return through(self.fc2, h)

    def flip_hidden(self, rows: Tensor) -> None:
        self.fc1.weight[rows] *= -1
        if self.fc1.bias is not None:
            self.fc1.bias[rows] *= -1

    def logits(self, u: Tensor) -> Tensor:
        return self.second(self.act(self.hidden(u)))

    @torch.jit.ignore
    def layer_pairs(self) -> list[tuple[Any, Any]]:
        """Each hidden layer as the layer before and the layer after it, in the order in which they run."""
        return [(self.fc1, self.fc2)]

    @torch.jit.ignore
    def inference_form(self, conv: nn.Module | None = None, connections: Sequence[nn.Module] = ()) -> GateForm | None:
        """As in the base class; ``connections`` stand between further applications of the gate to its own output."""
        inner = _between(self, connections)
        (fc1, *_), (*_, fc2) = self.layer_pairs()[0], self.layer_pairs()[-1]
        last = linear(fc2.weight.flatten(1), fc2.bias, like=fc2.weight)
        weight = fc1.weight.flatten(1)
        reads = 'input' if isinstance(conv, PointwiseConv2d) and self.averages else 'output'
        first = (swallow(weight, fc1.bias, conv, self.grids) if reads == 'input'
                 else linear(weight, fc1.bias, like=weight))
        return GateForm(reads, self.pooling, Excitation(first, self.act, inner, last))


def dense(u: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A linear layer, or a 1x1 convolution of a 1x1 map, as a matrix product: (B, D) -> (B, R).

    The convolution computes the same several times slower on the CPU.
    """
    return F.linear(u, weight.flatten(1), bias)


def through(layer: Any, u: Tensor) -> Tensor:
    """:func:`dense` by a layer's own weights, or the layer itself where there is more to it, (..., D) -> (..., R)."""
    if is_plain(layer):
        return dense(u, layer.weight, layer.bias)
    rows = u.reshape(-1, u.shape[-1])
    # A quantized layer's weight is a method.
    image = getattr(layer.weight, 'ndim', 2) == 4
    return layer(rows[..., None, None] if image else rows).view(*u.shape[:-1], -1)


def _between(gate: BottleneckGate, connections: Sequence[nn.Module]) -> list[nn.Linear]:
    """The affine maps from one hidden layer to the next, when the gate is applied again after each connection."""
    like, gate = gate.fc1.weight, doubled(gate)
    pairs = gate.layer_pairs()

    def layer(before: Any, after: Callable[[Tensor], Tensor]) -> nn.Linear:
        width = before.weight.shape[1]
        return linear(*affine_map(lambda h: after(dense(h, before.weight, before.bias)), width, like), like=like)

    def again(connection: nn.Module) -> Callable[[Tensor], Tensor]:
        norm = doubled(connection)
        return lambda u: gate.hidden(gate.pool(norm(u)[..., None, None]))

    deeper = [layer(before, partial(dense, weight=after.weight, bias=after.bias))
              for (_, before), (after, _) in pairwise(pairs)]
    return deeper + [made for connection in connections for made in (layer(pairs[-1][1], again(connection)), *deeper)]
