"""What gates with a hidden layer have in common: SE and SPA."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import make_divisible
from torch import nn

from .forms import Excitation, GateForm, affine_of, double, linear, swallow
from .gate import ChannelGate
from .pointwise import PointwiseConv2d


class BottleneckGate(ChannelGate):
    """v = sigmoid(W2 act(W1 u + b1) + b2), with R hidden values.

    Subclasses make the layers ``fc1`` and ``fc2``, whose weights may have further dimensions of size one, and ``act``.
    """

    options: dict[str, str] = {'rd_ratio': 'rd_ratio'}

    def hidden(self, u: torch.Tensor) -> torch.Tensor:
        return dense(u, self.fc1.weight, self.fc1.bias)

    def flip_hidden(self, rows: torch.Tensor) -> None:
        self.fc1.weight[rows] *= -1
        if self.fc1.bias is not None:
            self.fc1.bias[rows] *= -1

    def logits(self, u: torch.Tensor) -> torch.Tensor:
        return dense(self.act(self.hidden(u)), self.fc2.weight, self.fc2.bias)

    @torch.jit.ignore
    def layer_pairs(self) -> list[tuple[Any, Any]]:
        """Each hidden layer as the layer before and the layer after it, in the order in which they run."""
        return [(self.fc1, self.fc2)]

    @torch.jit.ignore
    def inference_pool(self) -> nn.Module | None:
        """The pooling at inference, None for global average pooling."""
        return None

    @torch.jit.ignore
    def inference_form(
            self,
            conv: nn.Module | None = None,
            connections: Sequence[nn.Module] = (),
    ) -> GateForm:
        """As in the base class.

        Args:
            conv: As there.
            connections: Norms, or affine maps, between as many further applications of the gate to its own output.
        """
        pool = self.inference_pool()
        inner = _between(self, connections)
        (fc1, *_), (*_, fc2) = self.layer_pairs()[0], self.layer_pairs()[-1]
        last = linear(fc2.weight.flatten(1), fc2.bias, like=fc2.weight)
        weight = fc1.weight.flatten(1)
        if isinstance(conv, PointwiseConv2d) and self.averages():
            first = swallow(weight, fc1.bias, conv, self.grids)
            return GateForm('input', pool, Excitation(first, self.act, inner, last))
        return GateForm('output', pool, Excitation(linear(weight, fc1.bias, like=weight), self.act, inner, last))


def dense(u: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """A linear layer, or a 1x1 convolution of a 1x1 map, as a matrix product: (B, D) -> (B, R).

    The convolution computes the same several times slower on the CPU.
    """
    return F.linear(u, weight.flatten(1), bias)


def hidden_width(channels: int, rd_ratio: float, rd_channels: int | None, rd_divisor: int) -> int:
    """R, by timm's rule: ``rd_channels``, or C * ``rd_ratio`` rounded to a multiple of ``rd_divisor``."""
    return rd_channels or make_divisible(channels * rd_ratio, rd_divisor, round_limit=0.0)


def _between(gate: BottleneckGate, connections: Sequence[nn.Module]) -> list[nn.Linear]:
    """The affine maps from one hidden layer to the next, when the gate is applied again after each connection."""
    pairs, layers = gate.layer_pairs(), []
    first = double(pairs[0][0].weight).flatten(1)
    channels = len(pairs[-1][1].weight)
    cells = first.split([n * channels for n in gate.grids], dim=1)
    again = sum(part.unflatten(1, (channels, -1)).sum(2) for part in cells)  # a map of one pixel fills every cell
    steps: list[tuple[Any, Any, torch.Tensor, nn.Module | None]] = []
    for number in range(len(connections) + 1):
        if number:
            steps.append((pairs[-1][1], pairs[0][0], again, connections[number - 1]))
        for (_, before), (after, _) in pairwise(pairs):
            steps.append((before, after, double(after.weight).flatten(1), None))
    for before, after, weight, connection in steps:
        second, b2, b1 = double(before.weight).flatten(1), _bias(before), _bias(after)
        scale, shift = (1, 0) if connection is None else affine_of(connection)
        layers.append(linear((weight * scale) @ second, weight @ (scale * b2 + shift) + b1, like=after.weight))
    return layers


def _bias(layer: Any) -> torch.Tensor:
    return double(layer.weight.new_zeros(len(layer.weight)) if layer.bias is None else layer.bias)
