"""From a checkpoint to the fused model: fold, compare with the unfused model on real images, and only then write."""

import argparse
import copy
import gc
import logging
import math
from collections.abc import Callable, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..asr.vector import has_asr
from ..checkpoints.load_model import load_weights, read_checkpoint, state_dict_of
from ..checkpoints.open import checkpoint_facts, label_names_of, used_data_config
from ..checkpoints.source import Source
from ..errors import BadInput, Stopped
from ..export.folded import tolerance
from ..export.save import Options, write_fused
from ..inference.reparameterize import reparameterize
from ..models.zoo import plain_architecture
from .build import build_model, first_line
from .interrupt import stoppable
from .measure import count_parameters
from .versus import interleave

_logger = logging.getLogger(__name__)


@dataclass
class Comparison:
    """Two models on the same images.

    Args:
        images: How many.
        before: Top-1 of the first, percent.
        after: Top-1 of the second.
        before5: Top-5 of the first.
        after5: Top-5 of the second.
        difference: Largest absolute difference of a logit.
        largest: Largest absolute logit.
        flipped: Images whose predicted class changed although it was no tie.
    """

    images: int = 0
    before: float = 0.0
    after: float = 0.0
    before5: float = 0.0
    after5: float = 0.0
    difference: float = 0.0
    largest: float = 0.0
    flipped: int = 0

    @property
    def relative(self) -> float:
        """Largest difference over the largest logit."""
        return self.difference / self.largest if self.largest else self.difference


