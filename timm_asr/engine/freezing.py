"""What ``timm-asr freeze`` does: a trained network's gates replaced by constants, reported, and written."""

import importlib.util
import json
import tempfile
from argparse import Namespace
from pathlib import Path
from typing import Any

from ..checkpoints.names import GATES, GATES_PLOT, PROGRAM
from ..checkpoints.read import first_line
from ..checkpoints.source import Source
from ..errors import BadInput, Stopped
from ..export.graph import export_program
from ..export.place import refuse_taken, remove_export, write_whole
from ..export.save import save_fused
from ..figures.gates import plot_frozen
from ..freeze import FreezeReport, freeze_attention
from .device import find_device
from .exporting import apply_data_options, list_written, open_checkpoint, open_images, some_images, step
from .inputs import mix
from .interrupt import deferred_interrupts
from .progress import setup_logging


def freeze(args: Namespace) -> FreezeReport:
    """Everything between the options and what is written.

    Raises:
        BadInput: The checkpoint, the images or the target cannot be used, or the network has no gate to freeze.
        Stopped: What was written does not load back. Nothing is kept.
    """
    device = find_device(args.device)
    source = open_checkpoint(args, 'freeze')
    folder = Path(args.output) if args.output else None
    if folder is not None:
        refuse_taken(folder, args.force, (PROGRAM, GATES, GATES_PLOT))
    config = apply_data_options(args, source)
    loader = open_images(args, source, config, device)
    if loader is None:
        raise BadInput('no images to measure the gates on: give the folder of the images (--data-dir DIR) or the name '
                       'of a data set (--dataset NAME)')
    if args.samples is not None or args.recalibrate_bn:
        mix(loader, args.samples)
    held_out = None
    if args.eval_split and args.eval_split != args.split:
        held_out = open_images(args, source, config, device, args.eval_split)
    source.model.float().eval().to(device)
    try:
        with deferred_interrupts():
            report = freeze_attention(
                source.model, loader, threshold=args.threshold, recalibrate_bn=args.recalibrate_bn,
                samples=args.samples, progress=not args.no_progress, eval_loader=held_out, thresholds=args.thresholds)
    except (TypeError, ValueError) as error:
        raise BadInput(first_line(error)) from None
    print(f'\n{report}\n', flush=True)
    step('images', f'measured on {args.split}, compared on {args.eval_split or args.split}')
    if folder is not None:
        try:
            _write(folder, source, report, args, list(some_images(loader)))
        except (OSError, ValueError) as error:
            raise Stopped(first_line(error)) from None
        list_written(folder)
    return report


def _write(folder: Path, source: Source, report: FreezeReport, args: Namespace, images: list[Any]) -> None:
    compared = args.eval_split or args.split
    told = {'split': args.split, 'compared_split': compared, **report.as_dict()}
    files = {GATES: json.dumps(told, indent=2).encode() + b'\n'}
    if importlib.util.find_spec('matplotlib') is not None:
        with tempfile.TemporaryDirectory() as aside:
            path = Path(aside) / GATES_PLOT
            plot_frozen(report.gates, path, f'{source.facts.get("model")}: channel weights of each gate')
            files[GATES_PLOT] = path.read_bytes()
    if not report.architecture:  # no name stands for it: a program, which needs none
        export_program(source, folder / PROGRAM, images=images, overwrite=args.force, report=step)
        for name, content in files.items():
            write_whole(folder / name, content)
        remove_export(folder)  # what an earlier run left there
        return
    # Curves and figures of the training are those of the network with gates; and what is published as accuracy is that
    # on images held out.
    source.files, source.metrics = files, None
    if report.change is not None and report.change.top1 and not compared.lower().startswith('train'):
        before, after = report.change.top1
        source.metrics = {'images': report.change.labelled, 'top1': before, 'top1_folded': after}
    source.facts.pop('metrics', None)
    save_fused(source, folder, provenance={'frozen_gates': len(report.frozen)}, overwrite=args.force, report=step)
    (folder / PROGRAM).unlink(missing_ok=True)


def main(args: Namespace) -> int:
    """Freeze what the options name; returns the exit status."""
    setup_logging()
    freeze(args)
    return 0
