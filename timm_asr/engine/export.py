"""From a checkpoint to the fused model: fold, compare with the unfused model on real images, and only then write."""

import argparse
import copy
import gc
import logging
from collections.abc import Callable, Iterable, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..asr.vector import has_asr
from ..checkpoints.load_model import load_weights, read_checkpoint, state_dict_of
from ..checkpoints.open import checkpoint_facts, label_names_of, used_data_config
from ..checkpoints.source import Source
from ..errors import BadInput, Stopped
from ..export.save import Options, write_fused
from ..inference.compare import Comparison, tolerance
from ..inference.reparameterize import reparameterize
from ..models.registry import plain_architecture
from .build import build_model, first_line
from .interrupt import stoppable
from .measure import count_parameters
from .versus import interleave

_logger = logging.getLogger(__name__)


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
    found = Comparison(tolerance(first))
    with torch.inference_mode(), exact_float32():
        for images, target in stoppable(loader):
            images = images.to(device, torch.float32)
            found.update(first(images), second(images), target)
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
    if not found.same:
        raise Stopped(
            f'the fused model is not written: its logits differ by {found.relative:.1e} of the largest (allowed '
            f'{found.allowed:.0e}) and {found.flipped} of {found.images} predictions change; the checkpoint is {what}')
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
    (top1, top1_fused), (top5, top5_fused) = found.top1 or (None, None), found.top5 or (None, None)
    return {
        'model': facts.get('model'), 'plain': plain_architecture(facts.get('model') or ''),
        **({'asr': facts['asr']['asr']} if facts.get('asr') else {}),
        **{key: facts.get(key) for key in ('dataset', 'epoch', 'weights')}, 'was_asr': has_asr(model),
        'images': found.images, 'top1': top1, 'top1_fused': top1_fused, 'top5': top5, 'top5_fused': top5_fused,
        'logit_difference': found.largest,
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
