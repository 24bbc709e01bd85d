"""Random numbers that depend on (seed, epoch, process) alone, so that a resumed run repeats an uninterrupted one.

A generator's state that runs on from epoch to epoch would have to be saved for every process and every loading worker.
Starting each epoch from a seed of its own needs nothing saved: the epoch's number is the state.
"""

import random
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset, IterableDataset, RandomSampler, get_worker_info

from ..errors import OwnBadInput


def derive_seed(*parts: int) -> int:
    """A 63-bit seed that mixes its parts well: (1, 0) and (0, 1) start unrelated streams."""
    # Their number goes in as well, since NumPy takes (1,) and (1, 0) for the same.
    return int(np.random.SeedSequence((len(parts), *parts)).generate_state(1, np.uint64)[0] >> 1)


def seed_all(seed: int) -> None:
    """Seed ``random``, ``torch`` (all devices) and ``numpy``."""
    random.seed(seed)
    torch.manual_seed(seed)
    np.random.seed(seed % 2 ** 32)


class Images(Dataset):
    """The images of a map-style data set, or some of them; all else, such as class names, is that of the whole set.

    An image that cannot be read is named. After :meth:`seed_workers` the loading workers, which live on from epoch to
    epoch, seed themselves anew in each, whose number they see in shared memory.
    """

    def __init__(self, dataset: Any) -> None:
        self.dataset, self.indices = dataset, range(len(dataset))
        self.dataset._max_retries = 1  # so many times timm's ImageDataset goes on to the next image instead
        self.epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        self.seeds: tuple[int, int] | None = None

    def seed_workers(self, seed: int, rank: int, numpy: bool = True) -> None:
        """Let seed, epoch, process and worker fix what workers draw; ``numpy`` is timm's ``--worker-seeding all``."""
        self.seeds, self.numpy, self.seeded_for = (seed, rank), numpy, -1

    def set_epoch(self, epoch: int) -> None:
        self.epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Any:
        worker, epoch = get_worker_info(), int(self.epoch)
        if self.seeds and worker is not None and epoch != self.seeded_for:
            self.seeded_for = epoch
            seed_all(derive_seed(self.seeds[0], epoch, self.seeds[1], worker.id + 1))
            if not self.numpy:  # the same for all workers
                np.random.seed(derive_seed(self.seeds[0], epoch, self.seeds[1]) % 2 ** 32)
        try:
            return self.dataset[self.indices[index]]
        except (RuntimeError, OSError, SyntaxError, Image.DecompressionBombError):  # the last two are Pillow's
            if not hasattr(self.dataset, 'filename'):
                raise
            name = self.dataset.filename(self.indices[index], absolute=True)
            raise OwnBadInput(f'cannot read the image {name}') from None

    @property
    def transform(self) -> Any:
        return self.dataset.transform

    @transform.setter
    def transform(self, transform: Any) -> None:
        self.dataset.transform = transform

    def __getattr__(self, name: str) -> Any:
        if name.startswith('__') or name == 'dataset':
            raise AttributeError(name)
        return getattr(self.dataset, name)


def draw_parts(count: int, train: float | None, held_out: int, seed: int) -> tuple[list[int], list[int]]:
    """Draw the sorted indices of the images to train on and of those to hold out, which are never the same.

    ``train`` is their number, or below 1 the share of those that are not held out; all of these if None. The seed alone
    decides which; more training images contain the fewer ones. ``ValueError``: there are not so many images.
    """
    rest = count - held_out
    train = rest if train is None else round(train * rest) if train < 1 else int(train)
    if train < 1 or held_out < 0 or train > rest:
        raise ValueError(f'{train} images to train on and {held_out} to hold out are not to be had from {count}')
    order = np.random.default_rng(seed).permutation(count).tolist()
    return sorted(order[held_out:held_out + train]), sorted(order[:held_out])


def start_epoch(loader: Any, seed: int, epoch: int, rank: int = 0) -> None:
    """Fix everything random about an epoch: the order of the images, augmentation, dropout."""
    inner = getattr(loader, 'loader', loader)
    dataset, batches = inner.dataset, getattr(inner, 'batch_sampler', None)
    inner.generator = torch.Generator().manual_seed(derive_seed(seed))  # starting workers draws from it
    parts = (dataset, getattr(dataset, 'dataset', None), batches, inner.sampler, getattr(batches, 'sampler', None))
    for part in parts:
        if hasattr(part, 'set_epoch'):
            part.set_epoch(epoch)
        if isinstance(part, RandomSampler):
            part.generator = torch.Generator().manual_seed(derive_seed(seed, epoch))
    if isinstance(dataset, IterableDataset):  # whose workers have no other seed
        inner._iterator = None
        inner.generator = torch.Generator().manual_seed(derive_seed(seed, epoch, rank))
    seed_all(derive_seed(seed, epoch, rank, 0))
