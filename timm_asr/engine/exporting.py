"""``timm-asr export`` and ``freeze``: a checkpoint, compared on real images, as folder, ONNX or program."""

import argparse
import importlib.util
import json
import sys
import tempfile
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from ..checkpoints.names import GATES, GATES_PLOT, PROGRAM, WEIGHTS
from ..checkpoints.open import open_source
from ..checkpoints.provenance import dataset_name, file_sha256
from ..checkpoints.read import first_line, read_text
from ..checkpoints.source import Source, used_data_config
from ..errors import BadInput, Stopped
from ..export.graph import check_packages, export_onnx, export_program
from ..export.int8 import onnx_top1, quantize_onnx
from ..export.place import refuse_own, refuse_taken, remove_export, write_whole
from ..export.save import save_fused
from ..figures.gates import plot_frozen
from ..freeze import FreezeReport, freeze_attention
from .device import find_device
from .flags import DATA, IMAGE
from .forms import compare_forms
from .inputs import data_config_of, mix, open_data
from .interrupt import Stoppable, deferred_interrupts, stoppable
from .loaders import label_names, make_eval_loader, one_split
from .progress import setup_logging

_NAME_THEM = 'give the folder of the images (--data-dir DIR) or the name of a data set (--dataset NAME)'


class _Opened:
    """What both commands work on: a checkpoint, what its images go through, and the loader of those to compare on,
    None where none were named and the run's own are not at hand.
    """

    def __init__(self, args: argparse.Namespace, command: str, taken: Iterable[str] = ()) -> None:
        self.args, self.device = args, find_device(args.device)
        self.source = source = open_source(
            args.checkpoint, args.use_ema, args.model, num_classes=args.num_classes, in_chans=args.in_chans,
            img_size=args.img_size, model_kwargs=args.model_kwargs)
        step(command, _described(source))
        if args.output:
            folder = Path(args.output)
            refuse_own(args.checkpoint, folder)
            refuse_taken(folder, args.force, {*source.files, *taken})
        self.config = data_config_of(args, source.model, source.data_config)
        given = any((args.img_size, args.mean, args.std, args.crop_pct, args.interpolation))
        if not args.dataset and not args.data_dir and source.model.num_classes == 10:
            args.dataset = 'digits' if source.args.get('dataset') == 'digits' else ''  # which come with this package
        if source.data_config or given or args.dataset or args.data_dir:  # figures are stated of these images
            source.data_config = used_data_config(self.config)
        if given:  # the figures are of images that went through something else
            source.metrics = None
            source.facts.pop('metrics', None)
        self.loader = self.images(args.split) if args.dataset or args.data_dir else None

    def images(self, split: str) -> Any:
        """A loader of a split. ``BadInput``: it is not there, or has more classes than the model."""
        every = argparse.Namespace(**{
            **{option.key: option.start for option in (*DATA, *IMAGE)}, **vars(self.args), 'split': split})
        dataset = open_data(every, self.config, self.source.model.num_classes)
        if self.source.label_names is None:
            self.source.label_names = label_names(dataset, self.source.model.num_classes)
        return make_eval_loader(every, self.config, dataset, self.device, None)


def step(name: str, text: str) -> None:
    """Print one step."""
    print(f'{name:<8} {text}', flush=True)


def _described(source: Source) -> str:
    facts = source.facts
    raw = 'raw weights' + ' (averaged ones are there too: --use-ema)' * source.has_ema
    parts = [(facts.get('model') or type(source.model).__name__) + (
                 f' --asr {facts["asr"]["asr"]}' if facts.get('asr') else ''),
             f'epoch {facts["epoch"]}' if facts.get('epoch') is not None else '',
             {'ema': 'averaged weights', 'raw': raw}.get(facts.get('weights') or '', ''),
             f'from {facts["source"]["file"]}' if facts.get('source') else '']
    return ', '.join(filter(None, parts))


