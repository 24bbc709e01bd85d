"""CBAM, convolutional block attention: channels, then positions."""

import torch
import torch.nn.functional as F
from timm.layers.cbam import CbamModule
from torch import nn

from .gate import ChannelGate
from .pooling import average_pool


class CBAM(ChannelGate, CbamModule):
    """Convolutional block attention, v = sigmoid(MLP(avg(x)) + MLP(max(x))), then a map s over positions.

    x' = s * (v * x), s = sigmoid(BN(conv7x7([mean_c(v * x); max_c(v * x)]))).

    Woo et al.: CBAM: Convolutional Block Attention Module, ECCV 2018, https://arxiv.org/abs/1807.06521.
    timm's ``CbamModule``, MLP C -> C / 16 -> C without bias. It acts on positions too and so cannot be folded.

    Args:
        channels: Channels C of the feature map.
        rd_ratio: Hidden width over C.
        rd_channels: Hidden width, instead of ``rd_ratio``.
        rd_divisor: The hidden width is rounded to a multiple of this.
        act_layer: Activation of the hidden layer.
        device: Of the parameters.
        dtype: Of the parameters.
    """

    foldable = False

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
        super().__init__(
            channels,
            rd_ratio=rd_ratio,
            rd_channels=rd_channels,
            rd_divisor=rd_divisor,
            act_layer=act_layer,
            device=device,
            dtype=dtype,
        )

    def pool(self, x: torch.Tensor) -> torch.Tensor:
        """Average and maximum of every channel, (B, C, H, W) -> (B, 2C), all averages first."""
        return torch.cat([average_pool(x), F.adaptive_max_pool2d(x, 1)], dim=1).flatten(1)

    def logits(self, u: torch.Tensor) -> torch.Tensor:
        u = u.unflatten(1, (2, -1))  # the MLP is shared by both halves, and its last layer is linear
        u = self.channel.act(F.linear(u, self.channel.fc1.weight.flatten(1), self.channel.fc1.bias))
        return F.linear(u, self.channel.fc2.weight.flatten(1), self.channel.fc2.bias).sum(1)

    def scale(self, x: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """Channel weights first, then timm's spatial attention: (B, C, H, W), (B, C) -> (B, C, H, W)."""
        return self.spatial(x * v[:, :, None, None])
