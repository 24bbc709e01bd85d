"""ResNet-56 and 110 with asymmetric convolution blocks by name: plain, with gates in the blocks, ASR, or both."""

from .acnet import ACBasicBlock, ACResNet
from .cfgs import cifar_cfg
from .registry import Backbone, register_backbones
from .zoo import ZooModel

__all__ = ['ASRACResNet']


class ASRACResNet(ZooModel, ACResNet):
    """:class:`ACResNet` with the keywords of :class:`ZooModel`.

    ASR scales the sum of the branches of the last asymmetric block in each residual branch.
    """


def _backbone(depth: int) -> Backbone:
    first = tuple(f'conv1.conv_{kernel}.conv' for kernel in ('3x3', '1x3', '3x1'))
    return Backbone(
        f'resnet{depth}_acnet', f'ResNet-{depth} of asymmetric convolution blocks for 32x32 images', ASRACResNet,
        cifar_cfg(first_conv=first),
        {'block': ACBasicBlock, 'layers': ((depth - 2) // 6,) * 3, 'feature_cfg': {'out_indices': (0, 1, 2, 3)}})


register_backbones(__name__, _backbone(56), _backbone(110))
