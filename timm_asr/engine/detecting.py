"""Training of detectors: the run of :mod:`timm_asr.engine.training` with COCO data, losses and metrics."""

import argparse
import copy
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from timm.utils import unwrap_model
from torch import nn
from torch.utils.data import DataLoader, RandomSampler, Subset
from torch.utils.data.distributed import DistributedSampler
from torchvision.transforms import v2

from ..asr.fold import fold_asr
from ..checkpoints.read import read_checkpoint
from ..checkpoints.weights import load_weights, state_dict_of
from ..detection import CocoSet, collate, create_detector, evaluate_coco
from ..errors import BadInput, Stopped
from ..export.save import plain_keywords
from ..gates.precision import without_tf32
from ..models.auxiliary import auxiliary_loss
from ..models.counts import count_parameters
from ..models.registry import plain_architecture
from .build import Task, make_optimizer, resolve_learning_rate
from .checkpoint import write_atomically
from .device import processes
from .loaders import Loaders
from .loop import Training
from .progress import Progress, setup_logging
from .seeding import Images
from .summary import plot_run
from .training import Run, carry_out

_logger = logging.getLogger(__name__)


class DetectionTask(Task):
    """The sum of a detector's losses, and the auxiliary terms of its backbone."""

    def forward(self, input: Any, target: Any) -> dict[str, torch.Tensor]:
        images = [image.to(self.device) for image in input]
        targets = [{key: value.to(self.device) if isinstance(value, torch.Tensor) else value
                    for key, value in each.items()} for each in target]
        loss: Any = sum(value.float() for value in self.trainable_module(images, targets).values())
        return {'loss': loss + auxiliary_loss(unwrap_model(self.trainable_module)) if self.has_auxiliary else loss}


def build_detector(args: argparse.Namespace, weights: bool = True) -> nn.Module:
    """The detector that the options name, whose ``num_classes`` are without the background; BadInput where one of its
    parts is unknown, or they do not fit together.
    """
    try:
        return create_detector(
            args.detector, args.backbone, args.num_classes + 1, pretrained=args.pretrained and weights,
            checkpoint=args.backbone_checkpoint if weights else '', asr=args.asr, frozen_bn=args.frozen_bn,
            strides=args.strides, fpn_channels=args.fpn_channels, backbone_kwargs=args.backbone_kwargs,
            **args.detector_kwargs)
    except (ValueError, TypeError, RuntimeError) as error:
        raise BadInput(' '.join(str(error).split())) from None


def open_set(args: argparse.Namespace, split: str, hflip: float = 0.0) -> CocoSet:
    """One split of a folder in COCO's layout; BadInput where it is not there, or not in COCO's format."""
    folder = Path(args.data_dir)
    steps = [v2.ToImage(), v2.RandomHorizontalFlip(hflip), v2.ToDtype(torch.float32, scale=True)]
    try:
        return CocoSet(folder / split, folder / 'annotations' / f'instances_{split}.json',
                       masks=args.detector == 'maskrcnn', transforms=v2.Compose(steps))
    except (ValueError, ImportError) as error:
        raise BadInput(f'--data-dir {folder}: {error}') from None


def eval_loader(args: argparse.Namespace, val: CocoSet, share: int = 1) -> DataLoader:
    """Every ``share``-th image, from that of this process on: each image is seen once, by one process."""
    part = Subset(val, range(args.rank, len(val), share))
    return DataLoader(part, args.batch_size, collate_fn=collate, num_workers=args.workers)


