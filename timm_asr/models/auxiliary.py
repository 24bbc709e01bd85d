"""Terms that a model adds to the training loss."""

import torch
from torch import nn


def auxiliary_loss(model: nn.Module) -> torch.Tensor:
    """Sum of the auxiliary terms of a model's modules, to be added to the training loss.

    A module contributes by a method ``auxiliary_loss()`` that returns a scalar tensor.

    Returns:
        A scalar tensor, zero where no module has such a term.
    """
    terms = [m.auxiliary_loss() for m in model.modules() if callable(getattr(m, 'auxiliary_loss', None))]
    if terms:
        return torch.stack(terms).sum()
    like = next(model.parameters(), torch.empty(0))
    return torch.zeros((), device=like.device, dtype=like.dtype)
