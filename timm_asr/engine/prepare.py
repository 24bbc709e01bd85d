"""From a loaded model to one that is ready to be measured: inference form, device, layout, compilation."""

import argparse
import logging
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

import torch
from torch import nn

from ..errors import BadInput
from ..inference.reparameterize import is_foldable, reparameterize

_logger = logging.getLogger(__name__)

DTYPES = {'float32': torch.float32, 'float16': torch.float16, 'bfloat16': torch.bfloat16}


def inference_form(model: nn.Module, name: str, reparam: bool = False, fold_bn: bool = False) -> nn.Module:
    """The model as asked for, in eval mode where that changes it; one line of warning if it could be fused and is not.

    Args:
        model: The model.
        name: What the user calls it.
        reparam: Fold attention vectors and merge branches.
        fold_bn: The same, and fold each BatchNorm into its convolution.
    """
    if reparam or fold_bn:
        return reparameterize(model.eval(), fold_bn=fold_bn)
    if is_foldable(model):
        _logger.warning(f'{name} is measured unfused; --reparam measures its inference form.')
    return model


def compiled(model: nn.Module, args: argparse.Namespace) -> nn.Module:
    """The model after ``--torchscript`` or ``--torchcompile``."""
    if args.torchscript:
        try:
            return torch.jit.script(model)
        except (TypeError, RuntimeError) as error:
            reason = str(error).strip().splitlines()[0]
            raise BadInput(f'--torchscript: this model cannot be scripted ({reason[:200]})') from None
    if args.torchcompile:
        backends = torch._dynamo.list_backends(exclude_tags=())
        if args.torchcompile not in backends:
            raise BadInput(f'--torchcompile {args.torchcompile}: PyTorch has {", ".join(backends)}')
        torch._dynamo.reset()
        return torch.compile(model, backend=args.torchcompile, mode=args.torchcompile_mode)
    return model


def autocast(device: torch.device, dtype: torch.dtype | None) -> Callable[[], Any]:
    """A maker of contexts: autocast to this type, or nothing."""
    return suppress if dtype is None else partial(torch.autocast, device_type=device.type, dtype=dtype)


def fast_matmul(device: torch.device) -> None:
    """On CUDA, what timm's scripts set: TF32 matrix products, and the fastest convolution for each shape."""
    if device.type == 'cuda':
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.benchmark = True
