"""Blocks of wide ResNets, pre-activation: norm and activation come before each convolution.

Zagoruyko, Komodakis: Wide Residual Networks, BMVC 2016, https://arxiv.org/abs/1605.07146.
"""

from typing import Any

import torch
from torch import nn

from ..asr.blocks import register_block
from ..gates.shared import CutBlock


class WideBlock(nn.Module):
    """x + f(x), f = conv3x3, dropout, conv3x3, with norm and activation before each convolution.

    Where the shape changes, the shortcut is a 1x1 convolution of the first activation, without a norm. The arguments
    are those of timm's ``BasicBlock``, of which ``reduce_first``, dilations and ``drop_block`` mean nothing here;
    attention stands after the last convolution, and ``drop_rate`` is that of dropout between the convolutions.
    """

    expansion = 1
    #: Whether a norm follows the last convolution.
    last_norm = False

    def __init__(
            self, inplanes: int, planes: int, stride: int = 1, downsample: nn.Module | None = None,
            act_layer: type[nn.Module] = nn.ReLU, norm_layer: type[nn.Module] = nn.BatchNorm2d, attn_layer: Any = None,
            drop_rate: float = 0.0, drop_path: nn.Module | None = None, reduce_first: int = 1, dilation: int = 1,
            first_dilation: int | None = None, drop_block: Any = None, device: torch.device | str | None = None,
            dtype: torch.dtype | None = None) -> None:
        super().__init__()
        dd = {'device': device, 'dtype': dtype}
        self.bn1 = norm_layer(inplanes, **dd)
        self.act1 = act_layer()
        self.conv1 = nn.Conv2d(inplanes, planes, 3, stride=stride, padding=1, bias=False, **dd)
        self.bn2 = norm_layer(planes, **dd)
        self.act2 = act_layer()
        self.drop = nn.Dropout(drop_rate)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False, **dd)
        self.bn3 = norm_layer(planes, **dd) if self.last_norm else nn.Identity()
        self.se = attn_layer(planes, **dd) if attn_layer is not None else None
        # timm's projection has a norm, which these networks have not.
        self.downsample = downsample[0] if isinstance(downsample, nn.Sequential) else downsample
        self.projects = downsample is not None
        self.drop_path = drop_path

    def zero_init_last(self) -> None:
        """Start the residual branch at zero."""
        nn.init.zeros_(self.bn3.weight if self.last_norm else self.conv2.weight)

    def branch(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The residual branch and the shortcut."""
        a = self.act1(self.bn1(x))
        if self.projects:
            x = a
        a = self.act2(self.bn2(self.conv1(a)))
        a = self.bn3(self.conv2(self.drop(a)))
        if self.se is not None:
            a = self.se(a)
        if self.downsample is not None:
            x = self.downsample(x)
        return a, x

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a, shortcut = self.branch(x)
        if self.drop_path is not None:
            a = self.drop_path(a)
        return a + shortcut


class BranchWideBlock(CutBlock, WideBlock):
    """:class:`WideBlock` cut in two for the unit of a stage, which sees normalised features: it ends in a norm."""

    last_norm = True

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:  # type: ignore[override]
        return self.branch(x)

    def last_act(self, a: torch.Tensor) -> torch.Tensor:
        return a


register_block(WideBlock, sites=('conv2',), branch=BranchWideBlock)
register_block(BranchWideBlock, sites=('bn3',))
