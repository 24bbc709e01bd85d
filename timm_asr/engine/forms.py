"""From a checkpoint to the folded network: fold, compare on real images, and only then write."""

import argparse
import copy
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..asr.fold import fold_asr, has_asr
from ..checkpoints.names import SUMMARY
from ..checkpoints.open import open_source
from ..checkpoints.read import first_line
from ..checkpoints.source import used_data_config
from ..errors import BadInput, Stopped
from ..export.save import save_fused
from ..gates.precision import without_tf32
from ..inference.compare import Comparison, tolerance
from ..inference.reparameterize import reparameterize
from ..models.counts import count_parameters
from ..models.registry import plain_architecture
from .build import title_of
from .interrupt import stoppable
from .side_by_side import columns_of, measure
from .summary import read_summary


def compare(model: nn.Module, others: Sequence[nn.Module], loader: Iterable, device: torch.device) -> list[Comparison]:
    """Compare a model with others in float32, over images (B, C, H, W) and class indices (B,)."""
    found = [Comparison(tolerance(model)) for _ in others]
    with torch.inference_mode(), without_tf32():
        for images, target in stoppable(loader):
            images = images.to(device, torch.float32)
            logits = model(images)
            for one, other in zip(found, others, strict=True):
                one.update(logits, other(images), target)
    return found


def compare_forms(model: nn.Module, facts: Mapping[str, Any], loader: Iterable, device: torch.device,
                  what: str) -> tuple[dict[str, Any], nn.Module]:
    """What ``metrics.json`` holds of a trained network, whose forms see all images of a loader; and its inference form.

    The keys of the folded network, which an export writes, end in ``_folded``, those of the inference form, where that
    is another, in ``_inference``; ``facts`` are those of the checkpoint, which errors call ``what``. ``Stopped``:
    logits differ beyond the contract.
    """
    folded = fold_asr(copy.deepcopy(model)) if has_asr(model) else model
    inference = reparameterize(copy.deepcopy(folded))
    forms = [('_folded', 'folded network', folded), ('_inference', 'inference form', inference)]
    if [type(m) for m in inference.modules()] == [type(m) for m in folded.modules()]:
        forms, inference = forms[:1], folded  # nothing was left to merge or to simplify
    compared = compare(model, [form for *_, form in forms], loader, device)
    figures: dict[str, Any] = {
        'model': facts.get('model'), 'plain': plain_architecture(facts.get('model') or ''),
        **({'asr': facts['asr']['asr']} if facts.get('asr') else {}),
        **{key: facts.get(key) for key in ('dataset', 'epoch', 'weights')}, 'images': compared[0].images}
    for (end, name, form), found in zip(forms, compared, strict=True):
        if not found.same:
            raise Stopped(
                f'nothing is written: the logits of the {name} differ by {found.relative:.1e} of the largest (allowed '
                f'{found.allowed:.0e}) and {found.flipped} of {found.images} predictions change; the checkpoint is '
                f'{what}')
        for after, (suffix, network) in enumerate((('', model), (end, form))):
            figures |= {f'{key}{suffix}': (getattr(found, key) or (None, None))[after] for key in ('top1', 'top5')}
            figures[f'parameters{suffix}'] = count_parameters(network)
        suffix = end.removeprefix('_folded')
        figures |= {f'logit_difference{suffix}': found.largest, f'logit_difference_relative{suffix}': found.relative}
    return figures, inference


def _times(args: argparse.Namespace, model: nn.Module, inference: nn.Module, metrics: Mapping[str, Any],
           data_config: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """The entries of ``metrics.json`` that are times, and the parameters of the plain network."""
    batch = max(2, min(args.validation_batch_size or args.batch_size, 32))  # norms take no single vector
    rows = measure(columns_of(args, model, inference), (batch, *data_config['input_size']), device)
    own, plain = rows[title_of(args)], rows.get(metrics['plain'])
    form = 'inference' if 'parameters_inference' in metrics else 'folded'
    found = {'side_by_side': rows, 'images_per_second_model': own['images_per_second'],
             f'images_per_second_{form}': own['images_per_second_folded']}
    if plain is not None:
        found |= {'images_per_second_plain': plain['images_per_second'], 'parameters_plain': plain['parameters']}
    return found


def export_run(checkpoint: Path, folder: Path, args: argparse.Namespace, data_config: dict[str, Any], loader: Iterable,
               device: torch.device, ema: bool = False) -> dict[str, Any]:
    """Fold the model of a checkpoint and write ``model.safetensors``, ``config.json`` and ``metrics.json``.

    ``args`` are the options of the run; ``loader`` has all validation images, which ``data_config`` describes. ``ema``
    takes the averaged weights. Plain, attention and what was trained are timed side by side. Returns what
    ``metrics.json`` holds; ``Stopped``: the folded network differs beyond the contract, and nothing is written.
    """
    source = open_source(checkpoint, ema)
    source.model.float().eval().to(device)
    if args.channels_last:
        source.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    figures, inference = compare_forms(source.model, source.facts, loader, device, str(checkpoint))
    metrics = {**figures, 'split': f'held out of {args.train_split}' if args.holdout else args.val_split}
    for row in read_summary(folder / SUMMARY)[-1:]:  # the last epoch, beside that which was chosen by its accuracy
        metrics |= {f'{key}_last': float(row[f'eval_{key}']) for key in ('top1', 'top5') if row.get(f'eval_{key}')}
        metrics['epoch_last'] = int(row['epoch'])
    with suppress(torch.OutOfMemoryError):  # of several networks in float32
        metrics |= _times(args, source.model, inference, metrics, data_config, device)
    # The run's own files are in the folder already.
    source.data_config, source.metrics, source.files = used_data_config(data_config), metrics, {}
    try:
        save_fused(source, folder, overwrite=True)
    except (BadInput, ValueError, OSError) as error:
        raise Stopped(f'the folded network cannot be written: {first_line(error)}') from None
    return metrics
