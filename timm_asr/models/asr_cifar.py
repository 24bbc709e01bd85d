"""The CIFAR ResNets by name: plain, with each gate in their blocks, with ASR, with both."""

from typing import Any

import torch.nn as nn
from timm.models import build_model_with_cfg, generate_default_cfgs
from timm.models.resnet import BasicBlock, Bottleneck

from .cifar_resnet import CifarResNet
from .zoo import Variant, ZooModel, register, variants

__all__ = ['ASRCifarResNet']

# Depth 6n + 2 of basic blocks (He et al.), 9n + 2 of bottlenecks (the papers' tables).
_BASIC = (20, 32, 44, 56, 110)
_BOTTLENECK = (83, 164, 245, 326, 407)


class ASRCifarResNet(ZooModel, CifarResNet):
    """:class:`CifarResNet` with the keywords of :class:`ZooModel`."""


def _architecture(depth: int) -> dict[str, Any]:
    basic = depth in _BASIC
    blocks = (depth - 2) // (6 if basic else 9)
    return {'block': BasicBlock if basic else Bottleneck, 'layers': (blocks,) * 3}


_ARCHITECTURES = {f'resnet{depth}': _architecture(depth) for depth in _BASIC + _BOTTLENECK}
_VARIANTS = {v.name: v for name in _ARCHITECTURES for v in (Variant(name), *variants(name))}


def _cfg(**kwargs: Any) -> dict[str, Any]:
    return {
        'num_classes': 10,
        'input_size': (3, 32, 32),
        'pool_size': (8, 8),
        'crop_pct': 1.0,
        'interpolation': 'bilinear',
        'mean': (0.4914, 0.4822, 0.4465),  # of the training images of CIFAR-10
        'std': (0.2470, 0.2435, 0.2616),
        'first_conv': 'conv1',
        'classifier': 'fc',
        **kwargs,
    }


default_cfgs = generate_default_cfgs({name: _cfg() for name in _VARIANTS})


def _create(variant: str, pretrained: bool = False, **kwargs: Any) -> nn.Module:
    architecture = _ARCHITECTURES[_VARIANTS[variant].backbone]
    return build_model_with_cfg(
        ASRCifarResNet,
        variant,
        pretrained,
        feature_cfg={'out_indices': (0, 1, 2, 3)},
        **{**architecture, **kwargs},
    )


for _variant in _VARIANTS.values():
    register(
        __name__,
        _variant,
        _create,
        plain=Variant(_variant.backbone, _variant.gate).name,
        doc=f'ResNet-{_variant.backbone.removeprefix("resnet")} for 32x32 images'
            + (f', {_variant.gate} in every block' if _variant.gate else '')
            + (f', ASR({_variant.asr}) at the last norm of every block' if _variant.asr else '') + '.',
    )
