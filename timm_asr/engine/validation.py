"""Accuracy of one model, several, or all checkpoints of a folder, on a data set."""

import argparse
import importlib.util
import json
import logging
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm.utils
import torch
from timm.data import RealLabelsImagenet
from timm.layers import apply_test_time_pool, set_fast_norm
from timm.utils import natural_key
from torch import nn

from ..checkpoints.find import expand_names
from ..checkpoints.read import first_line, is_folder_of_weights
from ..errors import BadInput
from ..models.counts import count_parameters
from . import inputs
from .device import find_device
from .evaluate import Totals, evaluate
from .interrupt import deferred_interrupts
from .loaders import label_names, make_eval_loader
from .progress import setup_logging
from .reports import as_markdown, check_results_file, write_results

_logger = logging.getLogger(__name__)

# Pretrained weights of these were not trained on the 1,000 classes of ImageNet.
_NOT_IMAGENET = ('*_in21k', '*_in22k', '*in12k', '*_dino', '*fcmae', '*seer')


def scores(pairs: torch.Tensor, average: str) -> dict[str, float]:
    """Precision, recall and F1 in percent, of true and predicted classes (2, N): ``micro`` over images, ``macro`` over
    the classes that occur or are predicted, ``weighted`` by how often each occurs. One that never does counts as 0.
    """
    from sklearn.metrics import precision_recall_fscore_support
    found = precision_recall_fscore_support(*pairs.numpy(), average=average, zero_division=0)
    return {f'{average}_{key}': round(100 * float(value), 4)
            for key, value in zip(('precision', 'recall', 'f1_score'), found, strict=False)}


