"""What ``stripes``, ``gradcam``, ``gradients`` and ``feature-integration`` do: open, measure, write, draw."""

from argparse import Namespace
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
from timm.data.loader import PrefetchLoader
from timm.utils import natural_key
from torch import nn
from torch.utils.data import DataLoader
from torchvision.transforms.functional import to_tensor

from ..analysis.feature_integration import collect_attention, feature_integration
from ..analysis.gradcam import average_cam, grad_cam
from ..analysis.gradients import stage_gradients
from ..analysis.stripes import measure_stripes, stripe_differences
from ..checkpoints.read import first_line, read_checkpoint
from ..detection import create_detector
from ..errors import BadInput
from ..figures import gates as draw
from ..figures.looking import plot_feature_integration, plot_gradients, plot_looks
from .device import find_device
from .inputs import mix, open_images, open_model, settle_data
from .interrupt import deferred_interrupts
from .loaders import classes_of, open_dataset
from .progress import setup_logging
from .runs import caption_of, output_folder, write_tables


def run(work: Any, args: Namespace, words: list[str], prog: str) -> int:
    """Call ``work`` with options, device, folder and caption (the command), after the checks all commands share."""
    setup_logging()
    device = find_device(args.device)
    settle_data(args)
    try:
        with deferred_interrupts():
            folder = output_folder(args)
            work(args, device, folder, caption_of(prog, words))
    except (AssertionError, ImportError, OSError, RuntimeError, TypeError, ValueError) as error:
        raise BadInput(first_line(error) or type(error).__name__) from None
    for path in sorted(folder.iterdir()):
        print(f'written {path}')
    return 0


def _with(args: Namespace, **changes: Any) -> Namespace:
    return Namespace(**{**vars(args), **changes})


def _name(args: Namespace, model: nn.Module) -> str:
    return args.model or str((getattr(model, 'pretrained_cfg', None) or {}).get('architecture') or type(model).__name__)


def models_of(args: Namespace, untrained: bool = False) -> Iterator[tuple[str, nn.Module, dict[str, Any]]]:
    """Label, model and data configuration of each of ``--model`` and ``--checkpoint``, which go together in order."""
    names, files = args.model or [], args.checkpoint or []
    if names and files and len(names) != len(files):
        raise BadInput(f'{len(names)} names and {len(files)} checkpoints: give one checkpoint for each name, or the '
                       'names alone')
    labels = args.labels or []
    for index, (name, file) in enumerate(zip_longest(names or [''], files, fillvalue='')):
        one = _with(args, model=name, checkpoint=file)
        model, config = open_model(one, untrained)
        yield labels[index] if index < len(labels) else _name(one, model), model, config


def _loader(args: Namespace, model: nn.Module, config: dict[str, Any], device: torch.device, count: int | None) -> Any:
    loader = open_images(args, model.to(device), config, device)
    mix(loader, count)
    return loader


