"""SPA, spatial pyramid attention."""

import torch
import torch.nn.functional as F
from timm.layers import make_divisible
from torch import nn

from .gate import ChannelGate
from .pooling import average_pool


class SPA(ChannelGate):
    """Spatial pyramid attention, v = sigmoid(W2 relu(W1 u)), u = averages over 4x4, 2x2 and 1x1 grids.

    Guo et al.: SPANet: Spatial Pyramid Attention Network for Enhanced Image Recognition, ICME 2020.
    The descriptor has 16C + 4C + C values; W1 is 21C -> C / 16, W2 is C / 16 -> C, neither has a bias.

    Args:
        channels: Channels C of the feature map.
        rd_ratio: Hidden width over C.
        rd_channels: Hidden width, instead of ``rd_ratio``.
        rd_divisor: The hidden width is rounded to a multiple of this.
        act_layer: Activation of the hidden layer.
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
            device: torch.device | str | None = None,
            dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        rd_channels = rd_channels or make_divisible(channels * rd_ratio, rd_divisor, round_limit=0.0)
        self.fc1 = nn.Linear(21 * channels, rd_channels, bias=False, device=device, dtype=dtype)
        self.act = act_layer()
        self.fc2 = nn.Linear(rd_channels, channels, bias=False, device=device, dtype=dtype)

    def pool(self, x: torch.Tensor) -> torch.Tensor:
        """Averages over three grids, (B, C, H, W) -> (B, 21C)."""
        grids = [F.adaptive_avg_pool2d(x, 4), F.adaptive_avg_pool2d(x, 2), average_pool(x)]
        return torch.cat([grid.flatten(1) for grid in grids], dim=1)

    def describe(self, psi: torch.Tensor) -> torch.Tensor:
        return self.pool(psi.view(1, -1, 1, 1))

    def hidden(self, u: torch.Tensor) -> torch.Tensor:
        return self.fc1(u)

    def flip_hidden(self, rows: torch.Tensor) -> None:
        self.fc1.weight[rows] *= -1

    def logits(self, u: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.act(self.hidden(u)))
