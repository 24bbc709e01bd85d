"""What ``timm-asr freeze`` does: a trained network's gates replaced by constants, reported, and written."""

import argparse
import importlib.util
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from timm.data.loader import PrefetchLoader
from torch.utils.data import IterableDataset

from ..checkpoints.names import CONFIG, GATES, GATES_PLOT, METRICS, PROGRAM, WEIGHTS
from ..checkpoints.open import open_source
from ..checkpoints.source import Source
from ..errors import BadInput, Stopped
from ..export.graph import write_program
from ..export.place import write_whole
from ..export.save import Options, write_fused
from ..figures.gates import plot_frozen
from ..freeze import FreezeReport, freeze_attention
from .build import first_line
from .device import find_device
from .exporting import apply_data_options, describe, list_files, open_images, some_images, step
from .interrupt import deferred_interrupts
from .progress import setup_logging


def freeze(args: argparse.Namespace) -> FreezeReport:
    """Everything between the options and what is written.

    Raises:
        BadInput: The checkpoint, the images or the target cannot be used, or the network has no gate to freeze.
        Stopped: What was written does not load back. Nothing is kept.
    """
    device = find_device(args.device)
    source = open_source(
        args.checkpoint, args.use_ema, args.model, num_classes=args.num_classes, in_chans=args.in_chans,
        img_size=args.img_size, model_kwargs=args.model_kwargs)
    step('freeze', describe(source))
    folder = Path(args.output) if args.output else None
    if folder is not None:
        _refuse_taken(folder, args.force)
    loader = open_images(args, source, apply_data_options(args, source), device)
    if loader is None:
        raise BadInput('no images to measure the gates on: give the folder of the images (--data-dir DIR) or the name '
                       'of a data set (--dataset NAME)')
    if args.samples is not None or args.recalibrate_bn:
        _mix(loader, args.samples)
    source.model.float().eval().to(device)
    try:
        with deferred_interrupts():
            report = freeze_attention(
                source.model, loader, threshold=args.threshold, recalibrate_bn=args.recalibrate_bn,
                samples=args.samples, progress=not args.no_progress)
    except (TypeError, ValueError) as error:
        raise BadInput(first_line(error)) from None
    print(f'\n{report}\n', flush=True)
    if folder is not None:
        _write(folder, source, report, args, list(some_images(loader)))
        step('written', str(folder))
        list_files(folder)
    return report


def _mix(loader: Any, samples: int | None) -> None:
    """Let a loader give so many random images, always the same, in place of the first: folders are sorted by class."""
    inner = loader.loader if isinstance(loader, PrefetchLoader) else loader
    if not isinstance(inner.dataset, IterableDataset):
        order = torch.randperm(len(inner.dataset), generator=torch.Generator().manual_seed(0))
        inner.batch_sampler.sampler = order[:samples].tolist()


def _refuse_taken(folder: Path, overwrite: bool) -> None:
    """Before any work: refuse a folder that holds something else."""
    if folder.exists() and not folder.is_dir():
        raise BadInput(f'{folder} is a file, and a folder is to be written there')
    taken = [name for name in (PROGRAM, GATES, GATES_PLOT, WEIGHTS) if (folder / name).exists()]
    if taken and not overwrite:
        raise BadInput(f'{folder} has another {taken[0]} already; choose another folder, or replace what is there '
                       '(--force)')


def _write(folder: Path, source: Source, report: FreezeReport, args: argparse.Namespace, images: list[Any]) -> None:
    files = {GATES: json.dumps(report.as_dict(), indent=2).encode() + b'\n'}
    if importlib.util.find_spec('matplotlib') is not None:
        with tempfile.TemporaryDirectory() as aside:
            path = Path(aside) / GATES_PLOT
            plot_frozen(report.gates, path, f'{source.facts.get("model")}: channel weights of each gate')
            files[GATES_PLOT] = path.read_bytes()
    try:
        if report.architecture:
            # Curves and figures of the training are those of the network with gates; and what is published as accuracy
            # is that on images held out.
            held_out = not args.split.lower().startswith('train')
            source.files, source.metrics = files, _metrics(report) if held_out else None
            source.facts.pop('metrics', None)
            write_fused(source, folder, Options(
                provenance={'frozen_gates': len(report.frozen)}, overwrite=args.force, report=step))
        else:  # no name stands for it: a program, which needs none
            write_program(source, folder / PROGRAM, images=images, overwrite=args.force, report=step)
            for name, content in files.items():
                write_whole(folder / name, content)
        # What an earlier run left there as its result, of the other kind.
        for name in (PROGRAM,) if report.architecture else (WEIGHTS, CONFIG, METRICS):
            (folder / name).unlink(missing_ok=True)
    except (OSError, ValueError) as error:
        raise Stopped(first_line(error)) from None


def _metrics(report: FreezeReport) -> dict[str, Any] | None:
    change = report.change
    if change is None or change.top1 is None:
        return None
    before, after = change.top1
    return {'images': change.labelled, 'top1': before, 'top1_folded': after}


def main(args: argparse.Namespace) -> int:
    """Freeze what the options name; returns the exit status."""
    setup_logging()
    freeze(args)
    return 0
