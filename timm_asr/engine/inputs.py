"""The model and the images that the shared flags name (:mod:`timm_asr.engine.flags`)."""

import argparse
import logging
from collections.abc import Mapping
from typing import Any

import torch
from timm.data.loader import PrefetchLoader
from torch import nn
from torch.utils.data import IterableDataset

from ..checkpoints import source
from ..checkpoints.open import open_source
from ..errors import BadInput
from .loaders import check_data, classes_of, make_eval_loader, open_dataset

_logger = logging.getLogger(__name__)

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
    return model, data_config_of(args, model, found.data_config)


def data_config_of(args: argparse.Namespace, model: nn.Module, trained: Mapping[str, Any] | None) -> dict[str, Any]:
    """``input_size`` (C, H, W), ``mean``, ``std``, ``interpolation``, ``crop_pct`` and ``crop_mode`` of the images.

    By the flags, else as in the training run, else by the model's own configuration.
    """
    given = {key: value for key in _IMAGE if (value := getattr(args, key, None))}
    # Validation in a training run crops the centre, whatever the model's own configuration has.
    known = {**trained, 'crop_mode': 'center'} if trained else {}
    if 'img_size' in given or 'input_size' in given:
        known.pop('input_size', None)
    test_size = not (known or getattr(args, 'use_train_size', False))
    config = source.data_config_of(model, {**known, **given}, test_size)
    _logger.info('Data: ' + ', '.join(f'{key} {value}' for key, value in config.items()))
    return config


def settle_data(args: argparse.Namespace) -> None:
    """Let ``args.data_dir`` be what is named in either way, and check it."""
    args.data_dir = args.data or args.data_dir
    check_data(args)


def open_data(args: argparse.Namespace, data_config: dict[str, Any], num_outputs: int) -> Any:
    """The data set; ``BadInput`` if it cannot be opened, or has more classes than a model of so many outputs."""
    settle_data(args)
    img_mode = args.input_img_mode or ('RGB' if data_config['input_size'][0] == 3 else 'L')
    named = argparse.Namespace(**vars(args), val_split=args.split, val_num_samples=args.num_samples)
    dataset = open_dataset(named, False, img_mode)
    count = max((classes_of(dataset) or {}).values(), default=num_outputs - 1) + 1
    if count > num_outputs:
        raise BadInput(f'the data has {count} classes, and the model tells only {num_outputs} apart')
    if count < num_outputs and not args.class_map:
        _logger.warning(f'The data has {count} classes, the model {num_outputs} outputs: class indices are those of '
                        'the sorted class names (--class-map names others).')
    return dataset


def open_images(args: argparse.Namespace, model: nn.Module, data_config: dict[str, Any], device: torch.device) -> Any:
    """The loader of the images that the flags name, for a model of :func:`open_model`; errors as :func:`open_data`."""
    return make_eval_loader(args, data_config, open_data(args, data_config, model.num_classes), device, None)


def mix(loader: Any, samples: int | None = None) -> None:
    """Let a loader give so many random images, always the same, in place of the first: folders are sorted by class."""
    inner = loader.loader if isinstance(loader, PrefetchLoader) else loader
    if not isinstance(inner.dataset, IterableDataset):
        order = torch.randperm(len(inner.dataset), generator=torch.Generator().manual_seed(0))
        inner.batch_sampler.sampler = order[:samples].tolist()
