"""From a loaded model to one that is ready to be measured: inference form, device, layout, compilation."""

import argparse
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import torch
from timm.utils import check_batch_size_retry, decay_batch_step
from torch import nn

from ..analysis.bn_noise import bn_noise, parse_noise
from ..errors import BadInput
from ..inference.reparameterize import is_foldable, reparameterize

_logger = logging.getLogger(__name__)

DTYPES = {'float32': torch.float32, 'float16': torch.float16, 'bfloat16': torch.bfloat16}


def inference_form(model: nn.Module, name: str, reparam: bool = False, fold_bn: bool = False) -> nn.Module:
    """The model, or its inference form (``reparam``), with each BatchNorm folded into its convolution (``fold_bn``).

    One line of warning, with its name, where it has another form and is measured as trained.
    """
    if reparam or fold_bn:
        return reparameterize(model.eval(), fold_bn=fold_bn)
    if is_foldable(model):
        _logger.warning(f'{name} is measured as trained; --reparam measures its inference form.')
    return model


def check_backend(args: argparse.Namespace) -> None:
    """Raise ``BadInput``, with those that there are, unless PyTorch has the backend of ``--torchcompile``."""
    if args.torchscript and args.torchcompile:
        raise BadInput('--torchscript and --torchcompile exclude each other')
    backends = torch._dynamo.list_backends(exclude_tags=()) if args.torchcompile else []
    if args.torchcompile and args.torchcompile not in backends:
        raise BadInput(f'--torchcompile {args.torchcompile}: PyTorch has {", ".join(backends)}')


def compiled(model: nn.Module, args: argparse.Namespace) -> nn.Module:
    """The model after ``--torchscript`` or ``--torchcompile``."""
    check_backend(args)
    if args.torchscript:
        try:
            return torch.jit.script(model)
        except (TypeError, RuntimeError) as error:
            reason = str(error).strip().splitlines()[0]
            raise BadInput(f'--torchscript: this model cannot be scripted ({reason[:200]})') from None
    if args.torchcompile:
        torch._dynamo.reset()
        return torch.compile(model, backend=args.torchcompile, mode=args.torchcompile_mode)
    return model


def autocast(device: torch.device, dtype: torch.dtype | None, noise: str = '') -> Callable[[], Any]:
    """A maker of contexts of forward passes: autocast to this type, noise in every BatchNorm, or nothing."""
    cast: Callable[[], Any] = suppress if dtype is None else partial(
        torch.autocast, device_type=device.type, dtype=dtype)
    if not noise:
        return cast
    a, b = parse_noise(noise)

    @contextmanager
    def both() -> Iterator[None]:
        with cast(), bn_noise(a, b):
            yield

    return both


def check_noise(args: argparse.Namespace) -> None:
    """Refuse a ``--bn-noise`` that is none, or that would not reach every BatchNorm."""
    if not args.bn_noise:
        return
    try:
        parse_noise(args.bn_noise)
    except ValueError as error:
        raise BadInput(f'--bn-noise: {error}') from None
    for name in ('torchcompile', 'torchscript', 'grad_checkpointing', 'sync_bn'):
        if getattr(args, name, None):
            raise BadInput(f'--bn-noise does not go with --{name.replace("_", "-")}, which runs BatchNorms out of its '
                           'reach')


def fast_matmul(device: torch.device) -> None:
    """On CUDA, what timm's scripts set: TF32 matrix products, and the fastest convolution for each shape."""
    if device.type == 'cuda':
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.benchmark = True


def with_smaller_batches(run: Callable[[int], dict[str, Any]], batch_size: int, what: str,
                         retry: bool = True) -> dict[str, Any]:
    """The row of ``run(batch_size)``, with smaller and smaller batches on errors that these may mend, as timm's scripts
    do; ``{'error': reason}`` where none works.
    """
    reason = ''
    while batch_size:
        try:
            return run(batch_size)
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[0]
            _logger.error(f'"{reason}" while running {what}.')
            if not retry or not check_batch_size_retry(str(error)):
                break
        batch_size = decay_batch_step(batch_size)
        _logger.warning(f'Reducing batch size to {batch_size} for retry.')
    return {'error': reason}
