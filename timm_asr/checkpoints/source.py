"""What is to be exported: a model with what is known about it."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from timm.models import get_pretrained_cfg
from timm.utils import unwrap_model
from torch import nn

from ..asr.vector import has_asr
from ..export.provenance import git_commit


@dataclass
class Source:
    """A model with what is known about it.

    Args:
        model: Unwrapped, its weights loaded, as it was trained.
        facts: Entries of the provenance.
        data_config: What its images went through, in timm's words; None where the model's own cfg says it.
        label_names: A name for each class, or None.
        metrics: The content of a ``metrics.json``, or None.
        args: All options of the training run, or none.
        unfused: Loads the unfused model that lies beside a fused one, where there is one.
        has_ema: Whether the checkpoint has averaged weights too.
        files: What lies beside it and may go along, by name: curves, the attention plot, the options.
    """

    model: nn.Module
    facts: dict[str, Any] = field(default_factory=dict)
    data_config: dict[str, Any] | None = None
    label_names: Sequence[str] | None = None
    metrics: dict[str, Any] | None = None
    args: dict[str, Any] = field(default_factory=dict)
    unfused: Callable[[], nn.Module] | None = None
    has_ema: bool = False
    files: dict[str, bytes] = field(default_factory=dict)


def class_names(source: Source, given: Sequence[str] | None = None) -> list[str] | None:
    """The names of a source's classes; None where nobody says them.

    The model's own cfg is believed only where it is not that of its registered name: timm gives the configuration of
    pretrained weights, label names among them, to a network that starts without them too.

    Args:
        source: The model, and what is known about it.
        given: Names that somebody gave, which count before all others.

    Raises:
        ValueError: There are more or fewer names than classes.
    """
    names, classes = given or source.label_names, getattr(source.model, 'num_classes', None)
    if names is None:
        names = (getattr(source.model, 'pretrained_cfg', None) or {}).get('label_names')
        stock = get_pretrained_cfg(name_of(source.model), allow_unregistered=True)
        if not names or len(names) != classes or list(names) == list((stock and stock.label_names) or ()):
            return None
    if len(names) != classes:
        raise ValueError(f'{len(names)} label names were given for {classes} classes.')
    return [str(name) for name in names]


def name_of(model: nn.Module) -> str:
    """The registered name of a model, ``''`` if it has none that it could be saved by."""
    cfg = getattr(model, 'pretrained_cfg', None) or {}
    return cfg.get('architecture') or '' if hasattr(model, 'num_classes') else ''


def unwrap(model: Any) -> nn.Module:
    """The model inside averaging, DDP and compiled wrappers, whichever way they are nested."""
    inner = unwrap_model(model)
    if not isinstance(inner, nn.Module):
        raise ValueError(f'A {type(inner).__name__} cannot be exported: give a model, or the path of a checkpoint or '
                         'of an exported folder.')
    return inner if inner is model else unwrap(inner)


def as_source(what: nn.Module | str | os.PathLike, use_ema: bool = False) -> Source:
    """A model as a source; what a path or name stands for is opened by :func:`timm_asr.checkpoints.open.open_source`.

    Raises:
        BadInput: The path or name cannot be loaded.
        ValueError: ``what`` is neither a model nor a path.
    """
    if isinstance(what, str | os.PathLike):
        from .open import open_source  # the one place where this package reaches up: checkpoints are its
        return open_source(what, use_ema)
    model = unwrap(what)
    return Source(model, {'model': name_of(model), 'asr': getattr(model, 'asr_options', None),
                          'git_commit': git_commit()})


def trainable_of(source: Source) -> nn.Module | None:
    """The unfused model: the source itself, or what lies beside it in an exported folder; None if there is none."""
    if has_asr(source.model):
        return source.model
    return source.unfused() if source.unfused is not None else None


def to_float32(model: nn.Module) -> nn.Module:
    """Float32 in place: what every loader makes of the weights, so that folding rounds once."""
    return model.to(device='cpu', dtype=torch.float32).eval()
