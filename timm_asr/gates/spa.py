"""SPA, spatial pyramid attention."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .bottleneck import BottleneckGate
from .fused import average_pool


class SPA(BottleneckGate):
    """Spatial pyramid attention, v = sigmoid(W2 relu(W1 u)), u = averages over 4x4, 2x2 and 1x1 grids.

    Guo et al.: SPANet: Spatial Pyramid Attention Network for Enhanced Image Recognition, ICME 2020.
    The descriptor has 16C + 4C + C values; W1 is 21C -> C / 16, W2 is C / 16 -> C, neither has a bias. Other arguments
    as in :class:`BottleneckGate`.
    """

    grids = (16, 4, 1)
    paper = 'guo2020spanet'

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, bias=False, **kwargs)  # type: ignore[misc]
        self.pooling = GridPool()

    def describe(self, psi: Tensor) -> Tensor:
        return self.pool(psi.view(1, -1, 1, 1))

    def read(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, self.pool(x)


class GridPool(nn.Module):
    """SPA's averages over grids of 4x4, 2x2 and 1x1 cells, (B, C, H, W) -> (B, 21C), channel by channel for each."""

    def forward(self, x: Tensor) -> Tensor:
        if not torch.jit.is_scripting():  # noqa: SIM102 - TorchScript knows this condition alone
            if torch.onnx.is_in_onnx_export():
                return self._by_products(x)
        grids = [F.adaptive_avg_pool2d(x, 4), F.adaptive_avg_pool2d(x, 2), average_pool(x)]
        return torch.cat([grid.flatten(1) for grid in grids], dim=1)

    @torch.jit.unused
    def _by_products(self, x: Tensor) -> Tensor:
        """Each average as two matrix products: ONNX has no pooling to a grid of any size."""
        pairs = [[_cells(side, size).to(x) for side in x.shape[2:]] for size in (4, 2, 1)]
        return torch.cat([(rows @ x @ columns.t()).flatten(1) for rows, columns in pairs], dim=1)


def _cells(side: int, size: int) -> Tensor:
    """The matrix (size, side) that averages over the cells of ``adaptive_avg_pool``; the side may be symbolic."""
    cell, place = torch.arange(size)[:, None], torch.arange(side)
    inside = (place >= cell * side // size) & (place < ((cell + 1) * side + size - 1) // size)
    return inside / inside.sum(1, keepdim=True)
