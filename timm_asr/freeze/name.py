"""Which registered network a frozen one is."""

from typing import Any

import timm
import torch
from timm.models import get_model_args, is_model
from torch import nn

from ..asr.fold import has_asr
from ..gates.table import gate_options
from ..inference.compare import close
from ..models.registry import variant_of

# What timm's names have where a network of the same name without it has no gates.
_IN_NAMES = ('legacy_se', 'ese_', 'eca_', 'eca', 'se')
# They say where other weights came from.
_ORIGIN = ('tag', 'url', 'file', 'hf_hub_id', 'hf_hub_filename', 'source', 'state_dict', 'custom_load')


def _candidates(name: str, args: dict[str, Any], asr: bool) -> list[tuple[str, dict[str, Any]]]:
    drop = {'gate', 'last_norm_init', *(() if asr else gate_options())}
    ours = {key: value for key, value in args.items() if key not in drop}
    found = [(name, ours)] if 'gate' in args else []
    if variant := variant_of(name):
        found.append((variant.without('gate'), ours))
    found += [(name.replace(word, '', 1), args) for word in _IN_NAMES if word in name]
    return [*((other, own) for other, own in found if is_model(other)), (name, {**args, 'se_ratio': 0})]


@torch.no_grad()
def name_frozen(model: nn.Module, images: torch.Tensor) -> tuple[str, dict[str, Any]] | None:
    """Name and keywords of a registered network that takes a frozen model's state dict and is the same function.

    Both are run on the images; None where there is none, as a network may take the weights and compute something else.
    """
    name = (getattr(model, 'pretrained_cfg', None) or {}).get('architecture')
    wanted = model(images) if name and hasattr(model, 'num_classes') else None
    if not isinstance(wanted, torch.Tensor):
        return None
    for candidate, args in _candidates(name, get_model_args(model), has_asr(model)):
        try:
            stock = timm.create_model(candidate, **args).to(images).eval()
            stock.load_state_dict(model.state_dict(), strict=True)
        except (RuntimeError, TypeError, ValueError):  # another network, or one without that keyword
            continue
        if close(wanted, stock(images)):
            return candidate, args
    return None


def rename(model: nn.Module, name: str, args: dict[str, Any]) -> None:
    """Let timm, and ``save_fused``, know a model by another name."""
    config = {key: value for key, value in model.pretrained_cfg.items() if key not in _ORIGIN}  # type: ignore[union-attr]
    model.pretrained_cfg = model.default_cfg = {**config, 'architecture': name}
    model._model_args = dict(args)
