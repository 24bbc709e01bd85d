"""timm's blocks that sum branches, made known to ASR: one vector for the sum, and what TorchScript needs."""

import torch
from timm.models.byobnet import RepVggBlock
from torch import nn

from .branches import existing, register_branches
from .vector import ASR, WRAPPERS


class SumASR(ASR):
    """ASR around a block whose output is the sum of its branches: multiplying one is multiplying the other."""

    def scripted(self, x: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return self.layer(x) * v.view(1, -1, 1, 1)


class RepVggASR(ASR):
    """ASR around timm's ``RepVggBlock``: the sum of its branches times v, before a gate that stands in the block."""

    def scripted(self, x: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        block = self.layer
        if block.reparam_conv is not None:
            y = block.reparam_conv(x)
        else:
            y = block.drop_path(block.conv_1x1(x) + block.conv_kxk(x))
            if block.identity is not None:
                y = y + block.identity(x)
        return block.act(block.attn(y * v.view(1, -1, 1, 1)))


def repvgg_ends(block: nn.Module) -> list[str]:
    """The norms that the branches of a ``RepVggBlock`` end in, or its merged convolution."""
    return existing(block, 'reparam_conv') or existing(block, 'conv_kxk.bn', 'conv_1x1.bn', 'identity')


register_branches(RepVggBlock, repvgg_ends)
WRAPPERS[RepVggBlock] = RepVggASR
