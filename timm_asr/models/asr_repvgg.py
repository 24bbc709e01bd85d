"""RepVGG-A0 and B3 by name, for ImageNet (timm's own) and for small images: with gates in the blocks, ASR, or both.

Ding et al.: RepVGG: Making VGG-style ConvNets Great Again, CVPR 2021, https://arxiv.org/abs/2101.03697.
"""

from typing import Any

from timm.models.byobnet import ByoBlockCfg, ByobNet, ByoModelCfg, RepVggBlock

from .cfgs import SmallStem, cifar_cfg, imagenet_cfg
from .registry import Backbone, Variant, register_backbones
from .zoo import ZooModel


class ASRRepVGG(ZooModel, ByobNet):
    """timm's ``ByobNet`` of RepVGG blocks with the keywords of :class:`ZooModel`.

    A gate stands where timm's block has a place for attention: after the sum of the branches, which is what ASR scales.
    """

    GATED = (RepVggBlock, 'attn', 'conv_kxk.conv')


class ASRCifarRepVGG(SmallStem, ASRRepVGG):
    """:class:`ASRRepVGG` for small images: stem and first stage keep their size."""


def _backbone(name: str, channels: tuple[int, ...], depths: tuple[int, ...], small: bool) -> Backbone:
    """Channels of stem and stages, blocks of the stages: Table 2 of the RepVGG paper."""
    strides = (1 if small else 2, 2, 2, 2)
    blocks = tuple(
        ByoBlockCfg(type='rep', d=d, c=c, s=s, gs=0) for d, c, s in zip(depths, channels[1:], strides, strict=True))
    indices = (0, 1, 2, 3) if small else (0, 1, 2, 3, 4)

    def cfg(variant: Variant) -> dict[str, Any]:
        stem = 'stem.layer' if variant.asr else 'stem'  # the stem is a block, which ASR wraps
        names = {'first_conv': (f'{stem}.conv_kxk.conv', f'{stem}.conv_1x1.conv'), 'classifier': 'head.fc'}
        return cifar_cfg(pool_size=(4, 4), **names) if small else imagenet_cfg(**names)

    arguments = {'model_cfg': ByoModelCfg(blocks=blocks, stem_type='rep', stem_chs=channels[0]),
                 'feature_cfg': {'flatten_sequential': True, 'out_indices': indices}}
    title = f'RepVGG-{name.upper()}'
    if small:
        return Backbone(f'repvgg_{name}_cifar', f'{title} for small images', ASRCifarRepVGG, cfg, arguments)
    return Backbone(f'repvgg_{name}', title, ASRRepVGG, cfg, arguments, stock=f'repvgg_{name}')


register_backbones(__name__, *(
    _backbone(name, channels, depths, small)
    for small in (False, True)
    for name, channels, depths in (
        ('a0', (48, 48, 96, 192, 1280), (2, 4, 14, 1)), ('b3', (64, 192, 384, 768, 2560), (4, 6, 16, 1)))))