def _check(args: argparse.Namespace) -> None:
    """Check the options against each other. ``BadInput``: one belongs to something that is not to be written."""
    graphs = args.onnx or args.torch_export
    for name, needs, there in (
            ('keep_trainable', '--output', args.output), ('any_size', '--onnx or --torch-export', graphs),
            ('fold_bn', '--onnx or --torch-export', graphs), ('int8', '--onnx', args.onnx)):
        if getattr(args, name) and not there:
            raise BadInput(f'--{name.replace("_", "-")} goes with {needs}')
    if not args.output and not graphs:
        raise BadInput('nothing to write: give --output FOLDER, --onnx FILE or --torch-export FILE')
    if args.samples < 1:
        raise BadInput('--samples takes one image or more')
    files = [Path(path) for path in (args.onnx, args.int8, args.torch_export) if path]
    if len({path.resolve() for path in files}) < len(files):
        raise BadInput('--onnx, --int8 and --torch-export write a file each; give them different names')
    for path in files:
        if path.exists() and not args.force:
            raise BadInput(f'{path} is there already; choose another name, or replace it (--force)')
    if args.onnx:
        check_packages()


def _compare(opened: _Opened) -> None:
    """Run the model, the folded network and the inference form over the images, and keep the figures in the source."""
    args, source, device = opened.args, opened.source, opened.device
    model = source.model.float().eval().to(device)
    facts = {**source.facts, 'dataset': dataset_name(vars(args))}
    shown = tqdm(opened.loader, 'compare', unit='batch', disable=args.no_progress or not sys.stderr.isatty())
    figures, _ = compare_forms(model, facts, shown, device, args.checkpoint)
    source.metrics = {**figures, 'split': args.split}
    before, after = (figures[key] or 0.0 for key in ('top1', 'top1_folded'))
    step('compare', f'top-1 on {figures["images"]} images {before:.2f} % before and {after:.2f} % after; logits '
                    f'differ by {figures["logit_difference_relative"]:.1g} of the largest')


def _calibration(opened: _Opened) -> tuple[Iterable, str]:
    """The images that int8 is calibrated on, and which they are: of the training split, where there is one."""
    args = opened.args
    if opened.loader is None:
        raise BadInput(f'no images to calibrate int8 on: {_NAME_THEM}')
    try:
        loader = opened.images('train')
        same = args.split == 'train' or one_split(args, loader.dataset, opened.loader.dataset)
    except BadInput as error:
        step('int8', f'no training images: {error}')
        loader, same = opened.images(args.split), True
    mix(loader, args.samples)
    split = f'{args.split}, on which accuracy is measured too' if same else 'train'
    return loader, f'images of the split {split}'


def _quantize(opened: _Opened, calibration: tuple[Iterable, str]) -> None:
    """Write the int8 file, and keep its accuracy and that of the float file in the source."""
    args, source = opened.args, opened.source
    batches = list(_some_images(calibration[0], args.samples))
    quantize_onnx(args.onnx, args.int8, batches)
    before, after = (
        onnx_top1(file, ((images.cpu().float(), target.cpu()) for images, target in stoppable(opened.loader)))
        for file in (args.onnx, args.int8))
    used = sum(len(batch) for batch in batches)
    source.metrics = {**(source.metrics or {}), 'top1_onnx': before, 'top1_int8': after, 'int8_samples': used}
    step('int8', f'calibrated on {used} {calibration[1]}; top-1 on {source.metrics["images"]} images '
                 f'{before:.2f} % in float and {after:.2f} % in int8')


def _some_images(loader: Iterable | None, most: int = 256) -> Iterator[torch.Tensor]:
    """The first real images, in batches on the CPU, until there are ``most`` or more."""
    count = 0
    for images, _ in loader or ():
        yield images.cpu().float()
        count += len(images)
        if count >= most:
            return


def _list_written(path: Path) -> None:
    """Print what was written: a file, or a folder with all that it holds, with sizes and the hash of the weights."""
    step('written', str(path))
    for file in sorted(path.rglob('*')) if path.is_dir() else [path]:
        if file.is_file():
            name = str(file.relative_to(path)) if file != path else file.name
            hashed = f'  sha256 {file_sha256(file)}' if file == path or file.name == WEIGHTS else ''
            print(f'{"":<8} {file.stat().st_size:>13,}  {name}{hashed}', flush=True)


