"""SGE, spatial group-wise enhancement."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from .fused import average_pool
from .gate import ChannelGate, check_unused


class SGE(ChannelGate):
    """Spatial group-wise enhancement: in each of G groups, positions that resemble the group's mean are enhanced.

    c_i = <GAP(x)_g, x_g,i> for each position i of group g, normalised over positions to zero mean and unit deviation,
    a_i = w_g * c_i + b_g, x' = x * sigmoid(a).

    Li, Hu, Yang: Spatial Group-wise Enhance, https://arxiv.org/abs/1905.09646. w starts at 0, b at 1, as there.
    It acts on positions and so cannot be folded.

    Args:
        groups: Groups at most; G is the largest common divisor of this and C.
        eps: Added to the deviation.
    """

    foldable = per_channel = shareable = False
    paper = 'li2019sge'

    def __init__(
            self, channels: int, groups: int = 64, eps: float = 1e-5, device: torch.device | str | None = None,
            dtype: torch.dtype | None = None, **unused: Any) -> None:
        check_unused('SGE', unused)
        super().__init__()
        self.groups = math.gcd(groups, channels)
        self.eps = eps
        self.weight = nn.Parameter(torch.zeros(self.groups, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.ones(self.groups, device=device, dtype=dtype))

    def pool(self, x: Tensor) -> Tensor:
        """Similarity of every position to its group's mean, (B, C, H, W) -> (B, G, H, W)."""
        return (x * average_pool(x)).unflatten(1, (self.groups, -1)).sum(2)

    def logits(self, u: Tensor) -> Tensor:
        """Similarities, normalised over positions and scaled, (B, G, H, W) -> (B, G, H, W)."""
        # Not var_mean: in ONNX it counts positions by their shape, and OpenVINO 2026.4 computes that wrong in int8.
        u = u - average_pool(u)
        u = u / (average_pool(u.square()).clamp_min(1e-12).sqrt() + self.eps)  # a root at zero has no gradient
        return u * self.weight[:, None, None] + self.bias[:, None, None]

    def scale(self, x: Tensor, v: Tensor) -> Tensor:
        """Multiply (B, C, H, W) by the weights (B, G, H, W) of each channel's group."""
        return (x.unflatten(1, (self.groups, -1)) * v.unsqueeze(2)).flatten(1, 2)
