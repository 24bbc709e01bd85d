"""timm's ImageNet ResNets by name with each gate in their blocks, with ASR, with both, with shared units."""

from typing import Any

from timm.models.resnet import BasicBlock, Bottleneck, ResNet

from .cfgs import imagenet_cfg
from .registry import EVERYTHING, Backbone, register_backbones
from .residual import ResidualModel

__all__ = ['ASRResNet']


class ASRResNet(ResidualModel, ResNet):
    """timm's ``ResNet`` with the keywords of :class:`ResidualModel`."""


def _backbone(depth: int, block: Any, layers: tuple[int, ...]) -> Backbone:
    return Backbone(
        f'resnet{depth}', f'ResNet-{depth}', ASRResNet, imagenet_cfg(), {'block': block, 'layers': layers},
        stock=f'resnet{depth}', **EVERYTHING)


register_backbones(
    __name__,
    _backbone(18, BasicBlock, (2, 2, 2, 2)),
    _backbone(34, BasicBlock, (3, 4, 6, 3)),
    _backbone(50, Bottleneck, (3, 4, 6, 3)),
    _backbone(101, Bottleneck, (3, 4, 23, 3)),
    _backbone(152, Bottleneck, (3, 8, 36, 3)))
