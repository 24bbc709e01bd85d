"""1,797 real handwritten digits that come with the package (see ``README.md`` beside this file)."""

from collections.abc import Callable
from importlib.resources import files

import numpy as np

from .arrays import Arrays, is_training_split


class Digits(Arrays):
    """UCI handwritten digits, 8x8, 10 classes: ``train`` (1,438 images) or ``validation`` (359, stratified, fixed).

    The modes ``L`` and ``RGB`` give one channel or three equal ones.

    Raises:
        ValueError: For an unknown split.
    """

    classes = [str(digit) for digit in range(10)]

    def __init__(self, split: str = 'train', input_img_mode: str = 'RGB', transform: Callable | None = None,
                 target_transform: Callable | None = None) -> None:
        training = is_training_split(split, 'digits')
        with (files(__package__) / 'digits.npz').open('rb') as file, np.load(file) as arrays:
            chosen = arrays['held_out'] != training
            # 0 to 16 becomes 0 to 255, as image files have it.
            images = (arrays['images'][chosen].astype(np.float32) * (255 / 16)).round().astype(np.uint8)
            super().__init__(images, arrays['labels'][chosen].astype(int), input_img_mode, transform, target_transform)
