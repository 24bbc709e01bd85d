"""What ``timm-asr export`` does: folded weights as a folder, ONNX in float and int8, a program of torch.export."""

import argparse
import os
import sys
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from ..checkpoints.names import WEIGHTS
from ..checkpoints.open import open_source
from ..checkpoints.provenance import dataset_name, file_sha256
from ..checkpoints.read import first_line
from ..checkpoints.source import Source, data_config_of, used_data_config
from ..errors import BadInput, Stopped
from ..export.graph import check_packages, export_onnx, export_program
from ..export.int8 import onnx_top1, quantize_onnx
from ..export.place import refuse_taken
from ..export.save import save_fused
from .device import find_device
from .export import compare_forms
from .flags import DATA, IMAGE
from .inputs import mix, open_data
from .interrupt import deferred_interrupts, stoppable
from .loaders import label_names, make_eval_loader
from .progress import setup_logging


def step(name: str, text: str) -> None:
    """Print one step."""
    print(f'{name:<8} {text}', flush=True)


def check(args: argparse.Namespace) -> None:
    """Check the options against each other. ``BadInput``: one belongs to something that is not to be written."""
    graphs = args.onnx or args.torch_export
    if not args.output and not graphs:
        raise BadInput('nothing to write: give --output FOLDER, --onnx FILE or --torch-export FILE')
    for name, needs, there in (
            ('keep_trainable', '--output', args.output), ('any_size', '--onnx or --torch-export', graphs),
            ('fold_bn', '--onnx or --torch-export', graphs), ('int8', '--onnx', args.onnx)):
        if getattr(args, name) and not there:
            raise BadInput(f'--{name.replace("_", "-")} goes with {needs}')
    if args.samples < 1:
        raise BadInput('--samples takes one image or more')
    for path in (args.onnx, args.int8, args.torch_export):
        if path and Path(path).exists() and not args.force:
            raise BadInput(f'{path} is there already; choose another name, or replace it (--force)')
    if args.onnx:
        check_packages()


def open_checkpoint(args: argparse.Namespace, name: str) -> Source:
    """What the command ``name`` is to work on, which it says in one line."""
    source = open_source(
        args.checkpoint, args.use_ema, args.model, num_classes=args.num_classes, in_chans=args.in_chans,
        img_size=args.img_size, model_kwargs=args.model_kwargs)
    facts = source.facts
    parts = [facts.get('model') or type(source.model).__name__]
    if facts.get('asr'):
        parts[0] += f' --asr {facts["asr"]["asr"]}'
    if facts.get('epoch') is not None:
        parts.append(f'epoch {facts["epoch"]}')
    if facts.get('weights'):
        parts.append({'ema': 'averaged weights', 'raw': 'raw weights'}[facts['weights']])
    if source.has_ema and facts.get('weights') == 'raw':
        parts[-1] += ' (averaged ones are there too: --use-ema)'
    step(name, ', '.join(parts) + (f', from {facts["source"]["file"]}' if facts.get('source') else ''))
    return source


def _read_labels(path: str) -> list[str]:
    try:
        return Path(path).read_text(encoding='utf-8').splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f'--labels {path}: {getattr(error, "strerror", None) or "not a text file"}') from None


def apply_data_options(args: argparse.Namespace, source: Source) -> dict[str, Any]:
    """What the images go through: the options, else the checkpoint, else the model's cfg; also set in the source."""
    given = {key: getattr(args, key) for key in ('mean', 'std', 'crop_pct', 'interpolation') if getattr(args, key)}
    config = data_config_of(source.model, {**(source.data_config or {}), **given})
    if source.data_config or given:
        source.data_config = used_data_config(config)
    return config


def open_images(args: argparse.Namespace, source: Source, config: dict[str, Any], device: torch.device,
                split: str = '') -> Any:
    """Loader of the images to compare on; None where none were named and the run's own are not at hand.

    Raises:
        BadInput: There are no such images, or they have more classes than the model.
    """
    if not args.dataset and not args.data_dir:
        if source.args.get('dataset') != 'digits' or source.model.num_classes != 10:
            return None
        args.dataset = 'digits'  # which come with this package
    every = argparse.Namespace(**{
        **{option.key: option.start for option in (*DATA, *IMAGE)}, **vars(args), 'split': split or args.split,
        'workers': min(args.workers, os.cpu_count() or 1)})
    dataset = open_data(every, config, source.model.num_classes)
    if source.label_names is None:
        source.label_names = label_names(dataset, source.model.num_classes)
    return make_eval_loader(every, {**config, 'crop_mode': None}, dataset, device, None)


