"""ResNet-56 and 110 of asymmetric convolution blocks by name: plain, with gates in the blocks, ASR, or both.

Ding et al.: ACNet: Strengthening the Kernel Skeletons for Powerful CNN via Asymmetric Convolution Blocks, ICCV 2019,
https://arxiv.org/abs/1908.03930.
"""

from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import ConvNormAct, get_device_dtype
from timm.models.resnet import BasicBlock
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from ..asr.blocks import BLOCKS, register_block
from ..asr.wrapper import ASR
from .asr_cifar import CifarResNet
from .cfgs import cifar_cfg
from .registry import Backbone, register_backbones
from .zoo import ZooModel

_KERNELS = {'conv_3x3': (3, 3), 'conv_1x3': (1, 3), 'conv_3x1': (3, 1)}


class ACBlock(nn.Module):
    """Sum of a 3x3, a 1x3 and a 3x1 convolution, each with its BatchNorm: (B, C, H, W) to (B, C', H / s, W / s).

    BN(x * K_3x3) + BN(x * K_1x3) + BN(x * K_3x1) is, with the running statistics, one 3x3 convolution (section 3.4 of
    the paper). C, C' and s are ``in_channels``, ``out_channels`` and ``stride``.
    """

    #: Initial weight of the three norms, as in the authors' CIFAR networks: their sum starts at one.
    norm_init = 1 / 3

    def __init__(
            self, in_channels: int, out_channels: int, stride: int = 1, norm_layer: type[nn.Module] = nn.BatchNorm2d,
            device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        for name, (height, width) in _KERNELS.items():
            branch = ConvNormAct(
                in_channels, out_channels, (height, width), stride=stride, padding=(height // 2, width // 2),
                norm_layer=norm_layer, apply_act=False, device=device, dtype=dtype)
            nn.init.kaiming_normal_(branch.conv.weight, mode='fan_out', nonlinearity='relu')
            nn.init.constant_(branch.bn.weight, self.norm_init)
            self.add_module(name, branch)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv_3x3(x) + self.conv_1x3(x) + self.conv_3x1(x)

    @torch.no_grad()
    def fuse(self) -> nn.Module:
        """The 3x3 convolution that this block is in eval mode; timm's ``reparameterize_model`` looks for this name."""
        square = self.conv_3x3.conv
        merged = nn.Conv2d(
            square.in_channels, square.out_channels, 3, square.stride, square.padding, **get_device_dtype(square))
        nn.init.zeros_(merged.weight)
        nn.init.zeros_(merged.bias)  # type: ignore[arg-type]
        for name, (height, width) in _KERNELS.items():
            branch = getattr(self, name)
            bn = branch.bn
            weight, bias = fuse_conv_bn_weights(
                branch.conv.weight, None, bn.running_mean, bn.running_var, bn.eps, bn.weight, bn.bias)
            rows, columns = (3 - height) // 2, (3 - width) // 2
            merged.weight += F.pad(weight, (columns, columns, rows, rows))
            merged.bias += bias
        return merged.train(self.training)


class ACBasicBlock(BasicBlock):
    """timm's ``BasicBlock`` with an :class:`ACBlock` for each convolution and its norm; the same arguments."""

    def __init__(self, *args: Any, norm_layer: type[nn.Module] = nn.BatchNorm2d, **kwargs: Any) -> None:
        super().__init__(*args, **{**kwargs, 'norm_layer': norm_layer})
        for conv, norm in (('conv1', 'bn1'), ('conv2', 'bn2')):
            _make_asymmetric(self, conv, norm, norm_layer)

    def zero_init_last(self) -> None:
        """Start the residual branch at zero."""
        for name in _KERNELS:
            nn.init.zeros_(getattr(self.conv2, name).bn.weight)


register_block(ACBlock, ends=lambda block: [f'{name}.bn' for name in _KERNELS], scripted=ASR)
# Its blocks merged, it is a BasicBlock without norms, and runs as such a one does.
register_block(ACBasicBlock, sites=('conv2',), layers=BLOCKS[BasicBlock].layers)


def _make_asymmetric(module: nn.Module, name: str, norm: str, norm_layer: type[nn.Module]) -> None:
    conv = module.get_submodule(name)
    setattr(module, name, ACBlock(
        conv.in_channels, conv.out_channels, conv.stride[0], norm_layer=norm_layer, **get_device_dtype(conv)))
    setattr(module, norm, nn.Identity())


class ACResNet(CifarResNet):
    """:class:`CifarResNet` of :class:`ACBasicBlock`, with an :class:`ACBlock` as its stem; the same arguments."""

    def __init__(self, *args: Any, norm_layer: Any = nn.BatchNorm2d, **kwargs: Any) -> None:
        super().__init__(*args, **{**kwargs, 'norm_layer': norm_layer})
        _make_asymmetric(self, 'conv1', 'bn1', norm_layer)


class ASRACResNet(ZooModel, ACResNet):
    """:class:`ACResNet` with the keywords of :class:`ZooModel`.

    ASR scales the sum of the branches of the last asymmetric block in each residual branch.
    """


register_backbones(__name__, *(
    Backbone(
        f'resnet{depth}_acnet', f'ResNet-{depth} of asymmetric convolution blocks for 32x32 images', ASRACResNet,
        cifar_cfg(first_conv=tuple(f'conv1.{name}.conv' for name in _KERNELS)),
        {'block': ACBasicBlock, 'layers': ((depth - 2) // 6,) * 3, 'feature_cfg': {'out_indices': (0, 1, 2, 3)}})
    for depth in (56, 110)))
