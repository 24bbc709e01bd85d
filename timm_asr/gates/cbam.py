"""CBAM, convolutional block attention: channels, then positions."""

from typing import Any

import torch
import torch.nn.functional as F
from timm.layers.cbam import CbamModule
from torch import Tensor, nn

from .bottleneck import dense, hidden_width, through
from .fused import average_pool
from .gate import ChannelGate
from .shared import SharedGate


class CBAM(ChannelGate, CbamModule):
    """Convolutional block attention, v = sigmoid(MLP(avg(x)) + MLP(max(x))), then a map s over positions.

    x' = s * (v * x), s = sigmoid(BN(conv7x7([mean_c(v * x); max_c(v * x)]))).

    Woo et al.: CBAM: Convolutional Block Attention Module, ECCV 2018, https://arxiv.org/abs/1807.06521.
    timm's ``CbamModule``, MLP C -> C / 16 -> C without bias. It acts on positions too and so cannot be folded.

    Args:
        kwargs: Further arguments of timm's.

    Raises:
        ValueError: The hidden width is not positive.
    """

    options = {'rd_ratio': 'rd_ratio'}
    foldable = per_channel = False
    norm_stays = positions_after = True
    paper = 'woo2018cbam'

    def __init__(
            self, channels: int, rd_ratio: float = 1 / 16, rd_channels: int | None = None, rd_divisor: int = 1,
            **kwargs: Any) -> None:
        super().__init__(channels, rd_channels=hidden_width(channels, rd_ratio, rd_channels, rd_divisor), **kwargs)

    def pool(self, x: Tensor) -> Tensor:
        """Average and maximum of every channel, (B, C, H, W) -> (B, 2C), all averages first."""
        return torch.cat([average_pool(x), F.adaptive_max_pool2d(x, 1)], dim=1).flatten(1)

    def logits(self, u: Tensor) -> Tensor:
        u = u.unflatten(1, (2, -1))  # the MLP is shared by both halves, and its last layer is linear
        if torch.jit.is_scripting():
            u = self.channel.act(dense(u, self.channel.fc1.weight, self.channel.fc1.bias))
            return dense(u, self.channel.fc2.weight, self.channel.fc2.bias).sum(1)
        else:  # noqa: RET505 - TorchScript compiles what follows a return
            return through(self.channel.fc2, self.channel.act(through(self.channel.fc1, u))).sum(1)

    def scale(self, x: Tensor, v: Tensor) -> Tensor:
        """Channel weights first, then timm's spatial attention: (B, C, H, W), (B, C) -> (B, C, H, W)."""
        return self.spatial(x * v[..., None, None])

    @torch.jit.ignore
    def as_unit(self, shared_norm: bool = False) -> SharedGate:
        return SharedCBAM(self, own_norm=not shared_norm)


class SharedCBAM(SharedGate):
    """CBAM with shared MLP and convolution; the BatchNorm of the map over positions is each block's own.

    Here z is that map, (B, 1, H, W), and the feature map that it weighs has its channels weighed already.

    Args:
        own_norm: Whether each block has its own BatchNorm; otherwise they share the gate's.
    """

    positions_after = True

    def __init__(self, gate: CBAM, own_norm: bool = True) -> None:
        super().__init__(gate)
        self.own_norm = own_norm
        if own_norm:
            gate.spatial.conv.bn = nn.Identity()

    @torch.jit.ignore
    def make_own(self) -> nn.Module:
        weight = self.gate.spatial.conv.conv.weight
        norm = [nn.BatchNorm2d(1, device=weight.device, dtype=weight.dtype)] if self.own_norm else []
        return nn.Sequential(*norm, nn.Sigmoid())

    def forward(self, a: Tensor, state: list[Tensor]) -> tuple[Tensor, Tensor, list[Tensor]]:
        a = a * self.gate.excite(self.gate.pool(a))[..., None, None]
        z = torch.cat([a.mean(1, keepdim=True), a.amax(1, keepdim=True)], dim=1)
        return a, self.gate.spatial.conv(z), state