def compare_images(args: argparse.Namespace, source: Source, loader: Iterable, device: torch.device) -> None:
    """Run the model, the folded network and the inference form over the images, and keep the figures in the source."""
    model = source.model.float().eval().to(device)
    facts = {**source.facts, 'dataset': dataset_name(vars(args))}
    shown = tqdm(loader, 'compare', unit='batch', disable=args.no_progress or not sys.stderr.isatty())
    forms = compare_forms(model, shown, device, args.checkpoint)
    found = forms.to_folded
    source.metrics = {**forms.figures(facts), 'split': args.split}
    source.facts.setdefault('dataset', facts['dataset'])
    before, after = found.top1 or (0.0, 0.0)
    step('compare', f'top-1 on {found.images} images {before:.2f} % before and {after:.2f} % after; logits differ by '
                    f'{found.relative:.1g} of the largest')


def calibration_images(args: argparse.Namespace, source: Source, config: dict[str, Any], device: torch.device,
                       shown: Any) -> tuple[Iterable, str]:
    """The images that int8 is calibrated on, and which they are: of the training split, where there is one.

    ``shown`` is the loader of the images to compare on. ``BadInput``: there is none.
    """
    if shown is None:
        raise BadInput('no images to calibrate int8 on: give the folder of the images (--data-dir DIR) or the name of '
                       'a data set (--dataset NAME)')
    split = 'train'
    try:
        loader = open_images(args, source, config, device, split)
        roots = [getattr(getattr(one.dataset, 'reader', None), 'root', None) for one in (loader, shown)]
        if roots[0] is not None and roots[0] == roots[1]:  # a folder without splits is there under every name
            split = args.split
    except BadInput as error:
        step('int8', f'no training images: {error}')
        split, loader = args.split, open_images(args, source, config, device)
    mix(loader, args.samples)
    return loader, f'images of the split {split}' + ', on which accuracy is measured too' * (split == args.split)


def quantize(args: argparse.Namespace, source: Source, loader: Iterable, calibration: tuple[Iterable, str]) -> None:
    """Write the int8 file, and keep its accuracy and that of the float file in the source."""
    batches = list(some_images(calibration[0], args.samples))
    quantize_onnx(args.onnx, args.int8, batches)
    before, after = (
        onnx_top1(file, ((images.cpu().float(), target.cpu()) for images, target in stoppable(loader)))
        for file in (args.onnx, args.int8))
    used = sum(len(batch) for batch in batches)
    source.metrics = {**(source.metrics or {}), 'top1_onnx': before, 'top1_int8': after, 'int8_samples': used}
    step('int8', f'calibrated on {used} {calibration[1]}; top-1 on {source.metrics["images"]} images '
                 f'{before:.2f} % in float and {after:.2f} % in int8')


def some_images(loader: Iterable | None, most: int = 256) -> Iterator[torch.Tensor]:
    """The first real images, in batches on the CPU, until there are ``most`` or more."""
    count = 0
    for images, _ in loader or ():
        yield images.cpu().float()
        count += len(images)
        if count >= most:
            return


def list_written(path: Path) -> None:
    """Print what was written: a file, or a folder with all that it holds, with sizes and the hash of the weights."""
    step('written', str(path))
    for file in sorted(path.rglob('*')) if path.is_dir() else [path]:
        if file.is_file():
            name = str(file.relative_to(path)) if file != path else file.name
            hashed = f'  sha256 {file_sha256(file)}' if file == path or file.name == WEIGHTS else ''
            print(f'{"":<8} {file.stat().st_size:>13,}  {name}{hashed}', flush=True)


def export(args: argparse.Namespace) -> None:
    """Everything between the options and what is written.

    Raises:
        BadInput: The checkpoint, the images or the target cannot be used.
        Stopped: The folded network is not the same function, or what was written does not load back. Nothing is kept.
    """
    device = find_device(args.device)
    labels = _read_labels(args.labels) if args.labels else None
    source = open_checkpoint(args, 'export')
    if args.output:
        refuse_taken(Path(args.output), args.force, source.files)
    source.label_names = labels or source.label_names
    config = apply_data_options(args, source)
    loader = open_images(args, source, config, device)
    calibration = calibration_images(args, source, config, device, loader) if args.int8 else None
    try:
        if loader is not None:
            with deferred_interrupts():
                compare_images(args, source, loader, device)
        if args.onnx:
            list_written(export_onnx(
                source, args.onnx, fold_bn=args.fold_bn or bool(args.int8),
                any_size=args.any_size, images=some_images(loader), overwrite=args.force, report=step))
        if calibration is not None:
            with deferred_interrupts():
                quantize(args, source, loader, calibration)
            list_written(Path(args.int8))
        if args.output:
            list_written(save_fused(source, args.output, keep_trainable=args.keep_trainable, overwrite=args.force,
                                    report=step))
        if args.torch_export:
            list_written(export_program(
                source, args.torch_export, fold_bn=args.fold_bn, any_size=args.any_size, images=some_images(loader),
                overwrite=args.force, report=step))
    except ValueError as error:
        raise Stopped(first_line(error)) from None


def main(args: argparse.Namespace) -> int:
    """Export what the options name; returns the exit status."""
    setup_logging()
    check(args)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        export(args)
    return 0
