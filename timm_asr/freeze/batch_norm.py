"""Statistics of BatchNorms, estimated anew."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


@torch.no_grad()
def recalibrate_batch_norm(model: nn.Module, batches: Iterable[Any]) -> int:
    """Replace the running statistics of every BatchNorm by their averages over batches, in place.

    Only the BatchNorms run in training mode, each batch counts the same, and a frozen norm keeps its statistics.
    PyTorch's ``update_bn`` would turn dropout and stochastic depth on as well.

    Args:
        model: The model, in eval mode.
        batches: What the model is called with.

    Returns:
        Number of BatchNorms.
    """
    norms = {m: m.momentum for m in model.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None}
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain average over all batches
        norm.train()
    for images in batches:
        model(images)
    for norm, momentum in norms.items():
        norm.momentum = momentum
        norm.eval()
    return len(norms)
