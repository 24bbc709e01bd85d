"""ResNets for small images (CIFAR, STL-10): a 3x3 stem and three stages of timm's residual blocks.

He et al.: Deep Residual Learning for Image Recognition, CVPR 2016, section 4.2, with projection shortcuts as in the
ASR authors' code (https://github.com/zhongshsh/ASR). timm has no such network.
"""

from typing import Any

import torch
from timm.layers import DropPath, LayerType, get_act_layer, get_norm_layer, to_ntuple
from timm.models import checkpoint_seq
from timm.models.resnet import downsample_conv
from torch import nn

from .staged import StagedNet


class CifarResNet(StagedNet):
    """ResNet with three stages, for images of 32x32 or so.

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
        dd = {'device': device, 'dtype': dtype}
        act_layer = get_act_layer(act_layer)
        norm_layer = get_norm_layer(norm_layer)

        width = stem_width or channels[0]
        self.conv1 = nn.Conv2d(self.in_chans, width, 3, padding=1, bias=False, **dd)
        self.bn1 = nn.Identity() if preact else norm_layer(width, **dd)
        self.act1 = nn.Identity() if preact else act_layer(inplace=True)
        self.feature_info = [{'num_chs': width, 'reduction': 1, 'module': 'act1'}]

        rates = torch.linspace(0, drop_path_rate, sum(layers), device='cpu').split(layers)
        kinds = to_ntuple(len(channels))(block)
        for stage, (kind, planes, stage_rates) in enumerate(zip(kinds, channels, rates, strict=True)):
            blocks = make_stage(
                kind, width, planes, stride=1 if stage == 0 else 2, drop_path_rates=stage_rates.tolist(),
                act_layer=act_layer, norm_layer=norm_layer, **(block_args or {}), **dd)
            width = planes * kind.expansion
            self.add_module(f'layer{stage + 1}', blocks)
            self.feature_info.append({'num_chs': width, 'reduction': 2**stage, 'module': f'layer{stage + 1}'})

        self.norm = norm_layer(width, **dd) if preact else nn.Identity()
        self.act = act_layer() if preact else nn.Identity()
        self.make_head(width, **dd)
        self.init_weights(zero_init_last=zero_init_last)

    @torch.jit.ignore
    def init_weights(self, zero_init_last: bool = False) -> None:
        """He initialisation of every convolution (fan out)."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode='fan_out', nonlinearity='relu')
        if zero_init_last:
            for module in self.modules():
                if hasattr(module, 'zero_init_last'):
                    module.zero_init_last()

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, str]:
        """Patterns that group parameters by stage (coarse) or block, for layer-wise learning rates."""
        return {'stem': r'^conv1|bn1', 'blocks': r'^layer(\d+)' if coarse else r'^layer(\d+)\.(\d+)'}

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """Images (B, C, H, W) to the last feature map (B, num_features, H / 4, W / 4)."""
        x = self.act1(self.bn1(self.conv1(x)))
        if self.grad_checkpointing and not torch.jit.is_scripting():
            x = checkpoint_seq([self.layer1, self.layer2, self.layer3], x, flatten=True)
        else:
            x = self.layer1(x)
            x = self.layer2(x)
            x = self.layer3(x)
        return self.act(self.norm(x))


def make_stage(
        block: Any, in_planes: int, planes: int, stride: int, drop_path_rates: list[float], norm_layer: type[nn.Module],
        device: torch.device | str | None = None, dtype: torch.dtype | None = None, **block_args: Any) -> nn.Sequential:
    """One stage of residual blocks, the first with ``stride`` and, where shapes differ, a projection shortcut.

    A block class may bring its own, ``make_shortcut``, with the arguments of timm's ``downsample_conv``.
    """
    make_shortcut = getattr(block, 'make_shortcut', downsample_conv)
    dd = {'device': device, 'dtype': dtype}
    blocks = []
    for index, rate in enumerate(drop_path_rates):
        out_planes = planes * block.expansion
        shortcut = None
        if index == 0 and (stride != 1 or in_planes != out_planes):
            shortcut = make_shortcut(in_planes, out_planes, kernel_size=1, stride=stride, norm_layer=norm_layer, **dd)
        blocks.append(block(
            in_planes, planes, stride=stride if index == 0 else 1, downsample=shortcut,
            drop_path=DropPath(rate) if rate > 0 else None, norm_layer=norm_layer, **block_args, **dd))
        in_planes = out_planes
    return nn.Sequential(*blocks)
