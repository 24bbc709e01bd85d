"""ShuffleNetV2 by name, for ImageNet (torchvision's weights fit) and for small images: with gates, ASR, or both.

Ma et al.: ShuffleNet V2: Practical Guidelines for Efficient CNN Architecture Design, ECCV 2018,
https://arxiv.org/abs/1807.11164. timm has no such network; its blocks are torchvision's.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from timm.models import checkpoint_seq
from torch import nn
from torchvision.models import ShuffleNet_V2_X1_0_Weights
from torchvision.models import ShuffleNetV2 as TorchvisionNet
from torchvision.models.shufflenetv2 import InvertedResidual

from ..asr.blocks import register_block
from .cfgs import cifar_cfg, imagenet_cfg
from .registry import Backbone, register_backbones
from .staged import StagedNet
from .zoo import ZooModel

# The second branch is pointwise, norm, activation, depthwise, norm, pointwise, norm (number 6), activation.
register_block(InvertedResidual, sites=('branch2.6',))


class ShuffleNetV2(StagedNet):
    """torchvision's ShuffleNetV2, (B, in_chans, H, W) to (B, num_classes), with timm's interface and its own names.

    Args:
        layers: Number of blocks in each of the three stages.
        channels: Of the stem, each stage, and the last convolution.
        small_images: The stem keeps the size of the images, and the pooling after it is left out.
        kwargs: Of :class:`StagedNet`.
    """

    CHAIN = ('conv1', 'maxpool', 'stage2', 'stage3', 'stage4', 'conv5')
    STEM, STAGE = '^conv1', 'stage'

    def __init__(
            self, layers: Sequence[int] = (4, 8, 4), channels: Sequence[int] = (24, 116, 232, 464, 1024),
            small_images: bool = False, device: torch.device | str | None = None, dtype: torch.dtype | None = None,
            **kwargs: Any) -> None:
        super().__init__(**kwargs)
        with nullcontext() if device is None else torch.device(device):  # torchvision's network takes neither
            net = TorchvisionNet(list(layers), list(channels), num_classes=1)
            net.conv1[0] = nn.Conv2d(self.in_chans, channels[0], 3, 1 if small_images else 2, padding=1, bias=False)
            if small_images:
                net.maxpool = nn.Identity()
        for part in self.CHAIN:
            self.add_module(part, net.get_submodule(part).to(dtype=dtype))
        # The features of a resolution are those that its last part puts out.
        taps = ['conv1', *([] if small_images else ['maxpool']), 'stage2', 'stage3', 'conv5']
        widths = dict(zip(self.CHAIN, (channels[0], *channels), strict=True))
        self.feature_info = [{'num_chs': widths[part], 'reduction': 2 ** (power + (not small_images)), 'module': part}
                             for power, part in enumerate(taps)]
        self.make_head(channels[4], device=device, dtype=dtype)

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        found = super().group_matcher(coarse)
        return {**found, 'blocks': [(found['blocks'], None), (r'^conv5', (99999,))]}  # with the last block

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """Images (B, in_chans, H, W) to the last feature map (B, num_features, H / 32, W / 32), 8 for small images."""
        x = self.maxpool(self.conv1(x))
        if self.grad_checkpointing and not torch.jit.is_scripting():
            x = checkpoint_seq([self.stage2, self.stage3, self.stage4], x, flatten=True)
        else:
            x = self.stage4(self.stage3(self.stage2(x)))
        return self.conv5(x)


class ASRShuffleNetV2(ZooModel, ShuffleNetV2):
    """:class:`ShuffleNetV2` with the keywords of :class:`ZooModel`.

    ASR scales the last norm of each block's second branch, the one that is convolved in every block. A gate stands at
    the end of that branch, so it sees what the block adds to its input and not what it passes on.
    """

    GATED = (InvertedResidual, 'branch2.8', 'branch2.5')


_NAMES = {'first_conv': 'conv1.0', 'classifier': 'fc'}
_CFG = imagenet_cfg(interpolation='bilinear', **_NAMES)
register_backbones(
    __name__,
    Backbone(
        'shufflenetv2_100', 'ShuffleNetV2 of width 1.0', ASRShuffleNetV2, _CFG,
        {'feature_cfg': {'feature_cls': 'getter', 'out_indices': (0, 1, 2, 3, 4)}},
        weights={'tv_in1k': {'url': ShuffleNet_V2_X1_0_Weights.IMAGENET1K_V1.url, 'license': 'bsd-3-clause'}}),
    Backbone(
        'shufflenetv2_100_cifar', 'ShuffleNetV2 of width 1.0 for small images', ASRShuffleNetV2,
        cifar_cfg(pool_size=(4, 4), **_NAMES),
        {'small_images': True, 'feature_cfg': {'feature_cls': 'getter', 'out_indices': (0, 1, 2, 3)}}))
