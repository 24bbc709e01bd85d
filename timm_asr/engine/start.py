"""From options to a training that is ready for its first epoch: device, model, data, loss, optimizer, wrappers."""

import argparse
import importlib
import logging
import os
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from timm.layers import set_fast_norm
from timm.utils import NativeScaler, distribute_bn, init_distributed_device, random_seed
from torch import nn

from ..checkpoints.source import data_config_of
from ..errors import BadInput
from .build import (
    Task,
    build_model,
    check_model,
    make_loss,
    make_optimizer,
    prepare_model,
    resolve_learning_rate,
    title_of,
)
from .device import find_device
from .evaluate import evaluate
from .loaders import make_loaders, open_datasets
from .loop import Training
from .prepare import DTYPES, autocast, check_backend, check_noise, fast_matmul
from .progress import Progress
from .resume import adopt_asr, restore, restore_weights

_logger = logging.getLogger(__name__)


def start_device(args: argparse.Namespace) -> torch.device:
    """Find the device, join the other processes if there are any, and seed."""
    for module in args.device_modules or ():
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise BadInput(f'--device-modules {module}: {error}') from None
    if args.local_rank and 'WORLD_SIZE' in os.environ:
        os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    args.device = str(find_device(args.device))
    device = init_distributed_device(args)
    fast_matmul(device)
    if args.fast_norm:
        set_fast_norm()
    random_seed(args.seed, args.rank)
    return device


def resolve(args: argparse.Namespace) -> dict[str, Any]:
    """Fill in the options that are found out from others; returns what the images would go through.

    No data is opened, and no weights are loaded.
    """
    args.device, args.world_size = str(find_device(args.device)), int(os.environ.get('WORLD_SIZE', '1'))
    with torch.device('meta'):
        config = data_config_of(build_model(args, weights=False), vars(args))
    resolve_learning_rate(args, args.batch_size)
    return {key: list(value) if isinstance(value, tuple) else value for key, value in config.items()
            if key != 'crop_mode'}


def build_training(args: argparse.Namespace, device: torch.device) -> tuple[Training, dict[str, Any], tuple[Any, Any]]:
    """Model, data, loss and optimizer; also the data configuration and the data sets."""
    check_backend(args)
    check_noise(args)
    adopt_asr(args)
    check_model(args)
    datasets = open_datasets(args, args.input_size[0] if args.input_size else args.in_chans or 3)
    model = build_model(args)
    if args.num_classes is None:
        args.num_classes = model.num_classes
    data_config = data_config_of(model, vars(args))
    dtype = DTYPES[args.model_dtype] if args.model_dtype else None
    count = sum(parameter.numel() for parameter in model.parameters())
    model = prepare_model(model, args, device)
    if args.sync_bn and args.distributed and device.type == 'cpu':
        raise BadInput('--sync-bn: PyTorch computes SyncBatchNorm on GPUs only; without it, --dist-bn makes the '
                       'statistics of all processes equal after each epoch')
    loaders = make_loaders(args, data_config, datasets, device, dtype)
    resolve_learning_rate(args, loaders.batch_size)
    task = Task(model, make_loss(args, loaders.mixing), device, dtype)
    optimizer = make_optimizer(model, args)
    scaler = None
    if args.amp and args.amp_dtype == 'float16' and device.type == 'cuda':
        scaler = NativeScaler(device=device.type)
    amp = DTYPES[args.amp_dtype] if args.amp else None
    training = Training(args, task, loaders, optimizer, None, device, autocast(device, amp, args.bn_noise), scaler,
                        dtype)
    size = 'x'.join(map(str, data_config['input_size']))
    _logger.info(f'{title_of(args)}, {count:,} parameters, on {args.device}'
                 + (f' in {args.world_size} processes' if args.distributed else '')
                 + f', input {size}, {args.num_classes} classes'
                 + (f', AMP in {args.amp_dtype}' if args.amp else f', {args.model_dtype or "float32"}') + '.')
    return training, data_config, datasets


def wrap(training: Training, content: dict[str, Any] | None, checkpoint: Path | None) -> None:
    """Resume, average, compile and distribute the model, in the order in which these depend on each other."""
    args, task = training.args, training.task
    if content is not None and checkpoint is not None:
        restore_weights(training, content, checkpoint)
    if args.model_ema:
        task.setup_ema(decay=args.model_ema_decay, use_warmup=args.model_ema_warmup,
                       device=torch.device('cpu') if args.model_ema_force_cpu else None)
    if content is not None and checkpoint is not None:
        restore(training, content, checkpoint)
    if args.torchcompile:
        task.compile(backend=args.torchcompile, mode=args.torchcompile_mode)
        if task.has_ema():
            task.compile_ema(backend=args.torchcompile, mode=args.torchcompile_mode)
    if args.distributed:
        ids = None if training.device.type == 'cpu' else [training.device]
        task.prepare_distributed(device_ids=ids, broadcast_buffers=not args.no_ddp_bb)


def validate_epoch(training: Training, progress: Progress) -> 'OrderedDict[str, float] | None':
    """Metrics of the raw model, or of the averaged one where there is one, as timm does; None without data."""
    args, task = training.args, training.task
    if training.loaders.eval is None:
        return None

    def run(model: nn.Module, name: str) -> 'OrderedDict[str, float]':
        found = evaluate(model, training.loaders.eval, nn.CrossEntropyLoss(), device=training.device,
                         dtype=training.dtype, amp_autocast=training.amp_autocast, channels_last=args.channels_last)
        progress.line(f'validation{name}: top-1 {found["top1"]:.2f} %, '
                      f'loss {found["loss"]:.4f}, {found["count"]} images')
        found.pop('count')
        return found

    metrics = run(task.get_eval_model(), '')
    if task.has_ema() and not args.model_ema_force_cpu:
        if args.distributed and args.dist_bn:
            distribute_bn(task.get_trainable_module(ema=True), args.world_size, args.dist_bn == 'reduce')
        metrics = run(task.get_eval_model(ema=True), ' of the averaged weights')
    return metrics
