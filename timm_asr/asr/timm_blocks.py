"""timm's own layers and blocks that ASR scales, beyond those in ``timm.layers``.

Blocks that merge themselves for inference are scaled as a whole. What merges a block reads the parameters of its
layers. An ASR on one of them would stand in the way, or worse, be passed over; so it goes around the block and scales
the layers that the block ends in.
"""

import timm.models.byobnet as byobnet
import timm.models.efficientvim as efficientvim
import timm.models.efficientvit_msra as efficientvit
import timm.models.fastvit as fastvit
import timm.models.iformer as iformer
import timm.models.levit as levit
import timm.models.metaformer as metaformer
import timm.models.repghost as repghost
import timm.models.repvit as repvit
import timm.models.shvit as shvit
import timm.models.swiftformer as swiftformer
import timm.models.tiny_vit as tiny_vit
from torch import nn

from .branches import existing, register_branches
from .scaled import register_layer


def mobileone_ends(block: nn.Module) -> list[str]:
    """The norms that the branches of a ``MobileOneBlock`` end in, or its merged convolution."""
    return existing(block, 'reparam_conv') or existing(block, 'identity', 'conv_kxk.bn', 'conv_scale.bn')


def repghost_ends(block: nn.Module) -> list[str]:
    """The norms of the two branches of a ``RepGhostModule``, or its merged convolution."""
    return ['cheap_operation.1', 'fusion_bn.0'] if len(block.fusion_bn) else []  # type: ignore[arg-type]


def _norm(block: nn.Module) -> list[str]:
    return existing(block, 'bn')


register_branches(byobnet.MobileOneBlock, mobileone_ends)
register_branches(fastvit.MobileOneBlock, mobileone_ends)
# x + layer_scale(mixer(x) - norm(x)): the branch is what is scaled.
register_branches(fastvit.RepMixer, lambda block: existing(block, 'layer_scale'))
register_branches(repghost.RepGhostModule, repghost_ends)
# bn(conv(x) + conv1(x) + x); the legacy form has no norm after the sum, and x itself cannot be scaled
register_branches(repvit.RepVggDw, lambda block: [] if block.legacy else ['bn'])
for kind in (
        efficientvit.ConvNorm, iformer.ConvNorm, levit.ConvNorm, repvit.ConvNorm, shvit.Conv2dNorm, tiny_vit.ConvNorm):
    register_branches(kind, _norm)
for kind in (efficientvim.ConvLayer1d, efficientvim.ConvLayer2d):
    register_branches(kind, lambda block: existing(block, 'norm') or ['conv'])

for scale in (fastvit.LayerScale2d, swiftformer.LayerScale2d):
    register_layer(scale, ('gamma',))
for norm in (metaformer.GroupNorm1NoBias, metaformer.LayerNorm2dNoBias):
    register_layer(norm, ('weight',))
register_layer(metaformer.LayerNormNoBias, ('weight',), channels_last=True)
