"""What ``stripes``, ``gradcam``, ``gradients`` and ``feature-integration`` do: open, measure, write, draw."""

from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from functools import wraps
from itertools import pairwise, zip_longest
from pathlib import Path
from typing import Any

import torch
from timm.utils import natural_key
from torch import nn
from torch.utils.data import DataLoader
from torchvision.transforms.functional import to_tensor

from ..analysis.feature_integration import collect_attention, feature_integration
from ..analysis.gradcam import average_cam, grad_cam
from ..analysis.gradients import stage_gradients
from ..analysis.stripes import measure_stripes, stripe_differences
from ..checkpoints.read import first_line, read_checkpoint
from ..checkpoints.weights import state_dict_of
from ..detection import create_detector
from ..errors import BadInput
from ..figures import gates as draw
from ..figures.looking import plot_feature_integration, plot_gradients, plot_looks
from .device import find_device
from .inputs import mix, open_data, open_model, settle_data
from .interrupt import Stoppable, deferred_interrupts
from .loaders import classes_of, make_eval_loader, open_dataset
from .progress import setup_logging
from .runs import caption_of, output_folder, unlike, write_tables


def _look(work: Callable[[Namespace, torch.device, Path, str], None]) -> Callable[..., None]:
    """A command of work on options, device, folder and caption (the command), after the checks that all share."""
    @wraps(work)
    def command(args: Namespace, words: Sequence[str], prog: str) -> None:
        setup_logging()
        device = find_device(args.device)
        settle_data(args)
        try:
            with deferred_interrupts():
                folder = output_folder(args)
                work(args, device, folder, caption_of(prog, words))
        except (AssertionError, ImportError, OSError, RuntimeError, TypeError, ValueError) as error:
            raise BadInput(first_line(error) or type(error).__name__) from None
        print(f'Results: {folder}')
    return command


def _with(args: Namespace, **changes: Any) -> Namespace:
    return Namespace(**{**vars(args), **changes})


def _opened(args: Namespace, device: torch.device, count: int | None, untrained: bool = False) -> Iterator[Any]:
    """Of each of ``--model`` and ``--checkpoint``, which go together in order: label, model, loader of so many random
    images, data configuration. If ``untrained``, a name without a tag is drawn at random, and its label says so.
    """
    names, files = ([value] if isinstance(value, str) and value else value or []
                    for value in (args.model, args.checkpoint))
    if names and files and len(names) != len(files):
        raise BadInput(f'{len(names)} names and {len(files)} checkpoints: give one checkpoint for each name, or the '
                       'names alone')
    labels: list[str] = getattr(args, 'labels', None) or []
    taken: list[str] = []
    models = list(zip_longest(names or [''], files, fillvalue=''))
    if labels and len(labels) != len(models):
        raise BadInput(f'{len(labels)} labels for {len(models)} models')
    for index, (name, file) in enumerate(models):
        random = untrained and not (file or args.pretrained or '.' in name)
        model, config = open_model(_with(args, model=name, checkpoint=file), random)
        known = name or (getattr(model, 'pretrained_cfg', None) or {}).get('architecture') or type(model).__name__
        known += ' (random weights)' * random
        loader = make_eval_loader(args, config, open_data(args, config, model.num_classes), device, None)
        mix(loader, count)
        taken.append(unlike(labels[index] if labels else known, taken))
        yield taken[-1], model.to(device), Stoppable(loader), config


