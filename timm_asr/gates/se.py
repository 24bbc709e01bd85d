"""SE, squeeze-and-excitation."""

import torch
import torch.nn.functional as F
from timm.layers import SEModule
from torch import nn

from .gate import ChannelGate


class SE(ChannelGate, SEModule):
    """Squeeze-and-excitation, v = sigmoid(W2 relu(W1 u + b1) + b2), u = GAP(x).

    Hu, Shen, Sun: Squeeze-and-Excitation Networks, CVPR 2018, https://arxiv.org/abs/1709.01507.
    timm's ``SEModule`` with the papers' hidden width round(C / 16), which is not rounded up to a multiple of eight.

    Args:
        channels: Channels C of the feature map.
        rd_ratio: Hidden width over C.
        rd_channels: Hidden width, instead of ``rd_ratio``.
        rd_divisor: The hidden width is rounded to a multiple of this.
        act_layer: Activation of the hidden layer.
        bias: Whether both linear layers have a bias (the papers' counts on ResNets include it).
        device: Of the parameters.
        dtype: Of the parameters.
    """

    def __init__(
            self,
            channels: int,
            rd_ratio: float = 1 / 16,
            rd_channels: int | None = None,
            rd_divisor: int = 1,
            act_layer: type[nn.Module] = nn.ReLU,
            bias: bool = True,
            device: torch.device | str | None = None,
            dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            channels,
            rd_ratio=rd_ratio,
            rd_channels=rd_channels,
            rd_divisor=rd_divisor,
            act_layer=act_layer,
            bias=bias,
            device=device,
            dtype=dtype,
        )

    def hidden(self, u: torch.Tensor) -> torch.Tensor:
        # A matrix product: a 1x1 convolution on a 1x1 map computes the same several times slower on the CPU.
        return F.linear(u, self.fc1.weight.flatten(1), self.fc1.bias)

    def flip_hidden(self, rows: torch.Tensor) -> None:
        self.fc1.weight[rows] *= -1
        if self.fc1.bias is not None:
            self.fc1.bias[rows] *= -1

    def logits(self, u: torch.Tensor) -> torch.Tensor:
        return F.linear(self.act(self.hidden(u)), self.fc2.weight.flatten(1), self.fc2.bias)
