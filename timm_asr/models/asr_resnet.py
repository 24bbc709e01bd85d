"""timm's ImageNet ResNets by name with each gate in their blocks, with ASR, with both, with shared units."""

from timm.models.resnet import BasicBlock, Bottleneck, ResNet

from .cfgs import imagenet_cfg
from .registry import EVERYTHING, Backbone, register_backbones
from .residual import ResidualModel


class ASRResNet(ResidualModel, ResNet):
    """timm's ``ResNet`` with the keywords of :class:`ResidualModel`."""


register_backbones(__name__, *(
    Backbone(
        f'resnet{depth}', f'ResNet-{depth}', ASRResNet, imagenet_cfg(), {'block': block, 'layers': layers},
        stock=f'resnet{depth}', **EVERYTHING)
    for depth, block, layers in (
        (18, BasicBlock, (2, 2, 2, 2)), (34, BasicBlock, (3, 4, 6, 3)), (50, Bottleneck, (3, 4, 6, 3)),
        (101, Bottleneck, (3, 4, 23, 3)), (152, Bottleneck, (3, 8, 36, 3)))))
