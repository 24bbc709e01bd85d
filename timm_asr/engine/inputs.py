"""The model and the images that the shared flags name (:mod:`timm_asr.engine.flags`), made ready to be measured."""

import argparse
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import torch
from timm.data.loader import PrefetchLoader
from timm.utils import check_batch_size_retry, decay_batch_step
from torch import nn
from torch.utils.data import IterableDataset

from ..analysis.bn_noise import bn_noise, parse_noise
from ..checkpoints import source
from ..checkpoints.open import open_source
from ..checkpoints.read import first_line
from ..errors import BadInput
from ..inference.reparameterize import is_foldable, reparameterize
from .loaders import check_data, classes_of, img_mode_of, open_dataset

_logger = logging.getLogger(__name__)

DTYPES = {'float32': torch.float32, 'float16': torch.float16, 'bfloat16': torch.bfloat16}
#: What networks raise that do not take the images, of a size that they were not made for, say.
REFUSALS = (ArithmeticError, AssertionError, IndexError, RuntimeError, ValueError)
_IMAGE = ('in_chans', 'img_size', 'input_size', 'mean', 'std', 'interpolation', 'crop_pct', 'crop_mode')


def open_model(args: argparse.Namespace, untrained: bool = False) -> tuple[nn.Module, dict[str, Any]]:
    """The model of ``--model``, ``--checkpoint`` and the flags beside them: on the CPU, in float32 and eval mode, not
    folded; and what its images go through (:func:`data_config_of`).

    Without a checkpoint it has its pretrained weights; if ``untrained``, only with ``--pretrained``. ``BadInput``: no
    model is named, there is no such model, or the weights do not fit it.
    """
    if not (args.model or args.checkpoint):
        raise BadInput('no model: give a name (--model NAME) or a checkpoint (--checkpoint FILE)')
    found = open_source(args.checkpoint or args.model, args.use_ema, args.model if args.checkpoint else '',
                        pretrained=args.pretrained or not (args.checkpoint or untrained), num_classes=args.num_classes,
                        in_chans=args.in_chans, img_size=args.img_size, input_size=args.input_size,
                        global_pool=args.gp, scriptable=getattr(args, 'torchscript', False) or None, asr=args.asr,
                        model_kwargs=args.model_kwargs)
    model = found.model.eval()
    config = data_config_of(args, model, found.data_config)
    _logger.info('Data: ' + ', '.join(f'{key} {value}' for key, value in config.items()))
    return model, config


def data_config_of(args: argparse.Namespace, model: nn.Module, trained: Mapping[str, Any] | None) -> dict[str, Any]:
    """``input_size`` (C, H, W), ``mean``, ``std``, ``interpolation``, ``crop_pct`` and ``crop_mode`` of the images.

    By the flags, else as in the training run, else by the model's own configuration.
    """
    given = {key: value for key in _IMAGE if (value := getattr(args, key, None))}
    known = dict(trained or {})
    if 'img_size' in given or 'input_size' in given:
        known.pop('input_size', None)
    test_size = not (known or getattr(args, 'use_train_size', False))
    return source.data_config_of(model, {**known, **given}, test_size)


def settle_data(args: argparse.Namespace) -> None:
    """Let ``args.data_dir`` be what is named in either way, and check it."""
    args.data_dir = args.data or args.data_dir
    check_data(args)


def open_data(args: argparse.Namespace, data_config: dict[str, Any], num_outputs: int) -> Any:
    """The data set; ``BadInput`` if it cannot be opened, or has more classes than a model of so many outputs."""
    settle_data(args)
    img_mode = img_mode_of(args, data_config['input_size'][0])
    named = argparse.Namespace(**vars(args), val_split=args.split, val_num_samples=args.num_samples)
    dataset = open_dataset(named, False, img_mode)
    count = max((classes_of(dataset) or {}).values(), default=num_outputs - 1) + 1
    if count > num_outputs:
        raise BadInput(f'the data has {count} classes, and the model tells only {num_outputs} apart')
    if count < num_outputs and not args.class_map:
        _logger.warning(f'The data has {count} classes, the model {num_outputs} outputs: class indices are those of '
                        'the sorted class names (--class-map names others).')
    return dataset


def mix(loader: Any, samples: int | None = None) -> None:
    """Let a loader give so many random images, always the same, in place of the first: folders are sorted by class."""
    inner = loader.loader if isinstance(loader, PrefetchLoader) else loader
    if not isinstance(inner.dataset, IterableDataset):
        order = torch.randperm(len(inner.dataset), generator=torch.Generator().manual_seed(0))
        inner.batch_sampler.sampler = order[:samples].tolist()


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
    backends = torch.compiler.list_backends(exclude_tags=()) if args.torchcompile else []
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
        torch.compiler.reset()
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
    for name in ('torchcompile', 'torchscript', 'grad_checkpointing', 'sync_bn', 'fold_bn'):
        if getattr(args, name, None):
            raise BadInput(f'--bn-noise does not go with --{name.replace("_", "-")}, after which BatchNorms are '
                           'out of its reach')
    if getattr(args, 'num_gpu', 1) > 1:
        raise BadInput('--bn-noise reaches one GPU: leave out --num-gpu')


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
        except REFUSALS as error:
            reason = first_line(error)
            _logger.error(f'"{reason}" while running {what}.')
            if not retry or not isinstance(error, RuntimeError) or not check_batch_size_retry(str(error)):
                break
        batch_size = decay_batch_step(batch_size)
        if batch_size:
            _logger.warning(f'Reducing batch size to {batch_size} for retry.')
    return {'error': reason}
