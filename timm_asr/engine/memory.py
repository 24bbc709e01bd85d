"""Small images that stay in memory as tensors, cropped and flipped a batch at a time.

Decoding and augmenting image by image takes a small network on two cores more time than its training step. Here the
images are decoded once, and a batch is one gather. On a GPU they live there.
"""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import IterableDataset
from torchvision import transforms

from .seeding import derive_seed

#: Images up to this side, and data sets up to this many bytes at that size, are held in memory.
LARGEST_SIDE, LARGEST = 128, 2 ** 30
#: Steps of a transform that are not random.
_FIXED = ('Resize', 'CenterCrop', 'MaybePILToTensor')


def in_memory(loader: Any, shape: tuple[int, int, int], training: bool, seed: int) -> 'MemoryLoader | None':
    """A loader from memory that gives what this one gives, in distribution; ``shape`` is (C, H, W).

    None where that is not possible: for larger images or more of them (``LARGEST``), images of other shapes, and any
    augmentation but ``RandomCrop`` with padding and ``RandomHorizontalFlip``.
    """
    dataset = loader.dataset
    if isinstance(dataset, IterableDataset) or getattr(loader, 'random_erasing', None) is not None:
        return None
    steps = list(getattr(dataset.transform, 'transforms', ()))
    if not steps or max(shape[1:]) > LARGEST_SIDE or not 0 < len(dataset) * math.prod(shape) <= LARGEST:
        return None
    fixed, pad, hflip = [], 0, 0.0
    for step in steps:
        if type(step).__name__ in _FIXED:
            fixed.append(step)
        elif isinstance(step, transforms.RandomHorizontalFlip):
            hflip = step.p
        elif isinstance(step, transforms.RandomCrop) and isinstance(step.padding, int) and step.fill == 0:
            pad = step.padding
        # timm puts a colour jitter of strength zero in for --color-jitter 0.
        elif not isinstance(step, transforms.ColorJitter) or any(
                (step.brightness, step.contrast, step.saturation, step.hue)):
            return None
    images = torch.empty(len(dataset), *shape, dtype=torch.uint8)
    labels = torch.empty(len(dataset), dtype=torch.int64)
    before, dataset.transform = dataset.transform, transforms.Compose(fixed)
    try:
        for index in range(len(dataset)):
            image, label = dataset[index]
            if image.shape != shape or image.dtype != torch.uint8:
                return None
            images[index], labels[index] = image, int(label)
    finally:
        dataset.transform = before
    return MemoryLoader(loader, images, labels, training, pad, hflip, seed)


class MemoryLoader:
    """Batches of normalised images, as timm's loader has them, from images (N, C, H, W) in uint8 and labels (N,).

    In training they are shuffled, cropped out of ``pad`` zeros on each side, and flipped with probability ``hflip``;
    a last batch that is not full is left out; seed and epoch are the whole state of everything random.
    """

    def __init__(self, loader: Any, images: torch.Tensor, labels: torch.Tensor, training: bool, pad: int = 0,
                 hflip: float = 0.0, seed: int = 0) -> None:
        self.dataset = loader.dataset
        self.sampler = self  # what is told of a new epoch
        self.batch_size = loader.loader.batch_size
        self.mean, self.std, self.dtype = loader.mean, loader.std, loader.img_dtype
        self.size = images.shape[-2:]
        self.images = torch.nn.functional.pad(images, (pad,) * 4).to(loader.device)
        self.labels = labels.to(loader.device)
        self.training, self.pad, self.hflip, self.seed = training, pad, hflip, seed
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Start the random numbers of an epoch."""
        self.random = torch.Generator().manual_seed(derive_seed(self.seed, epoch))

    def __len__(self) -> int:
        batches = len(self.labels) / self.batch_size
        return math.floor(batches) if self.training else math.ceil(batches)

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        order = torch.arange(len(self.labels))
        if self.training:
            order = torch.randperm(len(self.labels), generator=self.random)
        for chosen in order.split(self.batch_size)[:len(self)]:
            chosen = self._sent(chosen)
            images = self._augmented(chosen) if self.training else self.images[chosen]
            yield images.to(self.dtype).sub_(self.mean).div_(self.std), self.labels[chosen]

    def _sent(self, drawn: torch.Tensor) -> torch.Tensor:
        """On the device of the images; a GPU goes on with its work meanwhile."""
        device = self.labels.device
        return drawn.pin_memory().to(device, non_blocking=True) if device.type == 'cuda' else drawn.to(device)

    def _augmented(self, chosen: torch.Tensor) -> torch.Tensor:
        """Each image cropped at a place of its own, and flipped or not: one gather."""
        count, device = len(chosen), chosen.device
        height, width = self.size
        corner = self._sent(torch.randint(2 * self.pad + 1, (2, count, 1), generator=self.random))
        flipped = self._sent(torch.rand(count, 1, generator=self.random) < self.hflip)
        columns = torch.arange(width, device=device).expand(count, width)
        columns = corner[1] + torch.where(flipped, columns.flip(1), columns)
        rows = corner[0] + torch.arange(height, device=device)
        channels = torch.arange(self.images.shape[1], device=device)
        return self.images[chosen.view(-1, 1, 1, 1), channels.view(1, -1, 1, 1), rows[:, None, :, None],
                           columns[:, None, None, :]]
