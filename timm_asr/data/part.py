"""A part of a data set, and the split of a training set into images to train on and images to choose by."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch.utils.data import Dataset


class Wrapped(Dataset):
    """A data set around another one, whose ``transform`` it has."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    @property
    def transform(self) -> Any:
        return self.dataset.transform

    @transform.setter
    def transform(self, transform: Any) -> None:
        self.dataset.transform = transform


class Part(Wrapped):
    """Some images of a map-style data set; all else, such as ``transform`` and class names, is that of the whole."""

    def __init__(self, dataset: Any, indices: Sequence[int]) -> None:
        super().__init__(dataset)
        self.indices = indices

    def __getitem__(self, index: int) -> Any:
        return self.dataset[self.indices[index]]

    def __len__(self) -> int:
        return len(self.indices)


def draw_parts(count: int, train: float | None, held_out: int, seed: int) -> tuple[list[int], list[int]]:
    """Draw the sorted indices of the images to train on and of those to hold out, which are never the same.

    ``train`` is their number, or below 1 the share of those that are not held out; all of these if None. The seed alone
    decides which; more training images contain the fewer ones.

    Raises:
        ValueError: There are not so many images.
    """
    rest = count - held_out
    train = rest if train is None else round(train * rest) if train < 1 else int(train)
    if train < 1 or held_out < 0 or train > rest:
        raise ValueError(f'{train} images to train on and {held_out} to hold out are not to be had from {count}')
    order = np.random.default_rng(seed).permutation(count).tolist()
    return sorted(order[held_out:held_out + train]), sorted(order[:held_out])
