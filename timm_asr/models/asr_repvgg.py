"""RepVGG-A0 and B3 by name, for ImageNet (timm's own) and for small images: with gates in the blocks, ASR, or both.

Ding et al.: RepVGG: Making VGG-style ConvNets Great Again, CVPR 2021, https://arxiv.org/abs/2101.03697.
"""

from collections.abc import Callable
from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs
from timm.models.byobnet import ByoBlockCfg, ByobNet, ByoModelCfg, RepVggBlock
from torch import nn

from .cfgs import SmallStem, cifar_cfg, imagenet_cfg
from .zoo import Variant, ZooModel, asr_variants, register

__all__ = ['ASRCifarRepVGG', 'ASRRepVGG']


class ASRRepVGG(ZooModel, ByobNet):
    """timm's ``ByobNet`` of RepVGG blocks with the keywords of :class:`ZooModel`.

    A gate stands where timm's block has a place for attention: after the sum of the branches, which is what ASR scales.
    """

    GATED = (RepVggBlock,)

    @staticmethod
    def place_gate(block: Any, make: Callable[[int], nn.Module]) -> None:
        block.attn = make(block.conv_kxk.conv.out_channels)


class ASRCifarRepVGG(ZooModel, SmallStem, ByobNet):
    """:class:`ASRRepVGG` for small images: stem and first stage keep their size."""

    GATED = (RepVggBlock,)
    place_gate = staticmethod(ASRRepVGG.place_gate)


# Of each size: channels of stem and stages, blocks of the stages (Table 2 of the RepVGG paper).
_SIZES = {
    'repvgg_a0': ((48, 48, 96, 192, 1280), (2, 4, 14, 1)),
    'repvgg_b3': ((64, 192, 384, 768, 2560), (4, 6, 16, 1)),
}
_CIFAR = '_cifar'


def _model_cfg(backbone: str) -> ByoModelCfg:
    (stem, *channels), depths = _SIZES[backbone.removesuffix(_CIFAR)]
    strides = (1 if backbone.endswith(_CIFAR) else 2, 2, 2, 2)
    blocks = tuple(
        ByoBlockCfg(type='rep', d=d, c=c, s=s, gs=0) for d, c, s in zip(depths, channels, strides, strict=True))
    return ByoModelCfg(blocks=blocks, stem_type='rep', stem_chs=stem)


def _cfg(variant: Variant) -> dict[str, Any]:
    stem = 'stem.layer' if variant.asr else 'stem'  # the stem is a block, which ASR wraps
    names = {'first_conv': (f'{stem}.conv_kxk.conv', f'{stem}.conv_1x1.conv'), 'classifier': 'head.fc'}
    if variant.backbone.endswith(_CIFAR):
        return cifar_cfg(pool_size=(4, 4), **names)
    return imagenet_cfg(interpolation='bilinear', **names)


_SMALL = [f'{name}{_CIFAR}' for name in _SIZES]
_VARIANTS = {v.name: v for name in (*_SIZES, *_SMALL) for v in asr_variants(name)}
_VARIANTS |= {name: Variant(name) for name in _SMALL}
default_cfgs = generate_default_cfgs({name: _cfg(variant) for name, variant in _VARIANTS.items()})


def _create(variant: str, pretrained: bool = False, **kwargs: Any) -> nn.Module:
    backbone = _VARIANTS[variant].backbone
    small = backbone.endswith(_CIFAR)
    return build_model_with_cfg(
        ASRCifarRepVGG if small else ASRRepVGG,
        variant,
        pretrained,
        model_cfg=_model_cfg(backbone),
        feature_cfg={'flatten_sequential': True, 'out_indices': (0, 1, 2, 3) if small else (0, 1, 2, 3, 4)},
        **kwargs,
    )


for _variant in _VARIANTS.values():
    _size, _, _form = _variant.backbone.removeprefix('repvgg_').partition('_')
    register(
        __name__,
        _variant,
        _create,
        plain=_variant.plain,
        doc=f'RepVGG-{_size.upper()}{" for small images" if _form else ""}{_variant.description}.',
    )
