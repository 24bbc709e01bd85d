"""1,797 real handwritten digits that come with the package (see ``README.md`` beside this file)."""

from collections.abc import Callable
from importlib.resources import files
from typing import Any

import numpy as np
from PIL import Image
from torch.utils.data import Dataset

TRAIN_SPLITS = ('train', 'training')
_HELD_OUT = ('val', 'valid', 'validation', 'eval', 'evaluation', 'test')


class Digits(Dataset):
    """UCI handwritten digits, 8x8, 10 classes.

    Args:
        split: ``train`` (1,438 images) or ``validation`` (359, stratified, fixed).
        input_img_mode: PIL mode of the images: ``L`` for one channel, ``RGB`` for three equal ones.
        transform: Applied to the PIL image.
        target_transform: Applied to the label, an int.

    Raises:
        ValueError: For an unknown split.
    """

    classes = [str(digit) for digit in range(10)]

    def __init__(
            self,
            split: str = 'train',
            input_img_mode: str = 'RGB',
            transform: Callable | None = None,
            target_transform: Callable | None = None,
    ) -> None:
        if split not in TRAIN_SPLITS + _HELD_OUT:
            raise ValueError(f'digits has the splits train and validation, not {split!r}')
        with (files(__package__) / 'digits.npz').open('rb') as file, np.load(file) as arrays:
            chosen = arrays['held_out'] == (split in _HELD_OUT)
            # 0 to 16 becomes 0 to 255, as image files have it.
            self.images = (arrays['images'][chosen].astype(np.float32) * (255 / 16)).round().astype(np.uint8)
            self.labels = arrays['labels'][chosen].astype(int)
        self.input_img_mode = input_img_mode
        self.transform = transform
        self.target_transform = target_transform

    def __getitem__(self, index: int) -> tuple[Any, int]:
        image: Any = Image.fromarray(self.images[index]).convert(self.input_img_mode)
        label = int(self.labels[index])
        if self.transform is not None:
            image = self.transform(image)
        if self.target_transform is not None:
            label = self.target_transform(label)
        return image, label

    def __len__(self) -> int:
        return len(self.labels)
