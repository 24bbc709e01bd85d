"""The images of a loader, as a model takes them, as often as they are needed."""

import sys
from collections.abc import Generator, Iterable, Iterator
from typing import Any

import torch
from torch import nn
from tqdm import tqdm


class Images:
    """Batches of a loader on a model's device and in its dtype; ``seen`` images at the last reading.

    Args:
        loader: Gives (images, labels, ...) or images; images are a tensor (B, C, H, W), or a list of tensors for
            detectors. Anything that can be iterated over several times.
        model: Where the images go.
        samples: Images to use, the first ones that the loader gives; all of them where None.
        progress: Show a progress bar where standard error is a terminal.

    Raises:
        TypeError: The loader is an iterator, which can be read only once.
        ValueError: ``samples`` is not positive.
    """

    def __init__(
            self, loader: Iterable[Any], model: nn.Module, samples: int | None = None, progress: bool = True) -> None:
        if not isinstance(loader, Iterable) or isinstance(loader, Iterator):
            raise TypeError(
                f'The loader is a {type(loader).__name__}, and the images are read several times; pass a DataLoader or '
                'a list of batches.')
        if samples is not None and samples < 1:
            raise ValueError(f'samples is {samples}; it is a number of images, 1 or more.')
        self.loader, self.samples, self.seen = loader, samples, 0
        self.progress = progress and sys.stderr.isatty()
        like = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
        self.device, self.dtype = like.device, like.dtype

    def batches(self, what: str) -> Generator[tuple[Any, torch.Tensor | None], None, None]:
        """Images, and their labels where these are one class each; ``what`` stands beside the progress bar.

        Raises:
            TypeError: A batch is neither images nor begins with images.
            ValueError: There are no images, or some are not finite.
        """
        self.seen = 0
        for batch in tqdm(self.loader, desc=what, disable=not self.progress, leave=False, dynamic_ncols=True):
            images, labels = self._parts(batch)
            images = images[:None if self.samples is None else self.samples - self.seen]
            labels = labels if labels is None else labels[:len(images)]
            if not all(part.isfinite().all() for part in ([images] if isinstance(images, torch.Tensor) else images)):
                raise ValueError(f'Among the images {self.seen} to {self.seen + len(images) - 1} of the loader is one '
                                 'that is not finite (NaN or infinity).')
            self.seen += len(images)
            if len(images):
                yield images, labels
            if self.seen == self.samples:
                break
        if not self.seen:
            raise ValueError('The loader gives no images.')

    def inputs(self, what: str) -> Iterator[Any]:
        """Images alone."""
        return (images for images, _ in self.batches(what))

    def _parts(self, batch: Any) -> tuple[Any, torch.Tensor | None]:
        images, labels, *_ = (*batch, None) if isinstance(batch, list | tuple) and batch else (batch, None)
        if not (isinstance(labels, torch.Tensor) and labels.ndim == 1 and not labels.is_floating_point()):
            labels = None
        if isinstance(images, torch.Tensor):
            return self._moved(images), labels
        if isinstance(images, list | tuple) and all(isinstance(image, torch.Tensor) for image in images):
            return [self._moved(image) for image in images], None
        raise TypeError(
            f'The loader gives batches of type {type(batch).__name__}; images, or (images, labels), with images as a '
            'tensor (B, C, H, W), are what the model takes.')

    def _moved(self, images: torch.Tensor) -> torch.Tensor:
        return images.to(self.device, self.dtype if images.is_floating_point() else images.dtype)
