"""``timm.data.create_dataset``, and three more names: ``digits``, ``npz:FILE`` and ``torch/stl10``."""

from typing import Any

import timm.data
from torchvision.datasets import STL10

from .arrays import TRAIN_SPLITS, Npz
from .digits import Digits
from .splits import check_split


def create_dataset(name: str, root: str | None = None, split: str = 'validation', **kwargs: Any) -> Any:
    """A data set by name.

    Args:
        name: ``digits`` (the embedded set), ``npz:FILE`` (arrays of images and labels, see ``Npz``), ``torch/stl10``
            (torchvision's); all others are timm's: ``''`` (folder or tar), ``torch/cifar10``, ``hfds/...``,
            ``tfds/...``, ``wds/...``
        root: Folder or tar file of the data; not used by ``digits`` and ``npz:``.
        split: Name of the split.
        **kwargs: As for ``timm.data.create_dataset``.

    Raises:
        ValueError: There is no such split.
    """
    check_split(name, root, split)
    mode = kwargs.get('input_img_mode') or 'RGB'
    if name == 'digits':
        return Digits(split, input_img_mode=mode)
    if name.startswith('npz:'):
        return Npz(name.removeprefix('npz:'), split, mode)
    if name.lower() == 'torch/stl10':
        return STL10(root, split='train' if split in TRAIN_SPLITS else 'test', download=bool(kwargs.get('download')))
    return timm.data.create_dataset(name, root=root, split=split, **kwargs)
