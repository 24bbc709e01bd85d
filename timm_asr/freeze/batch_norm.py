"""Statistics of BatchNorms, estimated anew."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


@torch.no_grad()
def recalibrate_batch_norm(model: nn.Module, batches: Iterable[Any]) -> int:
    """Replace the running statistics of every BatchNorm by their averages over batches, in place.

    Only the BatchNorms run in training mode, each batch counts the same, and a norm that is frozen or does not run
    keeps its statistics. PyTorch's ``update_bn`` would turn dropout and stochastic depth on as well. One image after
    larger batches, what is left over at the end, is not used: on maps of one pixel it has no variance.

    Returns:
        Number of BatchNorms whose statistics are new.
    """
    norms = {m: m.momentum for m in model.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None}
    old = {norm: {name: buffer.clone() for name, buffer in norm.named_buffers()} for norm in norms}
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain average over all batches
        norm.train()
    largest = 0
    for images in batches:
        largest = max(largest, len(images))
        if len(images) > 1 or largest == 1:
            model(images)
    renewed = 0
    for norm, momentum in norms.items():
        norm.momentum = momentum
        norm.eval()
        if norm.num_batches_tracked:
            renewed += 1
            continue
        for name, buffer in norm.named_buffers():
            buffer.copy_(old[norm][name])
    return renewed
