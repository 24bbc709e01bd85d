"""timm's ImageNet ResNets by name with each gate in their blocks, with ASR, with both, with shared units."""

from typing import Any

import torch.nn as nn
from timm.models import build_model_with_cfg, generate_default_cfgs
from timm.models.resnet import BasicBlock, Bottleneck, ResNet

from .cfgs import imagenet_cfg
from .residual import ResidualModel
from .zoo import register, variants

__all__ = ['ASRResNet']


class ASRResNet(ResidualModel, ResNet):
    """timm's ``ResNet`` with the keywords of :class:`ResidualModel`."""


_ARCHITECTURES: dict[str, dict[str, Any]] = {
    'resnet18': {'block': BasicBlock, 'layers': (2, 2, 2, 2)},
    'resnet34': {'block': BasicBlock, 'layers': (3, 4, 6, 3)},
    'resnet50': {'block': Bottleneck, 'layers': (3, 4, 6, 3)},
    'resnet101': {'block': Bottleneck, 'layers': (3, 4, 23, 3)},
    'resnet152': {'block': Bottleneck, 'layers': (3, 8, 36, 3)},
}
_VARIANTS = {v.name: v for name in _ARCHITECTURES for v in variants(name)}


default_cfgs = generate_default_cfgs({name: imagenet_cfg() for name in _VARIANTS})


def _create(variant: str, pretrained: bool = False, **kwargs: Any) -> nn.Module:
    architecture = _ARCHITECTURES[_VARIANTS[variant].backbone]
    return build_model_with_cfg(ASRResNet, variant, pretrained, **{**architecture, **kwargs})


for _variant in _VARIANTS.values():
    register(
        __name__,
        _variant,
        _create,
        plain=_variant.plain,
        doc=f'ResNet-{_variant.backbone.removeprefix("resnet")}{_variant.description}.',
    )
