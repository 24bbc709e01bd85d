"""ResNet-56 and 110 with asymmetric convolution blocks by name: plain, with gates in the blocks, ASR, or both."""

from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs
from torch import nn

from .acnet import ACBasicBlock, ACResNet
from .cfgs import cifar_cfg
from .zoo import Variant, ZooModel, asr_variants, register

__all__ = ['ASRACResNet']


class ASRACResNet(ZooModel, ACResNet):
    """:class:`ACResNet` with the keywords of :class:`ZooModel`.

    ASR scales the sum of the branches of the last asymmetric block in each residual branch.
    """


_LAYERS = {'resnet56_acnet': (9, 9, 9), 'resnet110_acnet': (18, 18, 18)}
_VARIANTS = {v.name: v for name in _LAYERS for v in (Variant(name), *asr_variants(name))}
_FIRST = tuple(f'conv1.conv_{kernel}.conv' for kernel in ('3x3', '1x3', '3x1'))
default_cfgs = generate_default_cfgs({name: cifar_cfg(first_conv=_FIRST) for name in _VARIANTS})


def _create(variant: str, pretrained: bool = False, **kwargs: Any) -> nn.Module:
    return build_model_with_cfg(
        ASRACResNet,
        variant,
        pretrained,
        feature_cfg={'out_indices': (0, 1, 2, 3)},
        **{'block': ACBasicBlock, 'layers': _LAYERS[_VARIANTS[variant].backbone], **kwargs},
    )


for _variant in _VARIANTS.values():
    register(
        __name__,
        _variant,
        _create,
        plain=_variant.plain,
        doc=f'ResNet-{_variant.backbone.removeprefix("resnet").partition("_")[0]} of asymmetric convolution blocks for '
            f'32x32 images{_variant.description}.',
    )
