"""From a checkpoint to the folded network: fold, compare on real images, and only then write."""

import argparse
import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
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
    cuda = torch.backends.cuda.matmul
    before, cuda.allow_tf32 = cuda.allow_tf32, False  # a comparison to 1e-5 needs all bits of float32
    try:
        with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            for images, target in stoppable(loader):
                images = images.to(device, torch.float32)
                logits = model(images)
                for one, other in zip(found, others, strict=True):
                    one.update(logits, other(images), target)
    finally:
        cuda.allow_tf32 = before
    return found


@dataclass
class Forms:
    """A trained network, its folded one (without ASR: what an export writes) and its inference form, with their logits
    compared. Where nothing is left to fold or to simplify, they are the same object.
    """

    model: nn.Module
    folded: nn.Module
    inference: nn.Module
    to_folded: Comparison
    to_inference: Comparison

    def figures(self, facts: Mapping[str, Any]) -> dict[str, Any]:
        """The content of ``metrics.json``: figures of the trained network, ``_folded`` for the one in the folder, and
        ``_inference`` for the inference form, where that is another; ``facts`` are those of the checkpoint.
        """
        found = {
            'model': facts.get('model'), 'plain': plain_architecture(facts.get('model') or ''),
            **({'asr': facts['asr']['asr']} if facts.get('asr') else {}),
            **{key: facts.get(key) for key in ('dataset', 'epoch', 'weights')}, 'was_asr': has_asr(self.model),
            'images': self.to_folded.images, **_figures('', self.model, self.to_folded, 0),
            **_figures('_folded', self.folded, self.to_folded, 1), **_differences('', self.to_folded)}
        if self.inference is not self.folded:
            found |= _figures('_inference', self.inference, self.to_inference, 1)
            found |= _differences('_inference', self.to_inference)
        return found


def _figures(end: str, model: nn.Module, found: Comparison, which: int) -> dict[str, Any]:
    top1, top5 = found.top1 or (None, None), found.top5 or (None, None)
    return {f'top1{end}': top1[which], f'top5{end}': top5[which], f'parameters{end}': count_parameters(model)}


def _differences(end: str, found: Comparison) -> dict[str, float]:
    return {f'logit_difference{end}': found.largest, f'logit_difference_relative{end}': found.relative}


def compare_forms(model: nn.Module, loader: Iterable, device: torch.device, what: str) -> Forms:
    """The folded network and the inference form of a model, after all have seen all images of a loader.

    Raises:
        Stopped: If logits differ beyond the contract; ``what`` is how it names the checkpoint.
    """
    folded = fold_asr(copy.deepcopy(model)) if has_asr(model) else model
    inference = reparameterize(copy.deepcopy(folded))
    if [type(m) for m in inference.modules()] == [type(m) for m in folded.modules()]:
        inference = folded  # nothing was left to merge or to simplify
    others = list(dict.fromkeys((folded, inference)))
    found = dict(zip(others, compare(model, others, loader, device), strict=True))
    for other, name in ((folded, 'folded network'), (inference, 'inference form')):
        one = found[other]
        if not one.same:
            raise Stopped(
                f'nothing is written: the logits of the {name} differ by {one.relative:.1e} of the largest (allowed '
                f'{one.allowed:.0e}) and {one.flipped} of {one.images} predictions change; the checkpoint is {what}')
    return Forms(model, folded, inference, found[folded], found[inference])


def export_run(checkpoint: Path, folder: Path, args: argparse.Namespace, data_config: dict[str, Any], loader: Iterable,
               device: torch.device, ema: bool = False) -> dict[str, Any]:
    """Fold the model of a checkpoint and write ``model.safetensors``, ``config.json`` and ``metrics.json``.

    ``args`` are the options of the run; ``loader`` has all validation images, which ``data_config`` describes. ``ema``
    takes the averaged weights. Plain, attention and what was trained are timed side by side.

    Returns:
        What ``metrics.json`` holds.

    Raises:
        Stopped: If the folded network differs beyond the contract, or cannot be written. Nothing is written.
    """
    source = open_source(checkpoint, ema)
    source.model.float().eval().to(device)
    if args.channels_last:
        source.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    forms = compare_forms(source.model, loader, device, str(checkpoint))
    metrics = {**forms.figures(source.facts), 'split': args.val_split, **_last_epoch(folder)}
    columns = columns_of(args, forms.model, forms.inference)
    batch = min(args.validation_batch_size or args.batch_size, 32)
    rows = metrics['side_by_side'] = measure(columns, (batch, *data_config['input_size']), device)
    own, plain = rows[title_of(args)], rows.get(metrics['plain'])
    form = 'inference' if 'parameters_inference' in metrics else 'folded'
    metrics |= {'images_per_second_model': own['images_per_second'],
                f'images_per_second_{form}': own['images_per_second_folded']}
    if plain is not None:
        metrics |= {'images_per_second_plain': plain['images_per_second'], 'parameters_plain': plain['parameters']}
    # The run's own files are in the folder already.
    source.data_config, source.metrics, source.files = used_data_config(data_config), metrics, {}
    try:
        save_fused(source, folder, overwrite=True)
    except (BadInput, ValueError, OSError) as error:
        raise Stopped(f'the folded network cannot be written: {first_line(error)}') from None
    return metrics


def _last_epoch(folder: Path) -> dict[str, Any]:
    """The accuracy at the last epoch, beside that of the epoch that was chosen by it."""
    rows = read_summary(folder / SUMMARY)
    if not rows:
        return {}
    last = {key: float(rows[-1][f'eval_{key}']) for key in ('top1', 'top5') if rows[-1].get(f'eval_{key}')}
    return {'epoch_last': int(rows[-1]['epoch']), **{f'{key}_last': value for key, value in last.items()}}
