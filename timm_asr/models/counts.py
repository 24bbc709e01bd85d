"""Parameters and operations of a network, and the table of all models."""

from collections.abc import Iterator
from fnmatch import fnmatch
from typing import Any

import timm
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from ..asr.fold import fold_asr
from .registry import list_variants


class _Operations(TorchDispatchMode):
    """Floating point operations, and elements that convolutions and matrix products put out.

    PyTorch's ``FlopCounterMode`` follows the modules too, by autograd hooks that do not go with every model.
    """

    OUTPUTS = ('convolution', 'mm', 'addmm', 'bmm', 'baddbmm', 'linear')

    def __init__(self) -> None:
        super().__init__()
        self.flops = self.activations = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func._overloadpacket in flop_registry:
            self.flops += flop_registry[func._overloadpacket](*args, **(kwargs or {}), out_val=out)
        if func._schema.name.split('::')[-1] in self.OUTPUTS:
            self.activations += out.numel()
        return out


def count_operations(model: nn.Module, inputs: torch.Tensor) -> tuple[int, int]:
    """Multiply-accumulates and activations of convolutions and matrix products in one forward pass of a batch."""
    # Fused attention has kernels whose operations nobody counts.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), _Operations() as count:
        model(inputs)
    return count.flops // 2, count.activations


def count_parameters(model: nn.Module) -> int:
    """Number of parameters, shared ones counted once."""
    return sum(p.numel() for p in model.parameters())


def weightless(name: str, **kwargs: Any) -> nn.Module:
    """A model without memory for its weights (on the device 'meta'), where its constructor allows that."""
    try:
        return timm.create_model(name, device='meta', **kwargs)
    except (RuntimeError, NotImplementedError, TypeError):  # it computes on its tensors, or takes no device
        return timm.create_model(name, **kwargs)


def model_rows(pattern: str = '*') -> Iterator[dict[str, Any]]:
    """The table of this package's models, a row at a time, in the order of the registry.

    Keys of a row: ``name``, ``title``, ``input`` ('3x32x32'), ``parameters`` (as trained), ``folded`` (parameters once
    its ASR is folded), and ``macs``: multiply-accumulates of the folded network for one image.
    """
    for variant in list_variants():
        if fnmatch(variant.name, pattern):
            model = weightless(variant.name).eval()
            size, parameters = model.default_cfg['input_size'], count_parameters(model)
            image = torch.zeros(1, *size, device=next(model.parameters()).device)
            macs, _ = count_operations(fold_asr(model), image)
            yield {'name': variant.name, 'title': variant.title, 'input': 'x'.join(map(str, size)),
                   'parameters': parameters, 'folded': count_parameters(model), 'macs': macs}
