"""Terms that a model adds to the training loss."""

import torch
from torch import nn


def auxiliary_loss(model: nn.Module) -> torch.Tensor:
    """Sum of the penalties of a model's modules, to be added to the training loss: SPENet paper, Eq. 8.

    A module contributes eta * sum(p^2) by a method ``penalty()`` that returns eta and the vector p, or None. All
    modules of the same eta are summed by one operation. The sum is a scalar, zero where no module has such a term.
    """
    terms: dict[float, list[torch.Tensor]] = {}
    for module in model.modules():
        term = module.penalty() if callable(getattr(module, 'penalty', None)) else None
        if term is not None:
            terms.setdefault(term[0], []).append(term[1])
    losses = [eta * torch.cat(vectors).square().sum() for eta, vectors in terms.items()]
    if losses:
        return torch.stack(losses).sum() if len(losses) > 1 else losses[0]
    return next(model.parameters(), torch.empty(0)).new_zeros(())