def by_class(pairs: torch.Tensor, names: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """For each class of the true and predicted ones (2, N): ``class``, ``images``, ``top1`` (percent right)."""
    target, predicted = pairs
    counts = torch.bincount(target)
    hits = torch.bincount(target[target == predicted], minlength=len(counts))
    return [{'class': names[i] if names else i, 'images': count, 'top1': round(100 * hits[i].item() / count, 2)}
            for i, count in enumerate(counts.tolist()) if count]


def _check(args: argparse.Namespace) -> torch.device:
    """Everything about the options that can be wrong before a model is made."""
    inputs.check_noise(args)
    device = find_device(args.device)
    check_results_file(args.results_file)
    if args.amp and args.model_dtype not in (None, 'float32'):
        raise BadInput(f'--amp keeps the model in float32: leave out --model-dtype {args.model_dtype}')
    count = torch.cuda.device_count() if device.type == 'cuda' else 0
    if args.num_gpu > max(count, 1):
        raise BadInput(f'--num-gpu {args.num_gpu}: this run can use {count} GPUs')
    if args.metrics_avg and importlib.util.find_spec('sklearn') is None:
        raise BadInput('--metrics-avg needs scikit-learn: pip install scikit-learn')
    if args.batch_size < 1 or args.log_freq < 1:
        raise BadInput('--batch-size and --log-freq must be at least 1')
    inputs.settle_data(args)
    return device


def _valid_labels(path: str, num_classes: int) -> list[int]:
    try:
        labels = [int(line) for line in Path(path).read_text(encoding='utf-8').split()]
    except (OSError, ValueError) as error:
        raise BadInput(f'--valid-labels {path}: expected a class index on each line ({error})') from None
    if not labels or min(labels) < 0 or max(labels) >= num_classes:
        raise BadInput(f'--valid-labels {path}: indices must lie between 0 and {num_classes - 1}')
    return labels


def _real_labels(path: str, dataset: Any) -> RealLabelsImagenet:
    try:
        return RealLabelsImagenet(dataset.filenames(basename=True), real_json=path)
    except (OSError, AssertionError, ValueError, AttributeError, KeyError):
        raise BadInput(f'--real-labels {path}: it must be a file with a list of labels for each of the images, which '
                       'must be the 50,000 of the ImageNet validation set') from None


def _count_norms(model: nn.Module) -> int:
    return sum(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())


def validate(args: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Validate one model; returns the row of timm's script. ``BadInput``: options, weights or data cannot work."""
    inputs.fast_matmul(device)
    dtype = inputs.DTYPES[args.model_dtype] if args.model_dtype else torch.float32
    timm.utils.random_seed(args.seed)
    set_fast_norm(args.fast_norm)

    model, data_config = inputs.open_model(args)
    name = args.model or args.checkpoint
    norms = _count_norms(model)
    model = inputs.inference_form(model, name, args.reparam, args.fold_bn)
    if args.bn_noise and _count_norms(model) < norms:
        raise BadInput(f'--bn-noise does not reach each BatchNorm of the inference form of {name}: leave out --reparam')
    param_count = count_parameters(model)
    _logger.info(f'Model {name} created, param count: {param_count}')
    num_classes = model.num_classes
    valid_labels = _valid_labels(args.valid_labels, num_classes) if args.valid_labels else None
    dataset = inputs.open_data(args, data_config, len(valid_labels) if valid_labels else num_classes)
    if args.test_pool:
        model, changed = apply_test_time_pool(model, data_config)
        data_config = data_config | ({'crop_pct': 1.0} if changed else {})
    real_labels = _real_labels(args.real_labels, dataset) if args.real_labels else None

    model = model.to(device=device, dtype=dtype)
    if args.channels_last:
        model = model.to(memory_format=torch.channels_last)
    model = inputs.compiled(model, args)
    if args.num_gpu > 1:
        model = nn.DataParallel(model, device_ids=list(range(args.num_gpu)))
    _logger.info(f'Validating in {args.amp_dtype + " mixed precision" if args.amp else dtype}.')
    loader = make_eval_loader(args, data_config, dataset, device, dtype)
    pairs: list[torch.Tensor] = []
    start = time.perf_counter()

    def on_output(output: torch.Tensor, target: torch.Tensor) -> None:
        pairs.append(torch.stack([target, output.argmax(1)]).cpu())
        if real_labels is not None:
            real_labels.add_result(output)

    def on_batch(index: int, totals: Totals) -> None:
        if index % args.log_freq == 0:
            now = totals.averages()  # waits for the device
            rate = now['count'] / (time.perf_counter() - start)
            _logger.info(f'Test: [{index:>4d}/{len(loader)}]  ({rate:>7.2f}/s)  '
                         f'Loss: {now["loss"]:>6.4f}  Acc@1: {now["top1"]:>7.3f}  Acc@5: {now["top5"]:>7.3f}')

    amp = inputs.DTYPES[args.amp_dtype] if args.amp else None
    with deferred_interrupts():
        figures = evaluate(model, loader, nn.CrossEntropyLoss().to(device), device=device, dtype=dtype,
                           amp_autocast=inputs.autocast(device, amp, args.bn_noise),
                           channels_last=args.channels_last, valid_labels=valid_labels, on_output=on_output,
                           on_batch=on_batch)
    if not math.isfinite(figures['loss']):
        _logger.warning(f'The loss of {name} is {figures["loss"]}: its accuracy means nothing.')
    top1, top5 = figures['top1'], figures['top5']
    if real_labels is not None:
        top1, top5 = real_labels.get_accuracy(k=1), real_labels.get_accuracy(k=5)
    averaged = scores(torch.cat(pairs, dim=1), args.metrics_avg) if args.metrics_avg else {}
    if args.per_class:
        print(as_markdown(by_class(torch.cat(pairs, dim=1), label_names(dataset, num_classes))), end='')
    more = ''.join(f' | {key} {value:.3f}' for key, value in averaged.items())
    _logger.info(f' * Acc@1 {top1:.3f} ({100 - top1:.3f}) Acc@5 {top5:.3f} ({100 - top5:.3f}){more}')
    return {
        'model': name, 'top1': round(top1, 4), 'top1_err': round(100 - top1, 4), 'top5': round(top5, 4),
        'top5_err': round(100 - top5, 4), **averaged, 'param_count': round(param_count / 1e6, 2),
        'img_size': data_config['input_size'][-1], 'crop_pct': data_config['crop_pct'],
        'interpolation': data_config['interpolation']}


def _try(args: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Validate with smaller and smaller batches; the row of a model that fails has ``error`` instead of figures."""
    def run(batch_size: int) -> dict[str, Any]:
        args.batch_size = batch_size * args.num_gpu
        return validate(args, device)

    try:
        row = inputs.with_smaller_batches(run, args.batch_size, 'validation')
    except BadInput as error:
        row = {'error': str(error)}
    if 'error' in row:
        row = {'model': args.model, **row}
        _logger.error(f'{args.model or args.checkpoint} failed to validate ({row["error"]}).')
    return row


def _runs(args: argparse.Namespace) -> list[dict[str, str]] | None:
    """Model and checkpoint of each run of a bulk validation; None for a single run."""
    if args.checkpoint and Path(args.checkpoint).is_dir() and not is_folder_of_weights(args.checkpoint):
        files = [*Path(args.checkpoint).glob('*.pth.tar'), *Path(args.checkpoint).glob('*.pth')]
        if not files:
            raise BadInput(f'--checkpoint {args.checkpoint}: no config.json, *.pth or *.pth.tar in this folder')
        return [{'checkpoint': path} for path in sorted(map(str, files), key=natural_key)]
    if args.checkpoint:
        return None
    names = expand_names(args.model, pretrained=True, exclude=_NOT_IMAGENET if args.model == 'all' else ())
    return None if names is None else [{'model': name} for name in names]


def main(args: argparse.Namespace, *_: Any) -> int:
    """Validate what the options name, print and write the results; returns the exit status."""
    setup_logging()
    args.model = args.model or ('' if args.checkpoint else 'dpn92')  # a checkpoint says what it is
    device = _check(args)
    runs = _runs(args)
    results: Any
    interrupted = False
    if runs is not None:
        _logger.info(f'Running bulk validation of {len(runs)} models on {device}.')
        rows: list[dict[str, Any]] = []
        try:
            for run in runs:
                rows.append(_try(argparse.Namespace(**{**vars(args), **run}), device) | run)
        except KeyboardInterrupt:
            _logger.warning(f'Interrupted: {len(rows)} of {len(runs)} models are validated.')
            interrupted = True
        results = sorted((row for row in rows if 'error' not in row), key=lambda row: row['top1'], reverse=True)
        failed = not results
    else:
        try:
            results = _try(args, device) if args.retry else validate(args, device)
        except torch.OutOfMemoryError as error:
            raise BadInput(f'too little memory for --batch-size {args.batch_size}: use a smaller one, or --retry '
                           f'({str(error).splitlines()[0][:120]})') from None
        except inputs.REFUSALS as error:
            raise BadInput(f'{args.model or args.checkpoint} cannot be validated: {first_line(error)}') from None
        failed = 'error' in results
    # The delimiter is what timm's bulk_runner.py looks for.
    print(f'--result\n{json.dumps(results, indent=4)}')
    if args.results_file and not failed:
        write_results(args.results_file, results, args.results_format)
    return 130 if interrupted else int(failed)
