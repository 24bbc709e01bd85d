"""VGG19 with BatchNorm for small images by name: plain, with gates in the blocks, ASR, or both.

Simonyan, Zisserman: Very Deep Convolutional Networks for Large-Scale Image Recognition, ICLR 2015,
https://arxiv.org/abs/1409.1556, with one linear layer as its classifier, as is usual for CIFAR.
"""

from collections.abc import Sequence
from typing import Any

import torch
from timm.layers import LayerType, get_act_layer, get_norm_layer
from timm.models import checkpoint_seq
from torch import nn

from ..asr.blocks import register_block
from .cfgs import cifar_cfg
from .registry import Backbone, register_backbones
from .staged import StagedNet
from .zoo import ZooModel


class VGGBlock(nn.Module):
    """A 3x3 convolution, its norm, its activation and a place for attention: (B, C, H, W) to (B, C', H, W)."""

    def __init__(
            self, in_channels: int, out_channels: int, act_layer: type[nn.Module] = nn.ReLU,
            norm_layer: type[nn.Module] = nn.BatchNorm2d, device: torch.device | str | None = None,
            dtype: torch.dtype | None = None) -> None:
        super().__init__()
        dd = {'device': device, 'dtype': dtype}
        self.conv = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False, **dd)  # type: ignore[arg-type]
        self.bn = norm_layer(out_channels, **dd)
        self.act = act_layer()
        self.attn = nn.Identity()
        nn.init.kaiming_normal_(self.conv.weight, mode='fan_out', nonlinearity='relu')

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.attn(self.act(self.bn(self.conv(x))))


register_block(VGGBlock, sites=('bn',))


class CifarVGG(StagedNet):
    """VGG for images of 32x32 or so: stages of 3x3 convolutions with a 2x2 maximum pooling between.

    ``(B, in_chans, H, W)`` to ``(B, num_classes)``; feature maps at H, H / 2, ... after the stages. On 32x32 images the
    last pooling of VGG covers the whole map of 2x2, so here it is the global one, which makes any size work.

    Args:
        layers: Number of convolutions in each stage.
        channels: Of each stage.
        global_pool: Pooling before the classifier, '' for none.
        kwargs: Of :class:`StagedNet`.
    """

    STEM, STAGE = r'^stages\.0\.0', r'stages\.'

    def __init__(
            self, layers: Sequence[int] = (2, 2, 4, 4, 4), channels: Sequence[int] = (64, 128, 256, 512, 512),
            global_pool: str = 'max', act_layer: LayerType = nn.ReLU, norm_layer: LayerType = nn.BatchNorm2d,
            device: torch.device | str | None = None, dtype: torch.dtype | None = None, **kwargs: Any) -> None:
        super().__init__(global_pool=global_pool, **kwargs)
        dd: dict[str, Any] = {'device': device, 'dtype': dtype}
        kinds = {'act_layer': get_act_layer(act_layer), 'norm_layer': get_norm_layer(norm_layer)}
        stages, width = [], self.in_chans
        for index, (depth, planes) in enumerate(zip(layers, channels, strict=True)):
            convolutions = [VGGBlock(planes if n else width, planes, **kinds, **dd) for n in range(depth)]
            stages.append(nn.Sequential(*([nn.MaxPool2d(2)] if index else []), *convolutions))
            self.feature_info.append({'num_chs': planes, 'reduction': 2**index, 'module': f'stages.{index}'})
            width = planes
        self.stages = nn.Sequential(*stages)
        self.CHAIN = tuple(info['module'] for info in self.feature_info)
        self.make_head(width, **dd)

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """Images (B, in_chans, H, W) to the last feature map (B, num_features, H / 16, W / 16)."""
        if self.grad_checkpointing and not torch.jit.is_scripting():
            return checkpoint_seq(self.stages, x, flatten=True)
        return self.stages(x)


class ASRCifarVGG(ZooModel, CifarVGG):
    """:class:`CifarVGG` with the keywords of :class:`ZooModel`.

    ASR scales the norm of each convolution. A gate stands after the activation of each, where the SE paper puts it in
    networks without shortcuts.
    """

    GATED = (VGGBlock, 'attn', 'conv')


register_backbones(__name__, Backbone(
    'vgg19_cifar', 'VGG19 with BatchNorm for 32x32 images', ASRCifarVGG,
    cifar_cfg(pool_size=(2, 2), first_conv='stages.0.0.conv'),
    {'feature_cfg': {'feature_cls': 'getter', 'out_indices': (0, 1, 2, 3, 4)}}))
