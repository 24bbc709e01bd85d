"""The outputs of two models on the same images: how far apart they are, and which predictions change."""

import copy
import math

import torch
from torch import nn


def tolerance(model: nn.Module) -> float:
    """How far logits may differ by float32 rounding alone, over the largest: 1e-5, and 1e-4 beyond 200 layers."""
    layers = sum(isinstance(m, nn.Conv2d | nn.Linear) for m in model.modules())
    return 1e-5 if layers <= 200 else 1e-4


def random_images(shape: tuple[int, ...], batch: int = 2) -> torch.Tensor:
    """Images (batch, *shape) from N(0, 1), always the same."""
    return torch.randn(batch, *shape, generator=torch.Generator().manual_seed(0))


def relative_difference(wanted: torch.Tensor, found: torch.Tensor) -> float:
    """Largest absolute difference over the largest absolute value that was wanted; infinite if anything is NaN."""
    difference = ((wanted - found).abs().max() / wanted.abs().max().clamp_min(1e-30)).item()
    return difference if difference == difference else math.inf


def close(wanted: torch.Tensor, found: torch.Tensor) -> bool:
    """Whether two tensors have one shape and differ by rounding alone: by the root of their type's precision."""
    return wanted.shape == found.shape and relative_difference(wanted, found) <= torch.finfo(wanted.dtype).eps ** 0.5


class Comparison:
    """The logits of two models, added up batch by batch.

    ``allowed`` is the relative difference that rounding explains. A prediction between two classes that are nearer to
    each other than that is a tie, and may change.

    Attributes:
        images, labelled: Number of images seen, and of those with a label.
        largest_logit: Largest absolute logit of the first model.
        largest: Largest absolute difference of a logit; infinite after a NaN.
        flipped: Images whose predicted class changed and was no tie.
    """

    def __init__(self, allowed: float = 0.0) -> None:
        self.allowed = allowed
        self.images = self.labelled = self.flipped = self._changed = self._count = 0
        self.largest_logit = self.largest = self._sum = 0.0
        self._correct = torch.zeros(2, 2, dtype=torch.float64)  # (top-1, top-5) x (first model, second)

    def update(self, before: torch.Tensor, after: torch.Tensor, labels: torch.Tensor | None = None) -> None:
        """Add a batch: logits (B, N) of both models, class indices (B,) where they are known.

        Raises:
            ValueError: The shapes of the logits differ.
        """
        if before.shape != after.shape:
            raise ValueError(f'the output is {tuple(after.shape)} where it was {tuple(before.shape)}')
        moved = (after - before).abs().cpu().double()  # some devices have no float64
        scale = before.abs().max().item()
        self.images += len(before)
        self.largest_logit = max(self.largest_logit, scale)
        self.largest = max(self.largest, moved.nan_to_num(math.inf, math.inf).max().item())
        self._sum += moved.sum().item()
        self._count += moved.numel()
        top = before.topk(min(2, before.shape[1]), dim=1).values
        changed = before.argmax(1) != after.argmax(1)
        self._changed += int(changed.sum())
        self.flipped += int((changed & (top[:, 0] - top[:, -1] > 2 * self.allowed * scale)).sum())
        if labels is not None:
            self.labelled += len(labels)
            for model, logits in enumerate((before, after)):
                right = logits.topk(min(5, logits.shape[1]), dim=1).indices.cpu() == labels.cpu()[:, None]
                self._correct[:, model] += torch.stack([right[:, 0].sum(), right.sum()])

    @property
    def relative(self) -> float:
        """Largest difference over the largest logit."""
        return self.largest / self.largest_logit if self.largest_logit else self.largest

    @property
    def same(self) -> bool:
        """Whether both are the same function: no more than the allowed difference, and no prediction changed."""
        return self.relative <= self.allowed and not self.flipped

    @property
    def mean(self) -> float:
        """Mean absolute difference of the logits."""
        return self._sum / max(self._count, 1)

    @property
    def same_top1(self) -> float:
        """Percentage of images whose highest logit is that of the same class."""
        return 100 * (self.images - self._changed) / max(self.images, 1)

    @property
    def top1(self) -> tuple[float, float] | None:
        """Top-1 accuracy of both models, percent; None without labels."""
        return self._accuracy(0)

    @property
    def top5(self) -> tuple[float, float] | None:
        """Top-5 accuracy of both models, percent; None without labels."""
        return self._accuracy(1)

    def _accuracy(self, k: int) -> tuple[float, float] | None:
        return tuple((100 * self._correct[k] / self.labelled).tolist()) if self.labelled else None


@torch.no_grad()
def same_function(reference: nn.Module, other: nn.Module, images: torch.Tensor) -> float:
    """The relative difference of two models' logits, after making sure that rounding explains it.

    Both models are in eval mode, in float32; ``images`` are (B, C, H, W).

    Raises:
        ValueError: The logits are no tensor, are not finite, or differ by more than rounding explains.
    """
    wanted, found = reference(images), other(images)
    if not isinstance(wanted, torch.Tensor):
        raise ValueError(f'The model returns a {type(wanted).__name__}, and logits are compared before it is written.')
    if not (wanted.isfinite().all() and found.isfinite().all()):
        raise ValueError('The logits of the model are not finite on random images: its training has diverged, or its '
                         'weights do not fit the precision asked for.')
    relative = relative_difference(wanted, found)
    if relative <= tolerance(reference):
        return relative
    # Activations can grow with depth until rounding alone is more than that; in float64 it would still be small.
    in_double = relative_difference(*(copy.deepcopy(m).double()(images.double()) for m in (reference, other)))
    if not in_double <= 1e-6:  # the folded weights themselves are rounded to float32
        raise ValueError(
            f'The folded model is not the same function: its logits differ by {relative:.1e} of the largest.')
    return relative
