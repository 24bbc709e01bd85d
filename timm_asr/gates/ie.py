"""IE, instance enhancement."""

from typing import Any

import torch
from torch import nn

from .gate import ChannelGate, check_unused


class IE(ChannelGate):
    """Instance enhancement, v = sigmoid(w * u + b) channel by channel, u = GAP(x).

    Liang et al.: Instance Enhancement Batch Normalization, AAAI 2020, https://arxiv.org/abs/1908.04008.
    w starts at 0 and b at -1, as there.

    Args:
        channels: Channels C of the feature map.
        device: Of the parameters.
        dtype: Of the parameters.
        unused: Reduction arguments of timm's blocks, which this gate has no use for.
    """

    def __init__(
            self,
            channels: int,
            device: torch.device | str | None = None,
            dtype: torch.dtype | None = None,
            **unused: Any,
    ) -> None:
        check_unused('IE', unused)
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(channels, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.full((channels,), -1.0, device=device, dtype=dtype))

    def logits(self, u: torch.Tensor) -> torch.Tensor:
        return u * self.weight + self.bias
