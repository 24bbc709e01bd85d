"""Multiply vectors into the parameters of the layers that they scale, for good."""

from torch import nn

from .checks import refuse_scripted, refuse_shared, sharing
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
        TypeError: The module is scripted.
        ValueError: A layer shares its parameters with another. The module is unchanged.
    """
    refuse_scripted(module, 'fold ASR')
    layers = {name: m for name, m in module.named_modules() if isinstance(m, ASR) and len(m.vectors)}
    shared = sharing(module) if layers else {}
    for name, asr in layers.items():
        try:
            refuse_shared(shared, asr.layer)
        except ValueError as error:
            raise ValueError(f"ASR of the site '{name}' cannot be folded: {error}") from None
    apart(module)
    if isinstance(module, ASR):
        return module.fold()
    for parent in list(module.modules()):
        for name, child in list(parent._modules.items()):  # named_children() skips a module met twice
            if isinstance(child, ASR):
                setattr(parent, name, child.fold())
    return module
