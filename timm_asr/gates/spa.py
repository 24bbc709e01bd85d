"""SPA, spatial pyramid attention."""

import torch
import torch.nn.functional as F
from torch import nn

from .bottleneck import BottleneckGate, hidden_width
from .pooling import average_pool


class SPA(BottleneckGate):
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

    grids = (16, 4, 1)
    paper = """@inproceedings{guo2020spanet,
  title     = {{SPANet}: Spatial Pyramid Attention Network for Enhanced Image Recognition},
  author    = {Guo, Jingda and Ma, Xu and Sansom, Andrew and McGuire, Mara and Kalaani, Andrew and Chen, Qi
               and Tang, Sihai and Yang, Qing and Fu, Song},
  booktitle = {IEEE International Conference on Multimedia and Expo (ICME)},
  year      = {2020}
}"""

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
        width = hidden_width(channels, rd_ratio, rd_channels, rd_divisor)
        self.fc1 = nn.Linear(21 * channels, width, bias=False, device=device, dtype=dtype)
        self.act = act_layer()
        self.fc2 = nn.Linear(width, channels, bias=False, device=device, dtype=dtype)

    def pool(self, x: torch.Tensor) -> torch.Tensor:
        """Averages over three grids, (B, C, H, W) -> (B, 21C)."""
        grids = [F.adaptive_avg_pool2d(x, 4), F.adaptive_avg_pool2d(x, 2), average_pool(x)]
        return torch.cat([grid.flatten(1) for grid in grids], dim=1)

    def describe(self, psi: torch.Tensor) -> torch.Tensor:
        return self.pool(psi.view(1, -1, 1, 1))

    @torch.jit.ignore
    def averages(self) -> bool:
        return True

    @torch.jit.ignore
    def inference_pool(self) -> nn.Module:
        return GridPool()


class GridPool(nn.Module):
    """SPA's averages over grids of 4x4, 2x2 and 1x1 cells, (B, C, H, W) -> (B, 21C), channel by channel for each."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if torch.jit.is_scripting() or not torch.onnx.is_in_onnx_export():
            return torch.cat([F.adaptive_avg_pool2d(x, size).flatten(1) for size in (4, 2, 1)], dim=1)
        else:  # noqa: RET505 - TorchScript compiles what follows a return
            return torch.cat([self._by_products(x, size).flatten(1) for size in (4, 2, 1)], dim=1)

    @torch.jit.unused
    def _by_products(self, x: torch.Tensor, size: int) -> torch.Tensor:
        """The average over one grid as two matrix products: ONNX has no pooling to a grid of any size."""
        rows, columns = (_cells(int(side), size).to(x) for side in x.shape[2:])
        return rows @ x @ columns.t()


def _cells(side: int, size: int) -> torch.Tensor:
    """The matrix (size, side) that averages over the cells of ``adaptive_avg_pool``."""
    matrix = torch.zeros(size, side)
    for n in range(size):
        start, end = n * side // size, -(-(n + 1) * side // size)
        matrix[n, start:end] = 1 / (end - start)
    return matrix
