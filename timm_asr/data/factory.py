"""``timm.data.create_dataset``, and one more name: ``digits``."""

from typing import Any

import timm.data

from .digits import Digits


def create_dataset(name: str, root: str | None = None, split: str = 'validation', **kwargs: Any) -> Any:
    """A data set by name; ``digits`` is the embedded one, everything else is ``timm.data.create_dataset``'s.

    Args:
        name: ``digits``, ``''`` (folder or tar), ``torch/cifar10``, ``hfds/...``, ``tfds/...``, ``wds/...``
        root: Folder or tar file of the data; not used by ``digits``.
        split: Name of the split.
        **kwargs: As for ``timm.data.create_dataset``.
    """
    if name == 'digits':
        return Digits(split, input_img_mode=kwargs.get('input_img_mode') or 'RGB')
    return timm.data.create_dataset(name, root=root, split=split, **kwargs)
