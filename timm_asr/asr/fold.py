"""Multiply vectors into the parameters of the layers that they scale, for good."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from .scaled import scaled_names
from .together import apart
from .wrapper import ASR


def has_asr(module: nn.Module) -> bool:
    """Whether ASR vectors that are not folded are left anywhere inside a module."""
    return any(isinstance(m, ASR) and len(m.vectors) > 0 for m in module.modules())


def fold_asr(module: nn.Module) -> nn.Module:
    """Fold every ASR vector into the layer it scales, in place, and nothing else.

    What is left is the stock network: its classes, state-dict keys, shapes and parameter count, still trainable, and
    the same function. Calling it twice changes nothing. Returns the module (for an ASR layer, the layer inside).

    Raises:
        TypeError: The module is scripted, or a layer has become one that cannot be scaled (pruned, quantized).
        ValueError: A layer shares its parameters with another. In both cases the module is unchanged.
    """
    refuse_scripted(module, 'fold ASR')
    layers = {name: m for name, m in module.named_modules() if isinstance(m, ASR) and len(m.vectors)}
    found = places(module) if layers else []
    for name, asr in layers.items():
        try:
            scaled_names(asr.layer)
            refuse_shared(found, asr.layer)
        except (TypeError, ValueError) as error:
            raise type(error)(f"ASR of the site '{name}' cannot be folded: {error}") from None
    apart(module)
    if isinstance(module, ASR):
        return module.fold()
    for asr in [m for m in module.modules() if isinstance(m, ASR)]:
        replace(module, {asr: asr.fold()})  # at once: it does not run without its vectors, should the next one fail
    return module


def replace(model: nn.Module, new: Mapping[nn.Module, nn.Module]) -> None:
    """Put new modules in the place of others inside a model, under every name that these have."""
    for parent, name, child in [(p, n, c) for p in model.modules() for n, c in p._modules.items() if c in new]:
        setattr(parent, name, new[child])


def refuse_scripted(model: nn.Module, verb: str) -> None:
    """Refuse a TorchScript module, whose code cannot be changed any more, by a ``TypeError``."""
    if isinstance(model, torch.jit.ScriptModule):
        raise TypeError(f'A scripted model cannot be changed: {verb} before torch.jit.script.')


def places(model: nn.Module) -> list[tuple[Any, str, nn.Module]]:
    """Where each parameter of a model lies in memory, with the name and the module that hold it."""
    return [(_place(p), name, module) for name, module in model.named_modules() for p in module._parameters.values()
            if p is not None]


def _place(parameter: torch.Tensor) -> Any:
    plain = type(parameter) in (torch.Tensor, nn.Parameter) and parameter.layout == torch.strided
    return (parameter.untyped_storage()._cdata, parameter.storage_offset()) if plain else id(parameter)


def refuse_shared(found: list[tuple[Any, str, nn.Module]], layer: nn.Module) -> None:
    """Refuse a layer whose parameters are others' too, as :func:`places` found them: scaling it would scale those.

    Two modules may hold the same parameter, or parameters of the same storage (``nn.Parameter(other.data)``).
    """
    inside = set(layer.modules())
    own = {place for place, _, module in found if module in inside}
    for place, name, module in found:
        if module not in inside and place in own:
            raise ValueError(f"it shares its parameters with '{name}', which would be scaled too.")
