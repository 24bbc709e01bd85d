"""Random numbers that depend on (seed, epoch, process) alone, so that a resumed run repeats an uninterrupted one.

A generator's state that runs on from epoch to epoch would have to be saved for every process and every loading worker.
Starting each epoch from a seed of its own needs nothing saved: the epoch's number is the state.
"""

import random
from typing import Any

import numpy as np
import torch
from torch.utils.data import RandomSampler, get_worker_info

from ..data.part import Wrapped


def derive_seed(*parts: int) -> int:
    """A 63-bit seed that mixes its parts well: (1, 0) and (0, 1) start unrelated streams."""
    # Their number goes in as well, since NumPy takes (1,) and (1, 0) for the same.
    return int(np.random.SeedSequence((len(parts), *parts)).generate_state(1, np.uint64)[0] >> 1)


def seed_all(seed: int, numpy: bool = True) -> None:
    """Seed ``random``, ``torch`` (all devices) and, if asked, ``numpy``."""
    random.seed(seed)
    torch.manual_seed(seed)
    if numpy:
        np.random.seed(seed % 2 ** 32)


class EpochSeeded(Wrapped):
    """A map-style data set whose loading workers re-seed themselves at the start of each epoch.

    Workers live on from epoch to epoch, and see the epoch's number in shared memory. ``numpy`` is timm's
    ``--worker-seeding all``.
    """

    def __init__(self, dataset: Any, seed: int, rank: int = 0, numpy: bool = True) -> None:
        super().__init__(dataset)
        self.seed, self.rank, self.numpy = seed, rank, numpy
        self.epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        self._seeded_for = -1

    def set_epoch(self, epoch: int) -> None:
        self.epoch.fill_(epoch)
        if hasattr(self.dataset, 'set_epoch'):
            self.dataset.set_epoch(epoch)

    def __getitem__(self, index: int) -> Any:
        worker = get_worker_info()
        if worker is not None:
            epoch = int(self.epoch)
            if epoch != self._seeded_for:
                seed_all(derive_seed(self.seed, epoch, self.rank, worker.id + 1), self.numpy)
                self._seeded_for = epoch
        return self.dataset[index]


def own_generator(loader: Any, seed: int) -> None:
    """Give a loader a generator of its own, so that starting its workers draws nothing from the global one."""
    getattr(loader, 'loader', loader).generator = torch.Generator().manual_seed(derive_seed(seed))


def start_epoch(loader: Any, seed: int, epoch: int, rank: int = 0) -> None:
    """Fix everything random about an epoch: the order of the images, augmentation, dropout."""
    inner = getattr(loader, 'loader', loader)
    batches = getattr(inner, 'batch_sampler', None)
    parts = {id(part): part for part in (inner.dataset, batches, inner.sampler, getattr(batches, 'sampler', None))}
    for part in parts.values():
        if hasattr(part, 'set_epoch'):
            part.set_epoch(epoch)
        if isinstance(part, RandomSampler):
            part.generator = torch.Generator().manual_seed(derive_seed(seed, epoch))
    seed_all(derive_seed(seed, epoch, rank, 0))
