"""ResNets for small images by name: plain, with each gate in their blocks, with ASR, with both, with shared units.

He et al.: Deep Residual Learning for Image Recognition, CVPR 2016, section 4.2, with projection shortcuts as in the
ASR authors' code (https://github.com/zhongshsh/ASR). timm has no such network.
"""

from typing import Any

import torch
from timm.layers import LayerType, get_act_layer, get_norm_layer, to_ntuple
from timm.models import checkpoint_seq
from timm.models.resnet import BasicBlock, Bottleneck, ResNet, make_blocks
from torch import nn

from .cfgs import cifar_cfg
from .registry import EVERYTHING, Backbone, register_backbones
from .residual import ResidualModel
from .staged import StagedNet
from .wide import WideBlock


class CifarResNet(StagedNet):
    """ResNet with a 3x3 stem and three stages of timm's residual blocks, for images of 32x32 or so (CIFAR, STL-10).

    ``(B, in_chans, H, W)`` to ``(B, num_classes)``; feature maps at H, H, H / 2 and H / 4 after stem and stages.

    Args:
        block: Class of the blocks, timm's ``BasicBlock`` or ``Bottleneck`` or one like them, or one class a stage.
        layers: Number of blocks in each of the three stages.
        channels: Planes of each stage; a bottleneck puts out four times as many.
        stem_width: Channels of the stem, by default the planes of the first stage.
        preact: The blocks begin with norm and activation (wide ResNets): none after the stem, but after the last stage.
        drop_path_rate: Stochastic depth, growing linearly to this at the last block.
        zero_init_last: Start the last norm of every residual branch at zero. Off, as in the authors' code.
        block_args: Further arguments of the blocks, e.g. ``attn_layer``.
        kwargs: Of :class:`StagedNet`.
    """

    CHAIN = ('conv1', 'bn1', 'act1', 'layer1', 'layer2', 'layer3')
    TAIL = ('norm', 'act')

    def __init__(
            self, block: type[nn.Module] | tuple[type[nn.Module], ...], layers: tuple[int, int, int],
            channels: tuple[int, int, int] = (16, 32, 64), stem_width: int | None = None, preact: bool = False,
            act_layer: LayerType = nn.ReLU, norm_layer: LayerType = nn.BatchNorm2d, drop_path_rate: float = 0.0,
            zero_init_last: bool = False, block_args: dict[str, Any] | None = None,
            device: torch.device | str | None = None, dtype: torch.dtype | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        dd: dict[str, Any] = {'device': device, 'dtype': dtype}
        act_layer, norm_layer = get_act_layer(act_layer), get_norm_layer(norm_layer)
        width = stem_width or channels[0]
        self.conv1 = nn.Conv2d(self.in_chans, width, 3, padding=1, bias=False, **dd)
        self.bn1 = nn.Identity() if preact else norm_layer(width, **dd)
        self.act1 = nn.Identity() if preact else act_layer(inplace=True)
        stages, infos = make_blocks(
            to_ntuple(len(channels))(block), channels, layers, width, drop_path_rate=drop_path_rate,
            act_layer=act_layer, norm_layer=norm_layer, **(block_args or {}), **dd)
        self.feature_info = [{'num_chs': width, 'reduction': 1, 'module': 'act1'}]
        for name, stage in stages:
            self.add_module(name, stage)
        for info in infos:  # timm's stem has a stride of four
            self.feature_info.append({**info, 'reduction': info['reduction'] // 4})
        width = infos[-1]['num_chs']
        self.norm = norm_layer(width, **dd) if preact else nn.Identity()
        self.act = act_layer() if preact else nn.Identity()
        self.make_head(width, **dd)
        ResNet.init_weights(self, zero_init_last)  # type: ignore[arg-type]

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """Images (B, C, H, W) to the last feature map (B, num_features, H / 4, W / 4)."""
        x = self.act1(self.bn1(self.conv1(x)))
        if self.grad_checkpointing and not torch.jit.is_scripting():
            x = checkpoint_seq([self.layer1, self.layer2, self.layer3], x, flatten=True)
        else:
            x = self.layer3(self.layer2(self.layer1(x)))
        return self.act(self.norm(x))


class ASRCifarResNet(ResidualModel, CifarResNet):
    """:class:`CifarResNet` with the keywords of :class:`ResidualModel`."""


def _backbone(name: str, title: str, arguments: dict[str, Any], **more: Any) -> Backbone:
    return Backbone(
        name, f'{title} for 32x32 images', ASRCifarResNet, cifar_cfg(),
        {'feature_cfg': {'out_indices': (0, 1, 2, 3)}, **arguments}, **EVERYTHING, **more)


# Depth 6n + 2 of basic blocks (He et al.), 9n + 2 of bottlenecks (the papers' tables).
_DEPTHS = {BasicBlock: (6, (20, 32, 44, 56, 110)), Bottleneck: (9, (83, 164, 245, 326, 407))}
register_backbones(
    __name__,
    *(_backbone(f'resnet{depth}', f'ResNet-{depth}', {'block': block, 'layers': ((depth - 2) // each,) * 3})
      for block, (each, depths) in _DEPTHS.items() for depth in depths),
    # Zagoruyko and Komodakis: depth 6n + 4, four times as wide. The ratios are those of the papers' counts.
    _backbone('wrn52_4', 'Wide ResNet-52-4', {
        'block': WideBlock, 'layers': (8, 8, 8), 'channels': (64, 128, 256), 'stem_width': 16, 'preact': True,
    }, rd_ratios={'se': 1 / 4, 'sem': 1 / 4}),
    # Xie et al.: depth 9n + 2, 8 groups of 32, 64 and 128 channels: the inner width is twice the outer one.
    _backbone('resnext101_8x32d', 'ResNeXt-101 8x32d', {
        'block': Bottleneck, 'layers': (11, 11, 11), 'channels': (32, 64, 128),
        'block_args': {'cardinality': 8, 'base_width': 64},
    }, rd_ratios={'se': 1 / 4, 'sem': 1 / 4, 'spa': 1 / 4}))
