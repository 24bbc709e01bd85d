"""timm's vision transformers by name with ASR at the outputs of attention and of the MLP."""

from typing import Any

import torch.nn as nn
from timm.data import IMAGENET_INCEPTION_MEAN, IMAGENET_INCEPTION_STD
from timm.models import build_model_with_cfg, generate_default_cfgs
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn

from .zoo import ZooModel, register, variants

__all__ = ['ASRVisionTransformer']


class ASRVisionTransformer(ZooModel, VisionTransformer):
    """timm's ``VisionTransformer`` with the keywords of :class:`ZooModel`."""


_ARCHITECTURES: dict[str, dict[str, Any]] = {
    'vit_tiny': {'patch_size': 16, 'embed_dim': 192, 'depth': 12, 'num_heads': 3},
    'vit_small': {'patch_size': 16, 'embed_dim': 384, 'depth': 12, 'num_heads': 6},
    'vit_base': {'patch_size': 16, 'embed_dim': 768, 'depth': 12, 'num_heads': 12},
    'vit_base_384': {'patch_size': 16, 'embed_dim': 768, 'depth': 12, 'num_heads': 12},
}
_STOCK = {
    'vit_tiny': 'vit_tiny_patch16_224',
    'vit_small': 'vit_small_patch16_224',
    'vit_base': 'vit_base_patch16_224',
    'vit_base_384': 'vit_base_patch16_384',
}
_VARIANTS = {v.name: v for name in _ARCHITECTURES for v in variants(name, gates=False)}


def _cfg(backbone: str) -> dict[str, Any]:
    large = backbone.endswith('384')
    return {
        'num_classes': 1000,
        'input_size': (3, 384, 384) if large else (3, 224, 224),
        'pool_size': None,
        'crop_pct': 1.0 if large else 0.9,
        'interpolation': 'bicubic',
        'fixed_input_size': True,
        'mean': IMAGENET_INCEPTION_MEAN,
        'std': IMAGENET_INCEPTION_STD,
        'first_conv': 'patch_embed.proj',
        'classifier': 'head',
    }


default_cfgs = generate_default_cfgs({v.name: _cfg(v.backbone) for v in _VARIANTS.values()})


def _create(variant: str, pretrained: bool = False, **kwargs: Any) -> nn.Module:
    architecture = _ARCHITECTURES[_VARIANTS[variant].backbone]
    return build_model_with_cfg(
        ASRVisionTransformer,
        variant,
        pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,
        feature_cfg={'out_indices': kwargs.pop('out_indices', 3), 'feature_cls': 'getter'},
        **{**architecture, **kwargs},
    )


for _variant in _VARIANTS.values():
    register(
        __name__,
        _variant,
        _create,
        plain=_STOCK[_variant.backbone],
        doc=f'{_STOCK[_variant.backbone]} with ASR({_variant.asr}) at the outputs of attention and of the MLP.',
    )