def _detector(args: Namespace) -> tuple[str, nn.Module, Any]:
    """``--detector``: the detector over the backbone of ``--model``, and its images, from 0 to 1 in their own size."""
    state = read_checkpoint(args.checkpoint) if args.checkpoint else {}
    state = state.get('state_dict_ema' if args.use_ema else 'state_dict', state.get('model', state))
    heads = {'roi_heads.box_predictor.cls_score.bias': 1, 'head.classification_head.cls_logits.bias': 9}  # anchors
    classes = next((len(state[key]) // each for key, each in heads.items() if key in state), args.num_classes or 91)
    model = create_detector(args.detector, args.model, classes, pretrained=args.pretrained, asr=args.asr)
    if state:
        model.load_state_dict(state)
    dataset = open_dataset(_with(args, val_split=args.split, val_num_samples=args.num_samples), False, 'RGB')
    loader = DataLoader(dataset, min(args.batch_size, 4), num_workers=args.workers,
                        collate_fn=lambda batch: ([to_tensor(image) for image, _ in batch], None))
    mix(loader, args.samples)
    return f'{args.detector} on {args.model}', model, loader


def stripes(args: Namespace, device: torch.device, folder: Path, caption: str) -> None:
    """``timm-asr stripes``: stripes.csv, stripes.json, stripes.png, deviations.png; with checkpoints, differences."""
    if args.checkpoints:
        _differences(args, device, folder, caption)
        return
    if args.detector:
        label, model, loader = _detector(args)
        model = model.to(device)
    else:
        model, config = open_model(args)
        label, loader = _name(args, model), _loader(args, model, config, device, args.samples)
    report = measure_stripes(model, loader, samples=args.samples, keep=args.images, progress=not args.no_progress)
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
    models = (open_model(_with(args, checkpoint=str(file))) for file in files)
    first, config = open_model(_with(args, checkpoint=str(files[0])))
    images = next(iter(_loader(args, first, config, device, 3)))[0][:3]
    found = stripe_differences((model.to(device) for model, _ in models), images)
    rows = [{'gate': name, 'epoch': epoch, 'image': image, 'mean difference': values[step, image].mean().item()}
            for name, values in found.items() for step, epoch in enumerate(epochs[1:])
            for image in range(len(images))]
    write_tables(folder, 'differences', rows, caption, epochs=epochs,
                 gates={name: values.tolist() for name, values in found.items()})
    draw.plot_differences(found, folder / 'differences.png', f'{_name(args, first)}: |v(t+1) - v(t)| of three images',
                          caption, args.gates or args.panels)


def gradcam(args: Namespace, device: torch.device, folder: Path, caption: str) -> None:
    """``timm-asr gradcam``: gradcam.png, gradcam.csv and gradcam.json for some images and the average over more."""
    looks, averages, rows, shown, names, mean_image = {}, {}, [], None, [], None
    for label, model, config in models_of(args):
        loader = _loader(args, model, config, device, max(args.images, args.samples))
        images, labels = (batch[:args.images] for batch in next(iter(loader)))
        looks[label] = grad_cam(model, images, labels if args.target == 'label' else None, args.layer)
        if shown is None:
            dataset = (loader.loader if isinstance(loader, PrefetchLoader) else loader).dataset
            classes = {index: name for name, index in (classes_of(dataset) or {}).items()}
            names = [str(classes.get(int(index), int(index))) for index in labels]
            mean, std = (torch.tensor(config[key], device=images.device).view(-1, 1, 1) for key in ('mean', 'std'))
            shown = images * std + mean
            if args.samples:
                total, count = torch.zeros(()), 0
                for batch, _ in loader:
                    total, count = total + batch.double().sum(0), count + len(batch)
                mean_image = (total / count).float() * std + mean
        rows += [{'image': index, 'class': name, 'model': label, 'softmax score': score.item()}
                 for index, (name, score) in enumerate(zip(names, looks[label][1], strict=True))]
        if args.samples:
            averages[label] = average_cam(
                model, loader, samples=args.samples, layer=args.layer, progress=not args.no_progress)
            rows.append({'image': f'mean of {averages[label].images}', 'class': '', 'model': label,
                         'softmax score': averages[label].score})
    write_tables(folder, 'gradcam', rows, caption, scores=rows,
                 average={name: look.map.tolist() for name, look in averages.items()})
    plot_looks(shown, looks, folder / 'gradcam.png', '', caption, names, (mean_image, averages) if averages else None)


def gradients(args: Namespace, device: torch.device, folder: Path, caption: str) -> None:
    """``timm-asr gradients``: gradients.png, gradients.csv and gradients.json."""
    found = {label: stage_gradients(model, _loader(args, model, config, device, args.samples), samples=args.samples,
                                    training=not args.eval_mode, progress=not args.no_progress)
             for label, model, config in models_of(args, untrained=True)}
    rows = [({'model': label, **stage.as_dict()}, stage.counts.tolist())
            for label, stages in found.items() for stage in stages]
    write_tables(folder, 'gradients', [row for row, _ in rows], caption,
                 stages=[{**row, 'counts': counts} for row, counts in rows])
    plot_gradients(found, folder / 'gradients.png', '', caption)


def integration(args: Namespace, device: torch.device, folder: Path, caption: str) -> None:
    """``timm-asr feature-integration``: integration.png, integration.csv and integration.json."""
    model, config = open_model(args)
    label, loader = _name(args, model), _loader(args, model, config, device, args.samples)
    maps = {}
    for stage, weights in collect_attention(
            model, loader, samples=args.samples, progress=not args.no_progress).items():
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