@contextmanager
def exact_float32() -> Any:
    """No TF32 inside: a comparison to 1e-5 needs all bits of float32."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def compare(first: nn.Module, second: nn.Module, loader: Iterable, device: torch.device) -> Comparison:
    """Run both models over a loader in float32.

    Args:
        first: In eval mode, on the device.
        second: The same.
        loader: Yields images (B, C, H, W) and class indices (B,).
        device: Where the models are.
    """
    allowed = tolerance(first)
    found = Comparison()
    hits = torch.zeros(4, dtype=torch.float64)
    with torch.inference_mode(), exact_float32():
        for images, target in stoppable(loader):
            images, target = images.to(device, torch.float32), target.to(device)
            a, b = first(images), second(images)
            found.images += len(a)
            difference, largest = (a - b).abs().max().item(), a.abs().max().item()
            # max() drops a NaN
            found.difference = max(found.difference, difference) if difference == difference else math.inf
            found.largest = max(found.largest, largest)
            top = a.topk(min(2, a.shape[1]), dim=1).values
            clear = top[:, 0] - top[:, -1] > 2 * allowed * largest
            found.flipped += int(((a.argmax(1) != b.argmax(1)) & clear).sum())
            k = min(5, a.shape[1])
            for i, logits in enumerate((a, b)):
                right = logits.topk(k, dim=1).indices == target[:, None]
                hits[i] += right[:, :1].sum().item()
                hits[2 + i] += right.sum().item()
    found.before, found.after, found.before5, found.after5 = (100 * hits / max(found.images, 1)).tolist()
    return found


def model_of(checkpoint: Path, args: argparse.Namespace, ema: bool) -> nn.Module:
    """The model of a checkpoint as it was trained, unfused, in eval mode on the CPU in float32."""
    content = read_checkpoint(checkpoint)
    model = build_model(args, weights=False)
    weights = state_dict_of(content, use_ema=ema, path=checkpoint)
    # Split BN keeps the statistics of the augmented parts beside those that inference uses.
    weights = {name: value for name, value in weights.items() if '.aux_bn.' not in name}
    load_weights(model, checkpoint, weights, args.model)
    return model.float().eval()


def compare_fused(
        model: nn.Module,
        loader: Iterable,
        device: torch.device,
        what: str,
) -> tuple[nn.Module, Comparison]:
    """The inference form of a model, after both have seen all images of a loader.

    Args:
        model: In eval mode, on the device.
        loader: Yields images (B, C, H, W) and class indices (B,).
        device: Where the model is.
        what: The checkpoint, as the error names it.

    Raises:
        Stopped: If the logits differ beyond the contract.
    """
    fused = reparameterize(copy.deepcopy(model))
    found = compare(model, fused, loader, device)
    allowed = tolerance(model)
    if found.flipped or found.relative > allowed or not math.isfinite(found.relative):
        raise Stopped(
            f'the fused model is not written: its logits differ by {found.relative:.1e} of the largest (allowed '
            f'{allowed:.0e}) and {found.flipped} of {found.images} predictions change; the checkpoint is {what}')
    return fused, found


def figures(
        facts: Mapping[str, Any],
        model: nn.Module,
        fused: nn.Module,
        found: Comparison,
) -> dict[str, Any]:
    """The content of ``metrics.json``.

    Args:
        facts: What is known of the checkpoint: ``model``, ``asr``, ``dataset``, ``epoch``, ``weights``.
        model: The trained model.
        fused: Its inference form.
        found: Both compared.
    """
    return {
        'model': facts.get('model'), 'plain': plain_architecture(facts.get('model') or ''),
        **({'asr': facts['asr']['asr']} if facts.get('asr') else {}),
        **{key: facts.get(key) for key in ('dataset', 'epoch', 'weights')}, 'was_asr': has_asr(model),
        'images': found.images, 'top1': found.before, 'top1_fused': found.after, 'top5': found.before5,
        'top5_fused': found.after5, 'logit_difference': found.difference,
        'logit_difference_relative': found.relative, 'parameters': count_parameters(model),
        'parameters_fused': count_parameters(fused)}


def _speed(models: dict[str, nn.Module], shape: tuple[int, ...], device: torch.device) -> dict[str, float]:
    images = torch.randn(shape, device=device)
    with torch.inference_mode():
        def step(model: nn.Module) -> Callable[[], object]:
            return lambda: model(images)
        gc.freeze()  # what is there already needs no collection between the rounds
        times = interleave({name: step(model) for name, model in models.items()}, rounds=25, warmup=2, device=device)
        gc.unfreeze()
    return {name: shape[0] / sorted(own)[len(own) // 2] for name, own in times.items()}


def fuse_checkpoint(
        checkpoint: Path,
        folder: Path,
        args: argparse.Namespace,
        data_config: dict[str, Any],
        loader: Iterable,
        device: torch.device,
        ema: bool = False,
        measure: bool = False,
) -> dict[str, Any]:
    """Fuse the model of a checkpoint and write ``model.safetensors``, ``config.json`` and ``metrics.json``.

    Args:
        checkpoint: What the run saved.
        folder: Where the files go.
        args: The options of the run.
        data_config: Size, mean and so on of its images.
        loader: Validation batches, all of them.
        device: Where to compare.
        ema: Take the averaged weights.
        measure: Also time the models, and the plain backbone beside them.

    Returns:
        What ``metrics.json`` holds.

    Raises:
        Stopped: If the fused model differs from the unfused one beyond the contract. Nothing is written.
    """
    content = read_checkpoint(checkpoint)
    facts = checkpoint_facts(checkpoint, content, ema)
    model = model_of(checkpoint, args, ema).to(device)
    if args.channels_last:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    facts['asr'] = getattr(model, 'asr_options', None)
    fused, found = compare_fused(model, loader, device, str(checkpoint))
    metrics = figures(facts, model, fused, found)
    if measure:
        models = {'model': model, 'fused': fused}
        plain = _plain(metrics['plain'], args) if args.asr or metrics['plain'] != args.model else None
        if plain is not None:
            metrics['parameters_plain'] = count_parameters(plain)
            models['plain'] = plain.to(device)
        batch = min(args.validation_batch_size or args.batch_size, 32)
        speed = _speed(models, (batch, *data_config['input_size']), device)
        metrics |= {f'images_per_second_{name}': round(value, 1) for name, value in speed.items()}
    source = Source(model, facts, used_data_config(data_config), label_names_of(model, content), metrics)
    try:
        write_fused(source, folder, Options(overwrite=True))
    except (BadInput, ValueError, OSError) as error:
        raise Stopped(f'the fused model cannot be written: {first_line(error)}') from None
    return metrics


def _plain(name: str, args: argparse.Namespace) -> nn.Module | None:
    """The plain backbone, to count and to time; None where these options do not make one."""
    plain = argparse.Namespace(**vars(args))
    plain.model, plain.asr = name, None
    plain.model_kwargs = {key: value for key, value in args.model_kwargs.items()
                          if not key.startswith(('asr', 'rd_ratio'))}
    try:
        return build_model(plain, weights=False).eval()
    except BadInput:
        return None