def _detector(args: Namespace) -> tuple[str, nn.Module, Any]:
    """``--detector``: the detector over the backbone of ``--model``, and its images, from 0 to 1 in their own size."""
    content = read_checkpoint(args.checkpoint) if args.checkpoint else {}
    state = state_dict_of(content, args.use_ema, args.checkpoint, own=('backbone.',)) if content else {}
    said = content.get('args') or {}  # of `timm-asr detect`
    heads = {'roi_heads.box_predictor.cls_score.bias': 1, 'head.classification_head.cls_logits.bias': 9}  # anchors
    classes = next((len(state[key]) // each for key, each in heads.items() if key in state), args.num_classes or 91)
    pyramid = {'fpn_channels': len(state['backbone.fpn.layer_blocks.0.0.bias'])} if state else {}
    model = create_detector(args.detector, args.model, classes, pretrained=args.pretrained, asr=args.asr,
                            backbone_kwargs=args.model_kwargs, strides=said.get('strides'),
                            frozen_bn=bool(said.get('frozen_bn')), **pyramid, **(said.get('detector_kwargs') or {}))
    if state:
        model.load_state_dict(state)
    dataset = open_dataset(_with(args, val_split=args.split, val_num_samples=args.num_samples), False, 'RGB', False)
    loader = DataLoader(dataset, min(args.batch_size, 4), num_workers=args.workers,
                        collate_fn=_images_alone)
    mix(loader, args.samples)
    return f'{args.detector} on {args.model}', model, Stoppable(loader)


def _images_alone(batch: Sequence[Any]) -> tuple[list[torch.Tensor], None]:
    return [to_tensor(image) for image, _ in batch], None


def _check_gates(args: Namespace, label: str, model: nn.Module) -> None:
    """Of those that are to be drawn; which modules are gates is known after measuring."""
    if unknown := {*(args.gates or ())} - dict(model.named_modules()).keys():
        raise BadInput(f'--gates {min(unknown)}: there is no such module in {label}')


@_look
def stripes(args: Namespace, device: torch.device, folder: Path, caption: str) -> None:
    """stripes.csv, stripes.json, stripes.png, deviations.png; with checkpoints, differences."""
    if args.checkpoints:
        _differences(args, device, folder, caption)
        return
    label, model, loader, *_ = _detector(args) if args.detector else next(_opened(args, device, args.samples))
    _check_gates(args, label, model)
    report = measure_stripes(model.to(device), loader, samples=args.samples, keep=args.images,
                             progress=not args.no_progress)
    print(f'\n{report}\n')
    write_tables(folder, 'stripes', report.rows(), caption, model=label, **report.as_dict())
    draw.plot_stripes(report, folder / 'stripes.png', f'{label}: stripe score {report.score:.2f} over '
                      f'{report.images:,} images', caption, args.gates or args.panels)
    draw.plot_deviations(report, folder / 'deviations.png', f'{label}: deviations over {report.images:,} images',
                         caption)


def _differences(args: Namespace, device: torch.device, folder: Path, caption: str) -> None:
    files = sorted(Path(args.checkpoints).glob('checkpoint-*.pth.tar'), key=lambda path: natural_key(path.name))
    if len(files) < 2:
        raise BadInput(f'--checkpoints {args.checkpoints}: there are {len(files)} files checkpoint-N.pth.tar, and a '
                       'difference takes two; train with --checkpoint-hist 1000 to keep all')
    epochs = [int(path.name.split('-')[1].split('.')[0]) for path in files]
    steps = {after - before for before, after in pairwise(epochs)}
    if len(steps) > 1:
        raise BadInput(f'--checkpoints {args.checkpoints}: epochs are missing between {epochs[0]} and {epochs[-1]}, '
                       'and differences would be of unlike steps; train with --checkpoint-hist 1000 to keep all')
    label, model, loader, _ = next(_opened(_with(args, checkpoint=str(files[0]), batch_size=3), device, 3))
    _check_gates(args, label, model)
    images = next(iter(loader))[0][:3]
    found = stripe_differences((open_model(_with(args, checkpoint=str(file)))[0].to(device) for file in files), images)
    rows = [{'gate': name, 'epoch': epoch, 'image': image, 'mean difference': values[step, image].mean().item()}
            for name, values in found.items() for step, epoch in enumerate(epochs[1:])
            for image in range(len(images))]
    write_tables(folder, 'differences', rows, caption, epochs=epochs,
                 gates={name: values.tolist() for name, values in found.items()})
    draw.plot_differences(found, folder / 'differences.png', f'{label}: |v(t+1) - v(t)| of three images', caption,
                          args.gates or args.panels)


@_look
def gradcam(args: Namespace, device: torch.device, folder: Path, caption: str) -> None:
    """gradcam.png, gradcam.csv and gradcam.json for some images and the average over more."""
    looks, averages, rows = {}, {}, []
    args = _with(args, batch_size=max(args.batch_size, args.images))
    shown: Any = None
    for label, model, loader, config in _opened(args, device, max(args.images, args.samples)):
        images, labels = (batch[:args.images].to(device) for batch in next(iter(loader)))
        looks[label] = grad_cam(model, images, labels if args.target == 'label' else None, args.layer)
        if args.samples:
            averages[label] = average_cam(
                model, loader, samples=args.samples, layer=args.layer, labelled=args.target == 'label',
                progress=not args.no_progress)
        if shown is None:
            mean, std = (torch.tensor(config[key], device=device).view(-1, 1, 1) for key in ('mean', 'std'))
            shown = images * std + mean, averages[label].image * std + mean if args.samples else None
            classes = {index: name for name, index in (classes_of(loader.dataset) or {}).items()}
            names = [str(classes.get(index, index)) for index in labels.tolist()]
        rows += [{'image': index, 'true class': name, 'model': label, 'softmax score': score.item()}
                 for index, (name, score) in enumerate(zip(names, looks[label][1], strict=True))]
        if args.samples:
            rows.append({'image': f'mean of {averages[label].images}', 'true class': '', 'model': label,
                         'softmax score': averages[label].score})
    write_tables(folder, 'gradcam', rows, caption, scores=rows,
                 average={name: look.map.tolist() for name, look in averages.items()})
    plot_looks(shown[0], looks, folder / 'gradcam.png', '', caption, names, (shown[1], averages) if averages else None)


@_look
def gradients(args: Namespace, device: torch.device, folder: Path, caption: str) -> None:
    """gradients.png, gradients.csv and gradients.json."""
    found = {label: stage_gradients(model, loader, samples=args.samples, training=not args.eval_mode,
                                    progress=not args.no_progress)
             for label, model, loader, _ in _opened(args, device, args.samples, untrained=True)}
    rows = [({'model': label, **stage.as_dict()}, stage.counts.tolist())
            for label, stages in found.items() for stage in stages]
    write_tables(folder, 'gradients', [row for row, _ in rows], caption,
                 stages=[{**row, 'counts': counts} for row, counts in rows])
    plot_gradients(found, folder / 'gradients.png', '', caption)


@_look
def integration(args: Namespace, device: torch.device, folder: Path, caption: str) -> None:
    """integration.png, integration.csv and integration.json."""
    label, model, loader, _ = next(_opened(args, device, args.samples))
    maps = {}
    for stage, weights in collect_attention(model, loader, samples=args.samples, progress=not args.no_progress).items():
        if weights.shape[1] > 1:
            images, blocks, channels = weights.shape
            print(f'{stage}: {images} images, {blocks} blocks, {channels} channels', flush=True)
            maps[stage] = feature_integration(weights, args.trees, args.channels, args.seed, args.jobs)
    if not maps:
        raise BadInput(f'no stage of {label} has two blocks with attention of one width')
    rows = [{'stage': stage, 'target': t + 1, 'source': s + 1, 'importance': importance[t, s].item()}
            for stage, importance in maps.items() for t in range(len(importance)) for s in range(t)]
    write_tables(folder, 'integration', rows, caption, model=label,
                 importance={name: importance.nan_to_num().tolist() for name, importance in maps.items()})
    plot_feature_integration(maps, folder / 'integration.png', label, caption)
