"""Mixes of the maximum and the minimum of a channel."""

import torch
from torch import Tensor, nn


def check_mix(mix: str | float, keyword: str) -> float:
    """'max', 'min' or a number from 0 to 1 as the share of the maximum.

    Raises:
        ValueError: It is none of these.
    """
    share = {'max': 1.0, 'min': 0.0}.get(mix, mix) if isinstance(mix, str) else mix
    if isinstance(share, str) or not 0 <= share <= 1:
        raise ValueError(
            f"{keyword} is {mix!r}; it takes 'average', 'max', 'min', or a number from 0 (min) to 1 (max).")
    return float(share)


class MixPool(nn.Module):
    """mix * max + (1 - mix) * min over positions, (B, C, H, W) -> (B, C): SPENet paper, Eq. 2."""

    def __init__(self, mix: float) -> None:
        super().__init__()
        self.mix = mix

    def forward(self, x: Tensor) -> Tensor:
        if self.mix == 1:
            return x.amax((2, 3))
        if self.mix == 0:
            return x.amin((2, 3))
        return torch.lerp(x.amin((2, 3)), x.amax((2, 3)), self.mix)
