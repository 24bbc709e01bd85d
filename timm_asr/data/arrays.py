"""Images that lie in an array: a data set of PIL images, as timm's transforms take them."""

import zlib
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from PIL import Image
from torch.utils.data import Dataset

TRAIN_SPLITS = ('train', 'training')
HELD_OUT_SPLITS = ('val', 'valid', 'validation', 'eval', 'evaluation', 'test')


def is_training_split(split: str, name: str) -> bool:
    """Whether a split of a data set that has two is the one for training; ``ValueError`` for an unknown split."""
    if split not in TRAIN_SPLITS + HELD_OUT_SPLITS:
        raise ValueError(f'{name} has the splits train and validation, not {split!r}')
    return split in TRAIN_SPLITS


class Arrays(Dataset):
    """Images (N, H, W) or (N, H, W, C) in uint8, and their labels (N,), whole numbers, from arrays.

    ``input_img_mode`` is the PIL mode of the images: ``L`` for one channel, ``RGB`` for three. ``transform``, which
    timm's loaders set, is applied to the PIL image.
    """

    transform: Callable[[Any], Any] | None = None

    def __init__(self, images: np.ndarray, labels: np.ndarray, input_img_mode: str = 'RGB') -> None:
        self.images, self.labels, self.input_img_mode = images, labels, input_img_mode

    def __getitem__(self, index: int) -> tuple[Any, int]:
        image: Any = Image.fromarray(self.images[index]).convert(self.input_img_mode)
        return image if self.transform is None else self.transform(image), int(self.labels[index])

    def __len__(self) -> int:
        return len(self.labels)


class Npz(Arrays):
    """A NumPy archive with ``x_train``, ``y_train``, ``x_test`` and ``y_test``, as Keras' small sets come.

    The splits are ``train``, and ``validation`` for what the file calls test. ``ValueError`` for an unknown split, or
    a file without such arrays.
    """

    def __init__(self, path: str | Path, split: str = 'train', input_img_mode: str = 'RGB') -> None:
        part = 'train' if is_training_split(split, str(path)) else 'test'
        try:
            with np.load(path) as arrays:
                missing = {f'x_{part}', f'y_{part}'} - set(arrays)
                if missing:
                    raise ValueError(f'it has no array {min(missing)!r}, only {", ".join(sorted(arrays)) or "none"}')
                images, labels = arrays[f'x_{part}'], arrays[f'y_{part}'].reshape(-1)
        except (BadZipFile, EOFError, TypeError, zlib.error) as error:
            raise ValueError(f'it is no whole NumPy archive ({error})') from None
        images = images[..., 0] if images.shape[3:] == (1,) else images
        if images.dtype != np.uint8 or images.shape[3:] not in ((), (3,), (4,)) or len(images) != len(labels):
            raise ValueError(f'x_{part} must be (N, H, W) or (N, H, W, C) in uint8 with a label an image, not '
                             f'{images.shape} in {images.dtype} with {len(labels)} labels')
        if labels.dtype.kind not in 'iub' or labels.min(initial=0) < 0:
            raise ValueError(f'y_{part} must be whole numbers from 0 on, not {labels[:3]} in {labels.dtype}')
        super().__init__(images, labels, input_img_mode)
        self.classes = [str(label) for label in range(int(labels.max()) + 1)]


class Digits(Arrays):
    """UCI handwritten digits, 8x8, 10 classes: ``train`` (1,438 images) or ``validation`` (359, stratified, fixed).

    They come with the package (``README.md`` beside this file). The modes ``L`` and ``RGB`` give one channel or three
    equal ones. ``ValueError`` for an unknown split.
    """

    classes = [str(digit) for digit in range(10)]

    def __init__(self, split: str = 'train', input_img_mode: str = 'RGB') -> None:
        training = is_training_split(split, 'digits')
        with (files(__package__) / 'digits.npz').open('rb') as file, np.load(file) as arrays:
            chosen = arrays['held_out'] != training
            # 0 to 16 becomes 0 to 255, as image files have it.
            images = (arrays['images'][chosen].astype(np.float32) * (255 / 16)).round().astype(np.uint8)
            super().__init__(images, arrays['labels'][chosen].astype(int), input_img_mode)
