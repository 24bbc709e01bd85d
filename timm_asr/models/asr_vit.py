"""timm's vision transformers by name with ASR at the outputs of attention and of the MLP."""

from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn

from .cfgs import imagenet_cfg
from .registry import EVERYTHING, Backbone, register_backbones
from .zoo import ZooModel


class ASRVisionTransformer(ZooModel, VisionTransformer):
    """timm's ``VisionTransformer`` with the keywords of :class:`ZooModel`."""


register_backbones(__name__, *(
    Backbone(
        name, stock, ASRVisionTransformer, imagenet_cfg(
            pool_size=None, fixed_input_size=True, first_conv='patch_embed.proj', classifier='head'),
        {'patch_size': 16, 'embed_dim': width, 'depth': 12, 'num_heads': heads,
         'pretrained_filter_fn': checkpoint_filter_fn, 'feature_cfg': {'out_indices': 3, 'feature_cls': 'getter'}},
        gates=(), asr=EVERYTHING['asr'], stock=stock)
    for name, stock, width, heads in (
        ('vit_tiny', 'vit_tiny_patch16_224', 192, 3), ('vit_small', 'vit_small_patch16_224', 384, 6),
        ('vit_base', 'vit_base_patch16_224', 768, 12), ('vit_base_384', 'vit_base_patch16_384', 768, 12))))
