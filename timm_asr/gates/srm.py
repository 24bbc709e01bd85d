"""SRM, style-based recalibration."""

from typing import Any

import torch
from torch import nn

from .gate import ChannelGate, check_unused
from .pooling import average_pool


class ChannelAffine(nn.Module):
    """y = w * u + b on (B, C): a BatchNorm whose statistics are fixed at mean 0 and variance 1."""

    def __init__(
            self,
            channels: int,
            device: torch.device | str | None = None,
            dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.zeros(channels, device=device, dtype=dtype))

    def forward(self, u: torch.Tensor) -> torch.Tensor:
        return u * self.weight + self.bias


class SRM(ChannelGate):
    """Style-based recalibration, v = sigmoid(BN(w1 * mean(x) + w2 * std(x))) channel by channel.

    Lee, Kim, Nam: SRM: A Style-based Recalibration Module for CNNs, ICCV 2019, https://arxiv.org/abs/1903.10829.
    The deviation is over all H * W positions (biased, as the paper writes it), with ``eps`` added to the variance.

    The weights start as a convolution of two inputs does, uniform in +-sqrt(1/2), and not at 0: at 0 a constant
    descriptor has no gradient at all.

    Args:
        channels: Channels C of the feature map.
        eps: Added to the variance before the square root.
        fixed_stats: Replace the BatchNorm by an affine map. ASR feeds a single vector, of which batch statistics
            would leave nothing.
        device: Of the parameters.
        dtype: Of the parameters.
        unused: Reduction arguments of timm's blocks, which this gate has no use for.
    """

    psi_ratio = 2  # mean and deviation

    def __init__(
            self,
            channels: int,
            eps: float = 1e-5,
            fixed_stats: bool = False,
            device: torch.device | str | None = None,
            dtype: torch.dtype | None = None,
            **unused: Any,
    ) -> None:
        check_unused('SRM', unused)
        super().__init__()
        self.eps = eps
        self.cfc = nn.Parameter(torch.empty(channels, 2, device=device, dtype=dtype))
        nn.init.uniform_(self.cfc, -(0.5**0.5), 0.5**0.5)
        norm = ChannelAffine if fixed_stats else nn.BatchNorm1d
        self.bn = norm(channels, device=device, dtype=dtype)

    def pool(self, x: torch.Tensor) -> torch.Tensor:
        """Mean and standard deviation of every channel side by side, (B, C, H, W) -> (B, 2C)."""
        # Two average poolings: torch.var_mean takes over ten times as long on channels_last maps on the CPU.
        mean = average_pool(x)
        var = average_pool((x - mean).square())
        return torch.cat([mean, (var + self.eps).sqrt()], dim=3).flatten(1)

    def logits(self, u: torch.Tensor) -> torch.Tensor:
        return self.bn((u.unflatten(1, (-1, 2)) * self.cfc).sum(2))
