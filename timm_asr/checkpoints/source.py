"""A model with what is known about it: what every command that opens something works on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from timm.data import resolve_data_config
from timm.models import get_pretrained_cfg
from timm.utils import unwrap_model
from torch import nn

from ..errors import BadInput

_DATA_KEYS = ('input_size', 'mean', 'std', 'interpolation', 'crop_pct')


@dataclass
class Source:
    """A model with what is known about it."""

    model: nn.Module  # unwrapped, its weights loaded, as it was trained
    facts: dict[str, Any] = field(default_factory=dict)  # entries of the provenance
    data_config: dict[str, Any] | None = None  # of its images, in timm's words; None where the model's own cfg says it
    label_names: Sequence[str] | None = None
    metrics: dict[str, Any] | None = None  # the content of a metrics.json
    args: dict[str, Any] = field(default_factory=dict)  # all options of the training run
    has_ema: bool = False  # whether the checkpoint has averaged weights too
    files: dict[str, bytes] = field(default_factory=dict)  # what lies beside it and may go along, by name


def class_names(source: Source, given: Sequence[str] | None = None) -> list[str] | None:
    """The names of a source's classes, those given first of all; None where they are not known.

    The model's own cfg is believed only where it is not that of its registered name: timm gives the configuration of
    pretrained weights, label names among them, to a network that starts without them too. ValueError: there are
    more or fewer names than classes.
    """
    names, classes = given or source.label_names, getattr(source.model, 'num_classes', None)
    if names is None:
        names = label_names_of(source.model, getattr(source.model, 'pretrained_cfg', None) or {})
        stock = get_pretrained_cfg(name_of(source.model), allow_unregistered=True)
        if not names or names == list((stock and stock.label_names) or ()):
            return None
    if len(names) != classes:
        raise ValueError(f'{len(names)} label names were given for {classes} classes.')
    return [str(name) for name in names]


def label_names_of(model: nn.Module, content: Mapping[str, Any]) -> list[str] | None:
    """The names of the classes that a checkpoint or configuration holds, if they are those of the model."""
    names = content.get('label_names')
    return list(names) if isinstance(names, list | tuple) and len(names) == model.num_classes else None


def name_of(model: nn.Module) -> str:
    """The registered name of a model, ``''`` if it has none that it could be saved by."""
    cfg = getattr(model, 'pretrained_cfg', None) or {}
    return cfg.get('architecture') or '' if hasattr(model, 'num_classes') else ''


def unwrap(model: Any) -> nn.Module:
    """The model inside averaging, DDP, compiled and Lightning wrappers, whichever way they are nested."""
    inner = unwrap_model(model)
    if not isinstance(inner, nn.Module):
        raise ValueError(f'A {type(inner).__name__} cannot be exported: give a model, or the path of a checkpoint or '
                         'of an exported folder.')
    if inner is not model:
        return unwrap(inner)
    lightning = any(kind.__name__ == 'LightningModule' for kind in type(inner).__mro__)
    named = models_inside(inner) if lightning else []
    return unwrap(inner.get_submodule(named[0])) if len(named) == 1 else inner


def models_inside(module: nn.Module) -> list[str]:
    """The attributes of a module that are models with a registered name."""
    return [name for name, part in module.named_children() if name_of(unwrap_model(part))]


def to_float32(model: nn.Module) -> nn.Module:
    """Float32 on the CPU, in place: what every loader makes of the weights, so that folding rounds once."""
    return model.to(device='cpu', dtype=torch.float32).eval()


def data_config_of(model: nn.Module, options: Mapping[str, Any], test_size: bool = False) -> dict[str, Any]:
    """Size, mean, standard deviation, crop and interpolation of the images, from the options of a run and the model.

    With ``test_size`` they are those that the model's own configuration has for testing.
    """
    try:
        config = resolve_data_config(options, model=model, use_test_size=test_size)
    except AssertionError:
        raise BadInput('--mean and --std take one value, or one for each input channel') from None
    size = options.get('input_size')
    channels = size[0] if size else options.get('in_chans') or getattr(model, 'in_chans', None) or 3
    config['input_size'] = (channels, *config['input_size'][1:])
    for key in ('mean', 'std'):  # of RGB, for images of other channels: their average
        if len(config[key]) != channels:
            config[key] = (sum(config[key]) / len(config[key]),) * channels
    return config


def used_data_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """What training and validation take of timm's data configuration; without a ``crop_mode`` they crop the centre."""
    return {**{key: config[key] for key in _DATA_KEYS}, 'crop_mode': config['crop_mode'] or 'center'}
