"""The CIFAR ResNets by name: plain, with each gate in their blocks, with ASR, with both, with shared units."""

from typing import Any

import torch.nn as nn
from timm.models import build_model_with_cfg, generate_default_cfgs
from timm.models.resnet import BasicBlock, Bottleneck

from ..inference.reparameterize import built_for_inference
from .cfgs import cifar_cfg
from .cifar_resnet import CifarResNet
from .pretrained import check_shipped, with_shipped
from .residual import ResidualModel
from .wide import WideBlock
from .zoo import Variant, register, variants

__all__ = ['ASRCifarResNet']

# Depth 6n + 2 of basic blocks (He et al.), 9n + 2 of bottlenecks (the papers' tables).
_BASIC = (20, 32, 44, 56, 110)
_BOTTLENECK = (83, 164, 245, 326, 407)


class ASRCifarResNet(ResidualModel, CifarResNet):
    """:class:`CifarResNet` with the keywords of :class:`ResidualModel`."""


def _architecture(depth: int) -> dict[str, Any]:
    basic = depth in _BASIC
    blocks = (depth - 2) // (6 if basic else 9)
    return {'block': BasicBlock if basic else Bottleneck, 'layers': (blocks,) * 3}


_ARCHITECTURES = {
    **{f'resnet{depth}': _architecture(depth) for depth in _BASIC + _BOTTLENECK},
    # Zagoruyko and Komodakis: depth 6n + 4, four times as wide.
    'wrn52_4': {
        'block': WideBlock, 'layers': (8, 8, 8), 'channels': (64, 128, 256), 'stem_width': 16, 'preact': True},
    # Xie et al.: depth 9n + 2, 8 groups of 32, 64 and 128 channels: the inner width is twice the outer one.
    'resnext101_8x32d': {
        'block': Bottleneck,
        'layers': (11, 11, 11),
        'channels': (32, 64, 128),
        'block_args': {'cardinality': 8, 'base_width': 64},
    },
}
_TITLES = {'wrn52_4': 'Wide ResNet-52-4', 'resnext101_8x32d': 'ResNeXt-101 8x32d'}
_VARIANTS = {v.name: v for name in _ARCHITECTURES for v in (Variant(name), *variants(name))}


default_cfgs = generate_default_cfgs(with_shipped({name: cifar_cfg() for name in _VARIANTS}))


def _create(variant: str, pretrained: bool = False, **kwargs: Any) -> nn.Module:
    backbone = _VARIANTS[variant].backbone
    kwargs = {**_ARCHITECTURES[backbone], **kwargs}
    kwargs['block_args'] = {**_ARCHITECTURES[backbone].get('block_args', {}), **(kwargs.get('block_args') or {})}
    if backbone in _TITLES and 'se' in (kwargs.get('gate'), kwargs.get('asr'), kwargs.get('dia')):
        kwargs.setdefault('rd_ratio', 1 / 4)  # as the papers' counts of SE on these two need it
    form: bool | str = False
    if pretrained and check_shipped(variant, kwargs.get('pretrained_cfg'), kwargs.get('pretrained_cfg_overlay')):
        form = kwargs.pop('reparameterized', False)  # what ships is trainable, so it is loaded first
    model = build_model_with_cfg(
        ASRCifarResNet,
        variant,
        pretrained,
        feature_cfg={'out_indices': (0, 1, 2, 3)},
        **kwargs,
    )
    built_for_inference(model, form)
    return model


def _title(backbone: str) -> str:
    return _TITLES.get(backbone, f'ResNet-{backbone.removeprefix("resnet")}')


for _variant in _VARIANTS.values():
    register(
        __name__,
        _variant,
        _create,
        plain=_variant.plain,
        doc=f'{_title(_variant.backbone)} for 32x32 images{_variant.description}.',
    )
