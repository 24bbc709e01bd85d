"""MobileNet v1 by name, for ImageNet (timm's own) and for small images: with gates in the blocks, ASR, or both.

Howard et al.: MobileNets: Efficient Convolutional Neural Networks for Mobile Vision Applications, 2017,
https://arxiv.org/abs/1704.04861.
"""

from functools import partial
from typing import Any

from timm.models._efficientnet_blocks import DepthwiseSeparableConv
from timm.models._efficientnet_builder import decode_arch_def, resolve_act_layer, resolve_bn_args
from timm.models.efficientnet import EfficientNet
from torch import nn

from .cfgs import SmallStem, cifar_cfg, imagenet_cfg
from .registry import Backbone, register_backbones
from .zoo import ZooModel

# Blocks, stride and channels of each stage (Table 1 of the paper), as timm writes them.
_STAGES = (
    ['dsa_r1_k3_s1_c64'], ['dsa_r2_k3_s2_c128'], ['dsa_r2_k3_s2_c256'], ['dsa_r6_k3_s2_c512'], ['dsa_r2_k3_s2_c1024'])


class ASRMobileNet(ZooModel, EfficientNet):
    """timm's ``EfficientNet`` of depthwise separable blocks with the keywords of :class:`ZooModel`.

    A gate stands where timm's block has a place for squeeze-and-excitation: after the depthwise convolution, its norm
    and activation. ASR scales the norm of the pointwise convolution, the last of the block, before its activation.
    """

    GATED = (DepthwiseSeparableConv, 'se', 'conv_dw')

    def __init__(self, depth_multiplier: float = 1.0, norm_layer: Any = None, **kwargs: Any) -> None:
        norm_layer = norm_layer or partial(nn.BatchNorm2d, **resolve_bn_args(kwargs))
        super().__init__(
            decode_arch_def(_STAGES, depth_multiplier=depth_multiplier), num_features=0, norm_layer=norm_layer,
            act_layer=resolve_act_layer(kwargs, 'relu6'), **kwargs)


class ASRCifarMobileNet(SmallStem, ASRMobileNet):
    """:class:`ASRMobileNet` for small images: the stem keeps their size."""

    STEM = 'conv_stem'


_NAMES = {'first_conv': 'conv_stem', 'classifier': 'classifier'}
_ARGUMENTS = {'feature_cfg': {'feature_cls': 'getter'}}
register_backbones(
    __name__,
    Backbone(
        'mobilenetv1_100', 'MobileNet v1', ASRMobileNet,
        imagenet_cfg(**_NAMES), _ARGUMENTS,
        stock='mobilenetv1_100'),
    Backbone(
        'mobilenetv1_100_cifar', 'MobileNet v1 for small images', ASRCifarMobileNet,
        cifar_cfg(pool_size=(2, 2), **_NAMES), _ARGUMENTS))
