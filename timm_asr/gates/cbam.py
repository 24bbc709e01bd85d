"""CBAM, convolutional block attention: channels, then positions."""

import torch
import torch.nn.functional as F
from timm.layers.cbam import CbamModule
from torch import nn

from .gate import ChannelGate
from .pooling import average_pool
from .shared import SharedGate


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

    options = {'rd_ratio': 'rd_ratio'}
    foldable = per_channel = False
    norm_stays = positions_after = True
    paper = """@inproceedings{woo2018cbam,
  title     = {{CBAM}: Convolutional Block Attention Module},
  author    = {Woo, Sanghyun and Park, Jongchan and Lee, Joon-Young and Kweon, In So},
  booktitle = {European Conference on Computer Vision (ECCV)},
  year      = {2018}
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

    @torch.jit.ignore
    def as_unit(self, shared_norm: bool = False) -> SharedGate:
        return SharedCBAM(self, own_norm=not shared_norm)


class SharedCBAM(SharedGate):
    """CBAM with shared MLP and convolution; the BatchNorm of the map over positions is each block's own.

    Here z is that map, (B, 1, H, W), and the feature map that it weighs has its channels weighed already.

    Args:
        gate: The gate.
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

    def forward(
            self, a: torch.Tensor, state: list[torch.Tensor],
    ) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
        v, state = self.excite(self.pool(a), state)
        a = a * v[:, :, None, None]
        z = torch.cat([a.mean(1, keepdim=True), a.amax(1, keepdim=True)], dim=1)
        return a, self.gate.spatial.conv(z), state
