"""Pooling of regions over levels of any strides."""

import math
from collections.abc import Sequence
from functools import partial

import torch
from torchvision.ops import MultiScaleRoIAlign, box_area


def _nearest_level(strides: Sequence[int], boxes: list[torch.Tensor]) -> torch.Tensor:
    """Index of the level that each box is pooled from: the one nearest to that of the FPN paper's equation 1.

    torchvision's own counts levels as if strides always doubled: a box that falls between two is pooled to zeros.
    """
    side = torch.cat([box_area(b) for b in boxes]).sqrt()
    wanted = torch.floor(4 + torch.log2(side / 224) + 1e-6)
    levels = [math.floor(math.log2(stride) + 0.5) for stride in strides]
    return (wanted[:, None] - torch.tensor(levels, dtype=side.dtype, device=side.device)).abs().argmin(1)


def region_pool(strides: Sequence[int], output_size: int) -> MultiScaleRoIAlign:
    """torchvision's pooling of regions from the maps '0', '1', ... at these strides, ascending.

    Its scales are set here, since torchvision rounds those that it infers to powers of two.
    """
    pool = MultiScaleRoIAlign([str(level) for level in range(len(strides))], output_size, sampling_ratio=2)
    pool.scales, pool.map_levels = [1 / stride for stride in strides], partial(_nearest_level, tuple(strides))
    return pool