def export(args: argparse.Namespace, *_: Any) -> None:
    """``timm-asr export``. ``BadInput``: options, checkpoint, images or target cannot be used. ``Stopped``: the folded
    network is not the same function, or a file that was written does not load back, which is not kept then.
    """
    setup_logging()
    _check(args)
    labels = read_text(Path(args.labels)).splitlines() if args.labels else None
    opened = _Opened(args, 'export')
    source = opened.source
    source.label_names = labels or source.label_names
    calibration = _calibration(opened) if args.int8 else None
    graph = {'any_size': args.any_size, 'overwrite': args.force, 'report': step}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            if opened.loader is not None:
                with deferred_interrupts():
                    _compare(opened)
            if args.onnx:
                _list_written(export_onnx(source, args.onnx, fold_bn=args.fold_bn or bool(args.int8),
                                          images=_some_images(opened.loader), **graph))
            if calibration is not None:
                with deferred_interrupts():
                    _quantize(opened, calibration)
                _list_written(Path(args.int8))
            if args.output:
                _list_written(save_fused(source, args.output, keep_trainable=args.keep_trainable,
                                         overwrite=args.force, report=step))
            if args.torch_export:
                _list_written(export_program(source, args.torch_export, fold_bn=args.fold_bn,
                                             images=_some_images(opened.loader), **graph))
    except ValueError as error:
        raise Stopped(first_line(error)) from None


def freeze(args: argparse.Namespace, *_: Any) -> None:
    """``timm-asr freeze``: a trained network's gates become constants. ``BadInput``: checkpoint, images or target
    cannot be used, or there is no gate. ``Stopped``: what was written does not load back; nothing is kept.
    """
    setup_logging()
    opened = _Opened(args, 'freeze', (PROGRAM, GATES, GATES_PLOT))
    if opened.loader is None:
        raise BadInput(f'no images to measure the gates on: {_NAME_THEM}')
    if args.samples is not None or args.recalibrate_bn:
        mix(opened.loader, args.samples)
    held_out = Stoppable(opened.images(args.eval_split)) if args.eval_split not in ('', args.split) else None
    opened.source.model.float().eval().to(opened.device)
    try:
        with deferred_interrupts():
            report = freeze_attention(
                opened.source.model, Stoppable(opened.loader), threshold=args.threshold, samples=args.samples,
                recalibrate_bn=args.recalibrate_bn, progress=not args.no_progress, eval_loader=held_out,
                thresholds=args.thresholds)
    except (RuntimeError, TypeError, ValueError) as error:
        raise BadInput(first_line(error)) from None
    print(f'\n{report}\n', flush=True)
    step('images', f'measured on {args.split}, compared on {args.eval_split or args.split}')
    if args.output:
        try:
            _write_frozen(Path(args.output), opened, report)
        except (OSError, ValueError) as error:
            raise Stopped(first_line(error)) from None
        _list_written(Path(args.output))


def _write_frozen(folder: Path, opened: _Opened, report: FreezeReport) -> None:
    args, source = opened.args, opened.source
    compared = args.eval_split or args.split
    told = {'split': args.split, 'compared_split': compared, **report.as_dict()}
    files = {GATES: json.dumps(told, indent=2).encode() + b'\n'}
    if importlib.util.find_spec('matplotlib') is not None:
        with tempfile.TemporaryDirectory() as aside:
            path = Path(aside) / GATES_PLOT
            plot_frozen(report.gates, path, f'{source.facts.get("model")}: channel weights of each gate')
            files[GATES_PLOT] = path.read_bytes()
    if not report.architecture:  # no name stands for it: a program, which needs none
        export_program(source, folder / PROGRAM, images=list(_some_images(opened.loader)), overwrite=args.force,
                       report=step)
        for name, content in files.items():
            write_whole(folder / name, content)
        remove_export(folder)  # what an earlier run left there
        return
    # Curves and figures of the training are those of the network with gates; and what is published as accuracy is that
    # on images held out.
    source.files, source.metrics = files, None
    if report.change is not None and report.change.top1 and not compared.lower().startswith('train'):
        before, after = report.change.top1
        source.metrics = {'images': report.change.labelled, 'top1': before, 'top1_folded': after,
                          'dataset': dataset_name(vars(args)), 'split': compared}
    source.facts.pop('metrics', None)
    save_fused(source, folder, provenance={'frozen_gates': len(report.frozen)}, overwrite=args.force, report=step)
    (folder / PROGRAM).unlink(missing_ok=True)
