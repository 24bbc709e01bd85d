"""The CIFAR ResNets by name: plain, with each gate in their blocks, with ASR, with both, with shared units."""

from typing import Any

from timm.models.resnet import BasicBlock, Bottleneck

from .cfgs import cifar_cfg
from .cifar_resnet import CifarResNet
from .registry import EVERYTHING, Backbone, register_backbones
from .residual import ResidualModel
from .wide import WideBlock

__all__ = ['ASRCifarResNet']


class ASRCifarResNet(ResidualModel, CifarResNet):
    """:class:`CifarResNet` with the keywords of :class:`ResidualModel`."""


def _backbone(name: str, title: str, arguments: dict[str, Any], **more: Any) -> Backbone:
    return Backbone(
        name, f'{title} for 32x32 images', ASRCifarResNet, cifar_cfg(),
        {'feature_cfg': {'out_indices': (0, 1, 2, 3)}, **arguments}, **EVERYTHING, **more)


def _resnet(depth: int, block: Any, layers: int) -> Backbone:
    return _backbone(f'resnet{depth}', f'ResNet-{depth}', {'block': block, 'layers': (layers,) * 3})


# Depth 6n + 2 of basic blocks (He et al.), 9n + 2 of bottlenecks (the papers' tables).
_BASIC = [_resnet(depth, BasicBlock, (depth - 2) // 6) for depth in (20, 32, 44, 56, 110)]
_BOTTLENECK = [_resnet(depth, Bottleneck, (depth - 2) // 9) for depth in (83, 164, 245, 326, 407)]
# Zagoruyko and Komodakis: depth 6n + 4, four times as wide.
_WIDE = _backbone('wrn52_4', 'Wide ResNet-52-4', {
    'block': WideBlock, 'layers': (8, 8, 8), 'channels': (64, 128, 256), 'stem_width': 16, 'preact': True,
}, rd_ratios={'se': 1 / 4, 'sem': 1 / 4})
# Xie et al.: depth 9n + 2, 8 groups of 32, 64 and 128 channels: the inner width is twice the outer one.
_NEXT = _backbone('resnext101_8x32d', 'ResNeXt-101 8x32d', {
    'block': Bottleneck, 'layers': (11, 11, 11), 'channels': (32, 64, 128),
    'block_args': {'cardinality': 8, 'base_width': 64},
}, rd_ratios={'se': 1 / 4, 'sem': 1 / 4, 'spa': 1 / 4})
# The papers' counts of SE and SEM on these two, and of SPA on the second, need a quarter.

register_backbones(__name__, *_BASIC, *_BOTTLENECK, _WIDE, _NEXT)
