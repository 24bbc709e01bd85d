"""What the default configurations of several backbones have in common."""

from typing import Any

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import nn


def imagenet_cfg(**kwargs: Any) -> dict[str, Any]:
    """Of networks for 1000 classes and images of 224x224, where timm's network has no others (``Backbone.stock``)."""
    return {
        'num_classes': 1000, 'input_size': (3, 224, 224), 'pool_size': (7, 7), 'crop_pct': 0.875,
        'interpolation': 'bicubic', 'mean': IMAGENET_DEFAULT_MEAN, 'std': IMAGENET_DEFAULT_STD, 'first_conv': 'conv1',
        'classifier': 'fc', **kwargs}


def cifar_cfg(**kwargs: Any) -> dict[str, Any]:
    """Of networks for ten classes and images of 32x32."""
    return {  # mean and deviation of the recipes and of the weights that ship, so that names are compared fairly
        'num_classes': 10, 'input_size': (3, 32, 32), 'pool_size': (8, 8), 'crop_pct': 1.0,
        'interpolation': 'bilinear', 'mean': (0.4914, 0.4822, 0.4465), 'std': (0.2023, 0.1994, 0.201),
        'first_conv': 'conv1', 'classifier': 'fc', **kwargs}


class SmallStem:
    """Mixed in before a timm network: its stem keeps the size of the images, so that 32x32 suffice.

    The weights and their names are those of the network itself.
    """

    #: Name of the stem.
    STEM = 'stem'

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for module in getattr(self, self.STEM).modules():
            if isinstance(module, nn.Conv2d):
                module.stride = (1, 1)
        for info in self.feature_info:  # type: ignore[attr-defined]
            info['reduction'] //= 2
