"""timm's layers and blocks, made known to ASR.

Sites are named for blocks that are known before the whole network is, and for those that have instances without an
addition. All others are found by following the residual additions.

Blocks that merge themselves for inference are scaled as a whole. What merges a block reads the parameters of its
layers. An ASR on one of them would stand in the way, or worse, be passed over; so it goes around the block and scales
the layers that the block ends in.
"""

import timm.models._efficientnet_blocks as efficientnet
import timm.models.byobnet as byobnet
import timm.models.efficientvim as efficientvim
import timm.models.efficientvit_msra as efficientvit
import timm.models.fastvit as fastvit
import timm.models.iformer as iformer
import timm.models.levit as levit
import timm.models.repghost as repghost
import timm.models.repvit as repvit
import timm.models.resnet as resnet
import timm.models.shvit as shvit
import timm.models.tiny_vit as tiny_vit
import timm.models.vision_transformer as vit
import torch
import torch.nn.functional as F
from timm.layers import BatchNormAct2d
from torch import nn

from ..gates.shared import BranchBasicBlock, BranchBottleneck
from .blocks import existing, register_block
from .wrapper import ASR


class NormActASR(ASR):
    """:class:`ASR` around timm's ``BatchNormAct2d``; only TorchScript sees a difference.

    The scale comes before the activation, so there the norm's steps are taken one by one.
    """

    def scripted(self, x: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        bn = self.layer
        if self.training and bn.num_batches_tracked is not None:
            bn.num_batches_tracked.add_(1)
        x = F.batch_norm(
            x, bn.running_mean, bn.running_var, bn.weight * v, bn.bias * v, self.training, bn.momentum, bn.eps)
        return bn.act(bn.drop(x))


class RepVggASR(ASR):
    """ASR around timm's ``RepVggBlock``: the sum of its parallel branches times v, before the block's own gate."""

    def scripted(self, x: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        block = self.layer
        if block.reparam_conv is not None:
            y = block.reparam_conv(x)
        else:
            y = block.drop_path(block.conv_1x1(x) + block.conv_kxk(x))
            if block.identity is not None:
                y = y + block.identity(x)
        return block.act(block.attn(y * v.view(1, -1, 1, 1)))


# What the parallel branches of a block end in: their norms, or the merged convolution.
def _mobileone_ends(block: nn.Module) -> list[str]:
    return existing(block, 'reparam_conv') or existing(block, 'identity', 'conv_kxk.bn', 'conv_scale.bn')


register_block(BatchNormAct2d, scripted=NormActASR)
register_block(byobnet.RepVggBlock, sites=('',), scripted=RepVggASR, ends=lambda block: (
    existing(block, 'reparam_conv') or existing(block, 'conv_kxk.bn', 'conv_1x1.bn', 'identity')))
register_block(byobnet.MobileOneBlock, sites=('',), ends=_mobileone_ends)
register_block(fastvit.MobileOneBlock, ends=_mobileone_ends)
# x + layer_scale(mixer(x) - norm(x)): the residual branch is what is scaled.
register_block(fastvit.RepMixer, sites=('',), ends=lambda block: existing(block, 'layer_scale'))
register_block(repghost.RepGhostModule, ends=lambda block: (
    ['cheap_operation.1', 'fusion_bn.0'] if len(block.fusion_bn) else []))
# bn(conv(x) + conv1(x) + x); the legacy form has no norm after the sum, and x itself cannot be scaled
register_block(repvit.RepVggDw, sites=('',), ends=lambda block: [] if block.legacy else ['bn'])
for kind in (
        efficientvit.ConvNorm, iformer.ConvNorm, levit.ConvNorm, repvit.ConvNorm, shvit.Conv2dNorm, tiny_vit.ConvNorm):
    register_block(kind, ends=lambda block: existing(block, 'bn'))
for kind in (efficientvim.ConvLayer1d, efficientvim.ConvLayer2d):
    register_block(kind, ends=lambda block: existing(block, 'norm') or ['conv'])

_BASIC = ('conv1', 'bn1', 'act1', 'aa', 'conv2', 'bn2', 'act2')
_BOTTLENECK = ('conv1', 'bn1', 'act1', 'conv2', 'bn2', 'act2', 'aa', 'conv3', 'bn3', 'act3')
register_block(resnet.BasicBlock, sites=('bn2',), layers=_BASIC, branch=BranchBasicBlock)
register_block(resnet.Bottleneck, sites=('bn3',), layers=_BOTTLENECK, branch=BranchBottleneck)
register_block(BranchBasicBlock, sites=('bn2',))
register_block(BranchBottleneck, sites=('bn3',))
register_block(vit.Block, sites=('attn.proj', 'mlp.fc2'))
for kind, last in (
        (efficientnet.DepthwiseSeparableConv, 'bn2'), (efficientnet.InvertedResidual, 'bn3'),
        (efficientnet.CondConvResidual, 'bn3'), (efficientnet.EdgeResidual, 'bn2')):
    register_block(kind, sites=(last,))
