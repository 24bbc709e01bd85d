"""What is asked of a model before its parameters are changed: whose memory they are, and whether they are fresh."""

import torch
from torch import nn


def refuse_scripted(model: nn.Module, verb: str) -> None:
    """Refuse a TorchScript module, whose code cannot be changed any more, by a ``TypeError``."""
    if isinstance(model, torch.jit.ScriptModule):
        raise TypeError(f'A scripted model cannot be changed: {verb} before torch.jit.script.')


def has_hooks(layer: nn.Module) -> bool:
    """Whether a layer, or one inside it, has forward hooks: those of pruning and weight_norm among them."""
    return any(m._forward_hooks or m._forward_pre_hooks for m in layer.modules())


def sharing(model: nn.Module) -> dict[nn.Module, list[tuple[str, nn.Module]]]:
    """The modules whose own parameters share memory with those of others, with the names and modules of the others.

    Two modules may hold the same parameter, or parameters of the same storage (``nn.Parameter(other.data)``).
    """
    spans = sorted(
        ((*_span(p), name, module) for name, module in model.named_modules() for p in module._parameters.values()
         if p is not None), key=lambda span: span[:2])
    found: dict[nn.Module, list[tuple[str, nn.Module]]] = {}
    for i, (_, end, name, module) in enumerate(spans):
        for start, _, other_name, other in spans[i + 1:]:
            if start >= end:
                break
            if other is not module:
                found.setdefault(module, []).append((other_name, other))
                found.setdefault(other, []).append((name, module))
    return found


def _span(parameter: torch.Tensor) -> tuple[int, int]:
    """First byte and the one after the last that a parameter takes; one byte of its own where it has no memory."""
    plain = type(parameter) in (torch.Tensor, nn.Parameter) and parameter.layout == torch.strided
    if not plain or parameter.is_meta or not parameter.numel():
        return -id(parameter), 1 - id(parameter)
    last = sum((size - 1) * stride for size, stride in zip(parameter.shape, parameter.stride(), strict=True))
    start = parameter.data_ptr()
    return start, start + (last + 1) * parameter.element_size()


def refuse_shared(found: dict[nn.Module, list[tuple[str, nn.Module]]], layer: nn.Module) -> None:
    """Refuse a layer that shares parameters, as :func:`sharing` found them: scaling it would scale others."""
    inside = set(layer.modules())
    for name, other in (pair for module in inside for pair in found.get(module, ())):
        if other not in inside:
            raise ValueError(f"it shares its parameters with '{name}', which would be scaled too.")


@torch.no_grad()
def is_fresh(model: nn.Module) -> bool:
    """Whether a model looks untrained: running statistics as they start, norms and layer scales with equal weights."""
    for name, t in (*model.named_buffers(), *model.named_parameters()):
        leaf = name.rpartition('.')[2]
        affine = leaf in ('weight', 'gamma', 'gain') and t.squeeze().ndim == 1 and '.vectors.' not in name
        if (affine or leaf in ('running_mean', 'running_var')) and not t.is_meta and (t != t.flatten()[:1]).any():
            return False
    return True
