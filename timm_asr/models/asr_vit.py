"""timm's vision transformers by name with ASR at the outputs of attention and of the MLP."""

from timm.data import IMAGENET_INCEPTION_MEAN, IMAGENET_INCEPTION_STD
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn

from .cfgs import imagenet_cfg
from .registry import EVERYTHING, Backbone, register_backbones
from .zoo import ZooModel

__all__ = ['ASRVisionTransformer']


class ASRVisionTransformer(ZooModel, VisionTransformer):
    """timm's ``VisionTransformer`` with the keywords of :class:`ZooModel`."""


def _backbone(name: str, width: int, heads: int, size: int = 224) -> Backbone:
    stock = f'{name.removesuffix("_384")}_patch16_{size}'
    cfg = imagenet_cfg(
        input_size=(3, size, size), pool_size=None, crop_pct=0.9 if size == 224 else 1.0, fixed_input_size=True,
        mean=IMAGENET_INCEPTION_MEAN, std=IMAGENET_INCEPTION_STD, first_conv='patch_embed.proj', classifier='head')
    arguments = {
        'patch_size': 16, 'embed_dim': width, 'depth': 12, 'num_heads': heads,
        'pretrained_filter_fn': checkpoint_filter_fn, 'feature_cfg': {'out_indices': 3, 'feature_cls': 'getter'}}
    return Backbone(name, stock, ASRVisionTransformer, cfg, arguments, gates=(), asr=EVERYTHING['asr'], stock=stock)


register_backbones(
    __name__,
    _backbone('vit_tiny', 192, 3),
    _backbone('vit_small', 384, 6),
    _backbone('vit_base', 768, 12),
    _backbone('vit_base_384', 768, 12, 384))