class DetectionRun(Run):
    """A run from its first epoch to the folded detector."""

    def build(self) -> tuple[Training, dict[str, Any], tuple[Any, Any]]:
        args = self.args
        train = open_set(args, args.train_split, args.hflip)
        val = open_set(args, args.val_split) if args.val_split else None
        self.categories = {number: entry['name'] for number, entry in train.coco.cats.items()}
        args.model, args.num_classes = f'{args.detector}_{args.backbone}', max(self.categories, default=0)
        model = build_detector(args).to(self.device)
        seeded = Images(train)
        seeded.seed_workers(args.seed, args.rank)
        sampler = DistributedSampler(seeded, seed=args.seed) if args.distributed else RandomSampler(seeded)
        loaders = Loaders(
            # Norms inside gates take no single image.
            DataLoader(seeded, args.batch_size, sampler=sampler, collate_fn=collate, num_workers=args.workers,
                       persistent_workers=args.workers > 0,
                       drop_last=args.batch_size > 1 and len(sampler) % args.batch_size == 1),
            None if val is None else eval_loader(args, val, args.world_size), None, args.batch_size)
        args.eval_metric, args.sched_on_updates = 'AP', True
        args.warmup_epochs = args.warmup_steps * args.grad_accum_steps / max(1, len(loaders.train))
        resolve_learning_rate(args, args.batch_size)
        task = DetectionTask(model, nn.Identity(), self.device)  # a detector gives its losses itself
        training = Training(args, task, loaders, make_optimizer(model, args), None, self.device, self.autocast,
                            self.scaler)
        _logger.info(f'{args.detector} over {args.backbone}, {count_parameters(model):,} parameters, '
                     f'{len(train)} images, {len(self.categories)} classes, on {self.device}.')
        return training, {'input_size': (3, args.num_classes)}, (train, val)  # the folder's name ends in the latter

    def validate(self, progress: Progress) -> dict[str, float] | None:
        loader = self.training.loaders.eval
        if loader is None:
            return None
        # Not through DDP, whose broadcasts would meet another process that has fewer batches.
        figures = self.figures(unwrap_model(self.training.task.get_eval_model()), loader)
        progress.line('  '.join(f'{key} {value:.4f}' for key, value in figures.items() if 'AP' in key))
        return figures

    def figures(self, model: nn.Module, loader: DataLoader) -> dict[str, float]:
        """COCO's figures: boxes by their names ('AP', 'AP50', ...), masks with 'mask_' before them.

        In float32: torchvision keeps the classes apart by adding multiples of the image's width to the boxes.
        """
        found = evaluate_coco(model, loader, self.datasets[1].coco, progress=False)
        return {('mask_' if kind == 'segm' else '') + name: value
                for kind, own in found.items() for name, value in own.items()}

    def finish(self) -> int:
        """Fold the best detector, check that its figures stay, and write it."""
        best = self.saver.best
        if best is None:
            raise Stopped('no checkpoint was written: there is nothing to fold')
        plot_run(self.folder, None, {'eval_AP': 'AP', 'eval_AP50': 'AP50', 'eval_mask_AP': 'mask AP'},
                 'average precision')
        model = build_detector(self.args, weights=False)
        found = state_dict_of(read_checkpoint(best), path=best, own=model.state_dict())
        load_weights(model, best, found, self.args.model)
        model = model.to(self.device).eval()
        folded = fold_asr(copy.deepcopy(model))
        metrics: dict[str, Any] = {'parameters': count_parameters(model), 'parameters_folded': count_parameters(folded)}
        if self.datasets[1] is not None:
            loader = eval_loader(self.args, self.datasets[1])
            with without_tf32():
                before, after = self.figures(model, loader), self.figures(folded, loader)
            apart = max(abs(before[name] - after[name]) for name in before)
            if apart > 1e-3:
                raise Stopped(f'folding changed a figure by {apart:.1e}: no detector is written')
            metrics |= {'epoch': self.saver.best_epoch, 'trained': before, 'folded': after}
            print(f'AP {before["AP"]:.4f} as trained, {after["AP"]:.4f} folded; AP50 {after["AP50"]:.4f}')
        content = save({key: value.contiguous() for key, value in folded.state_dict().items()})
        write_atomically(self.folder / 'detector.safetensors', lambda file: file.write(content))
        # Mean and deviation may be those of a pretrained tag, which the plain name has not.
        statistics = {f'image_{key}': list(getattr(folded.transform, f'image_{key}')) for key in ('mean', 'std')}
        description = {  # of the folded detector
            **{name: getattr(self.args, name) for name in ('detector', 'frozen_bn', 'strides', 'fpn_channels')},
            'detector_kwargs': statistics | self.args.detector_kwargs,
            'backbone': plain_architecture(self.args.backbone),
            'backbone_kwargs': plain_keywords(self.args.backbone_kwargs, folded),
            'trained': {name: getattr(self.args, name) for name in ('backbone', 'asr', 'backbone_kwargs')},
            'num_classes': self.args.num_classes + 1, 'categories': self.categories}
        about, measured = (json.dumps(what, indent=2).encode() + b'\n' for what in (description, metrics))
        write_atomically(self.folder / 'detector.json', lambda file: file.write(about))
        write_atomically(self.folder / 'metrics.json', lambda file: file.write(measured))
        print(f'Results: {self.folder}')
        return 0


def detect(args: argparse.Namespace, argv: Sequence[str], prog: str, option_names: tuple[str, ...]) -> int:
    """Train as the options say; returns the exit status. ``option_names`` are those of detection, for ``args.yaml``."""
    setup_logging(processes()[0] == 0)
    job = DetectionRun(args, argv, prog)
    job.option_names = option_names
    return carry_out(job)
