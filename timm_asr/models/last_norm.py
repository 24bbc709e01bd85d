"""Where the residual branches of a network start: the initial weight of the last norm of each."""

import math
from collections.abc import Sequence

import torch
from torch import nn

from ..asr.scaled import owner_of, scaled_names
from ..asr.sites import known_sites, match_sites
from ..asr.wrapper import ASR


@torch.no_grad()
def init_last_norms(model: nn.Module, value: float, sites: Sequence[str] | None = None) -> nn.Module:
    """Set the weight of the last norm of each residual branch, in place; returns the model.

    ``init_last_norms(model, 0.5)`` makes each branch start at half its size; 0 is timm's ``zero_init_last``. This is
    the control for ASR, whose vectors start near 0.5 (SE) or 0.27 (IE). Biases are left as they are. Where a
    block sums parallel branches, the norm of each gets ``value``; the three of an ACNet block get a third of it, since
    1/3 is where they start. ``sites`` are names or patterns of the norms, by default the layers that ASR would scale.

    Raises:
        ValueError: ``value`` is not a finite number, or the network has no site that is known.
        TypeError: A site is no norm. The model is unchanged.
    """
    if not math.isfinite(value):
        raise ValueError(f'last_norm_init is {value}; it takes a finite number, such as 0.5.')
    weights = []
    for name in known_sites(model) if sites is None else match_sites(model, list(sites)):
        layer = model.get_submodule(name)
        layer = layer.layer if isinstance(layer, ASR) else layer
        for key in scaled_names(layer):
            norm, leaf = owner_of(layer, key)
            if leaf not in ('weight', 'bias') or isinstance(norm, nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear):
                raise TypeError(
                    f"last_norm_init sets the weight of norms, and the site '{name}' of this {type(model).__name__} "
                    f'ends in a {type(norm).__name__}, which is none.')
            if leaf == 'weight':
                weights.append((norm.weight, getattr(layer, 'norm_init', 1.0)))
    for weight, share in weights:
        weight.fill_(value * share)
    return model
