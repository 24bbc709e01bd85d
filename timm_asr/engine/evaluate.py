"""Loss and accuracy of a model over a loader, averaged over images, each image counted once."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from .interrupt import stoppable


class Totals:
    """Running sums of loss, top-1 and top-5 over images, on the device, so that counting never waits for it."""

    def __init__(self, device: torch.device) -> None:
        # MPS has no float64; the sums of one epoch fit float32 well enough there.
        self.sums = torch.zeros(4, device=device, dtype=torch.float32 if device.type == 'mps' else torch.float64)

    def update(self, loss: torch.Tensor, output: torch.Tensor, target: torch.Tensor) -> None:
        """Count a batch: its mean loss (scalar), logits (B, classes) and targets (B,)."""
        right = output.topk(min(5, output.shape[1]), dim=1).indices == target[:, None]
        found = torch.stack([figure.to(self.sums) for figure in (loss.detach(), right[:, 0].sum(), right.sum())])
        found[0] *= len(output)
        self.sums += torch.cat([found, found.new_full((1,), len(output))])

    def averages(self) -> dict[str, float]:
        """``loss``, ``top1`` and ``top5`` (percent), and ``count``, the number of images."""
        loss, top1, top5, count = self.sums.tolist()
        n = max(count, 1)
        return {'loss': loss / n, 'top1': 100 * top1 / n, 'top5': 100 * top5 / n, 'count': int(count)}


def evaluate(model: nn.Module, loader: Iterable[tuple[torch.Tensor, torch.Tensor]],
             criterion: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], *, device: torch.device,
             dtype: torch.dtype | None = None, amp_autocast: Callable[[], Any] = suppress, channels_last: bool = False,
             valid_labels: Sequence[int] | None = None,
             on_output: Callable[[torch.Tensor, torch.Tensor], None] | None = None,
             on_batch: Callable[[int, Totals], None] | None = None) -> dict[str, float]:
    """``loss``, ``top1``, ``top5`` (percent) and ``count`` over the images of all processes, padding not counted.

    The model gives logits (B, classes), and is left in eval mode; ``loader`` yields images (B, C, H, W) and targets
    (B,), wherever they are. ``dtype`` is that of the images, None for as they come, and ``valid_labels`` the columns of
    the logits that count. ``on_output`` is called with the logits and targets of each batch, ``on_batch`` after it with
    its index and the totals.
    """
    totals = Totals(device)
    # OrderedDistributedSampler repeats images so that all processes have the same number of batches.
    remaining = getattr(getattr(loader, 'sampler', None), 'num_valid_samples', None)
    model.eval()
    # A scripted model keeps what its training passes left behind, which inference mode would not take back.
    scripted = isinstance(model, torch.jit.ScriptModule)
    with torch.no_grad() if scripted else torch.inference_mode():
        for index, (images, target) in enumerate(stoppable(loader)):
            images = images.to(device=device, dtype=dtype, non_blocking=True)
            target = target.to(device=device, non_blocking=True)
            if channels_last:
                images = images.contiguous(memory_format=torch.channels_last)
            with amp_autocast():
                output = model(images)
                if isinstance(output, tuple | list):
                    output = output[0]
                if valid_labels is not None:
                    output = output[:, list(valid_labels)]
                if remaining is not None:
                    output, target = output[:remaining], target[:remaining]
                    remaining -= len(output)
                if len(output):
                    loss = criterion(output, target)
            if len(output):
                totals.update(loss, output.float(), target)
                if on_output is not None:
                    on_output(output, target)
            if on_batch is not None:
                on_batch(index, totals)
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(totals.sums)
    return totals.averages()
