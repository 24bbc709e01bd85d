"""``timm.data.create_dataset``, and two more names: ``digits`` and ``torch/stl10``."""

from typing import Any

import timm.data
from torchvision.datasets import STL10

from .digits import TRAIN_SPLITS, Digits


def create_dataset(name: str, root: str | None = None, split: str = 'validation', **kwargs: Any) -> Any:
    """A data set by name; ``digits`` is the embedded one, ``torch/stl10`` torchvision's, all others are timm's.

    Args:
        name: ``digits``, ``''`` (folder or tar), ``torch/cifar10``, ``hfds/...``, ``tfds/...``, ``wds/...``
        root: Folder or tar file of the data; not used by ``digits``.
        split: Name of the split.
        **kwargs: As for ``timm.data.create_dataset``.
    """
    if name == 'digits':
        return Digits(split, input_img_mode=kwargs.get('input_img_mode') or 'RGB')
    if name.lower() == 'torch/stl10':
        return STL10(root, split='train' if split in TRAIN_SPLITS else 'test', download=bool(kwargs.get('download')))
    return timm.data.create_dataset(name, root=root, split=split, **kwargs)
