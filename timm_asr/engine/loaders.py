"""Data sets and loaders of a training run, on ``timm.data``."""

import argparse
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from timm.data import AugMixDataset, FastCollateMixup, Mixup, RandomResizedCropAndInterpolation, create_loader
from torch.utils.data import IterableDataset
from torchvision.transforms import RandomCrop, Resize

from ..checkpoints.read import first_line
from ..data import create_dataset
from ..errors import BadInput
from .interrupt import quiet_workers
from .memory import in_memory
from .seeding import Images, draw_parts

_logger = logging.getLogger(__name__)

#: Options that have timm's name for them.
_SAME = ('no_aug', 'scale', 'ratio', 'hflip', 'vflip', 'color_jitter', 'color_jitter_prob', 'grayscale_prob',
         'gaussian_blur_prob', 'worker_seeding')
#: How the names of timm's data sets in shards begin.
_SHARDS = ('hfds/', 'hfids/', 'tfds/', 'wds/')


@dataclass
class Loaders:
    """What an epoch reads, what mixes it (in the workers, or on the device without timm's prefetcher; None for nothing)
    and the average batch size of this process.
    """

    train: Any
    eval: Any
    mixer: Any
    batch_size: float


def classes_of(dataset: Any) -> dict[str, int] | None:
    """Class names and indices of a data set, or None if it does not say."""
    for holder in (getattr(dataset, 'reader', None), dataset):
        mapping = getattr(holder, 'class_to_idx', None)
        if isinstance(mapping, dict) and mapping:  # readers of shards have an empty one
            return mapping
    names = getattr(dataset, 'classes', None)
    return {str(name): index for index, name in enumerate(names)} if names else None


def label_names(dataset: Any, num_classes: int) -> list[str] | None:
    """The name of each class in the order of the outputs; None where the data set does not name them all."""
    classes = classes_of(getattr(dataset, 'dataset', dataset))  # in training it may be wrapped
    names = {index: str(name) for name, index in (classes or {}).items()}
    return [names[i] for i in range(num_classes)] if set(names) == set(range(num_classes)) else None


def check_data(args: argparse.Namespace, more: str = '') -> None:
    """``BadInput``: no data is named (``more`` says what else would do), or there is none at that place."""
    if not args.dataset and not args.data_dir:
        raise BadInput('no data: give the folder of the images (--data-dir DIR) or the name of a data set '
                       f'(--dataset NAME){more}')
    if args.dataset and not args.data_dir and args.dataset != 'digits' and not args.dataset.startswith(
            ('npz:', *_SHARDS)):
        raise BadInput(f'--dataset {args.dataset} needs a folder: --data-dir DIR')
    if not args.dataset and not os.path.exists(args.data_dir):
        raise BadInput(f'no data at {args.data_dir}')


def open_dataset(args: argparse.Namespace, training: bool, img_mode: str, labelled: bool = True) -> Any:
    """The training or validation set that checked options name; BadInput if there is none, or labels of one class."""
    split = args.train_split if training else args.val_split
    keywords = {'seed': args.seed, 'repeats': args.epoch_repeats} if training else {}
    try:
        dataset = create_dataset(
            args.dataset, root=args.data_dir, split=split, is_training=training, class_map=args.class_map,
            download=args.dataset_download, batch_size=args.batch_size, input_img_mode=img_mode,
            input_key=args.input_key, target_key=args.target_key, trust_remote_code=args.dataset_trust_remote_code,
            num_samples=args.train_num_samples if training else args.val_num_samples, **keywords)
    except (RuntimeError, ValueError, AssertionError, OSError, ImportError, KeyError, TypeError) as error:
        where = args.dataset or args.data_dir
        raise BadInput(f'cannot open the {split!r} split of {where}: {first_line(error)}') from None
    classes = classes_of(dataset)
    if labelled and classes is not None and len(classes) < 2:
        raise BadInput(f'{args.data_dir or args.dataset} ({split}) has only one class, '
                       f'{next(iter(classes), "none")!r}; there must be a sub-folder for each of at least two classes')
    root = getattr(getattr(dataset, 'reader', None), 'root', None)
    if args.class_map and classes is not None and isinstance(root, str):
        others = [path.name for path in sorted(Path(root).glob('*/')) if path.name not in classes]
        if others:
            _logger.warning(f'--class-map does not name {", ".join(others[:5])}: images of these classes are left out.')
    return dataset if isinstance(dataset, IterableDataset) else Images(dataset)


def one_split(args: argparse.Namespace, *datasets: Any) -> bool:
    """Whether these two are the same images: a folder without splits is there under every name."""
    places = [getattr(getattr(dataset, 'reader', None), 'root', None) or getattr(dataset, 'samples', None)
              for dataset in datasets]
    # These have one root, and splits of their own in it.
    inside = (args.dataset or '').startswith(_SHARDS)
    return not inside and places[0] is not None and places[0] == places[1]


def check_classes(args: argparse.Namespace, train: Any, evaluation: Any) -> None:
    """Set ``args.num_classes`` if it is unset; BadInput if the sets have different classes, or more than that."""
    known = classes_of(train)
    if known is None:
        if args.num_classes is None:
            _logger.warning('The data does not name its classes: the model keeps its own number of outputs '
                            '(--num-classes).')
        return
    count = max(known.values()) + 1
    if args.num_classes is None:
        args.num_classes = count
        _logger.info(f'The data has {count} classes, so the model gets {count} outputs (or --num-classes).')
    if count > args.num_classes:
        raise BadInput(f'the data has {count} classes and {args.model} only {args.num_classes} outputs; '
                       f'use --num-classes {count}')
    if count < args.num_classes:
        _logger.warning(f'The data has {count} classes, the model {args.num_classes} outputs (--num-classes).')
    other = (classes_of(evaluation) if evaluation is not None else None) or {}
    wrong = next((name for name in sorted(other) if other[name] != known.get(name)), None)
    if wrong is not None:
        raise BadInput(f'the validation data has the class {wrong!r}, which the training data has ' + (
            f'as {known[wrong]} instead of {other[wrong]}: give both --class-map' if wrong in known else 'not'))


def img_mode_of(args: argparse.Namespace, channels: int) -> str:
    """The PIL mode of images for a model; ``BadInput`` where none is named and its channels are not one or three."""
    if not args.input_img_mode and channels not in (1, 3):
        raise BadInput(f'the model takes {channels} channels; --input-img-mode names a mode of images that has so many')
    return args.input_img_mode or ('RGB' if channels == 3 else 'L')


def open_datasets(args: argparse.Namespace, channels: int) -> tuple[Any, Any]:
    """The training and the validation set (or None), checked against each other and the model."""
    img_mode = img_mode_of(args, channels)
    check_data(args, ', or take a recipe (--config digits)')
    train = open_dataset(args, True, img_mode)
    # Opened again where a part of it is held out, since that part is not augmented.
    evaluation = open_dataset(args, bool(args.holdout), img_mode) if args.val_split or args.holdout else None
    if not args.holdout and one_split(args, train, evaluation):
        raise BadInput(f'{args.data_dir} has no splits {args.train_split} and {args.val_split}: training and '
                       'validation would be on the same images; --holdout N keeps N of them for validation')
    check_classes(args, train, evaluation)
    if args.train_images is None and not args.holdout:
        return train, evaluation
    if isinstance(train, IterableDataset):
        raise BadInput('--train-images and --holdout need a data set whose images have numbers, not an iterable one')
    try:
        train.indices, held_out = draw_parts(len(train), args.train_images, args.holdout, args.split_seed)
    except ValueError as error:
        raise BadInput(f'--train-images and --holdout: {error}') from None
    if args.holdout:
        evaluation.indices = held_out
    return train, evaluation


def pad_and_crop(transform: Any, size: tuple[int, int]) -> None:
    """Put the crop of the CIFAR papers in the place of timm's, in a transform of ``create_transform``: zeros on each
    side, an eighth of the shorter one (4 pixels for 32).
    """
    steps = transform.transforms
    at = next(i for i, step in enumerate(steps) if isinstance(step, RandomResizedCropAndInterpolation))
    steps[at:at + 1] = [Resize(min(size)), RandomCrop(size, padding=min(size) // 8)]


def _mixer(args: argparse.Namespace) -> Any:
    """Mixup and cutmix, in the workers or without timm's prefetcher on the device; None where both are off."""
    if not (args.mixup > 0 or args.cutmix > 0 or args.cutmix_minmax is not None):
        return None
    if odd := [size for size in (args.batch_size, *(args.train_batch_sizes or ())) if size % 2]:
        raise BadInput(f'mixup and cutmix need batches of an even size, not of {odd[0]}')
    return (Mixup if args.no_prefetcher else FastCollateMixup)(
        mixup_alpha=args.mixup, cutmix_alpha=args.cutmix, cutmix_minmax=args.cutmix_minmax, prob=args.mixup_prob,
        switch_prob=args.mixup_switch_prob, mode=args.mixup_mode, label_smoothing=args.smoothing,
        num_classes=args.num_classes)


def _timms_loader(dataset: Any, **options: Any) -> Any:
    """timm's ``create_loader``, whose workers end quietly; ``BadInput`` where its options cannot work."""
    try:
        loader = create_loader(dataset, **options)
    except (ValueError, AssertionError, TypeError, NotImplementedError, KeyError) as error:
        said = f'there is no {error}' if isinstance(error, KeyError) else error or type(error).__name__
        raise BadInput(f'these data options do not go together: {said}') from None
    quiet_workers(loader)
    return loader


def make_loaders(args: argparse.Namespace, data_config: dict[str, Any], datasets: tuple[Any, Any], device: torch.device,
                 dtype: torch.dtype | None) -> Loaders:
    """Loaders for the training set, and the validation set or None, whose images have type ``dtype`` (None: float32)
    and go through ``data_config``; BadInput if options do not go together, or the training set does not fill one batch.
    """
    train, evaluation = datasets
    splits = args.aug_splits if args.aug_splits > 1 else 0
    mixer = _mixer(args)
    if splits and (mixer or args.no_prefetcher):
        raise BadInput('--aug-splits goes neither with mixup or cutmix nor with --no-prefetcher')
    iterable = isinstance(train, IterableDataset)
    pad = args.train_crop_mode == 'pad'
    if args.aug_repeats and (not args.distributed or iterable):
        raise BadInput('--aug-repeats works over several processes (torchrun) and not with iterable data sets')
    if pad and args.train_img_sizes:
        raise BadInput('--train-crop-mode pad and --train-img-sizes exclude each other')
    if args.train_batches_per_epoch and not args.train_img_sizes:
        raise BadInput('--train-batches-per-epoch goes with --train-img-sizes')
    if not iterable:
        train.seed_workers(args.seed, args.rank, numpy=args.worker_seeding == 'all')
    if splits:
        train = AugMixDataset(train, num_splits=splits)
    train_loader = _timms_loader(
        train, batch_size=args.batch_size, num_workers=args.workers, is_training=True, re_prob=args.reprob,
        re_mode=args.remode, re_count=args.recount, re_split=args.resplit,
        train_crop_mode=None if pad else args.train_crop_mode,
        auto_augment=args.aa, num_aug_repeats=args.aug_repeats, num_aug_splits=splits,
        interpolation=(not args.no_aug and args.train_interpolation) or data_config['interpolation'],
        collate_fn=mixer if isinstance(mixer, FastCollateMixup) else None,
        input_size_choices=args.train_img_sizes, batch_size_choices=args.train_batch_sizes,
        batch_choice_weights=args.train_size_probs, batch_choice_seed=args.seed,
        batch_choice_schedule=args.train_size_schedule,
        batch_schedule_epochs=args.epochs if args.train_size_schedule == 'progressive' else None,
        batch_schedule_spread=args.train_size_schedule_spread,
        batch_schedule_random_mix=args.train_size_random_mix, num_batches=args.train_batches_per_epoch,
        **{name: getattr(args, name) for name in _SAME},
        **_common(args, data_config, device, dtype, args.distributed))
    if pad and not args.no_aug:
        pad_and_crop(train_loader.dataset.transform, data_config['input_size'][1:])
    if not iterable and not len(train_loader):
        raise BadInput(f'{len(train)} training images do not fill one batch of {args.batch_size}; '
                       'use a smaller --batch-size')
    batch_size = float(args.batch_size)
    if args.train_img_sizes:
        batch_size = train_loader.batch_sampler.average_batch_size
    elif not (mixer or splits or args.distributed):
        train_loader = in_memory(train_loader, data_config['input_size'], True, args.seed) or train_loader
    eval_loader = None
    if evaluation is not None:
        eval_loader = make_eval_loader(args, data_config, evaluation, device, dtype, args.distributed)
        if not args.distributed:
            eval_loader = in_memory(eval_loader, data_config['input_size'], False, args.seed) or eval_loader
    return Loaders(train_loader, eval_loader, mixer, batch_size)


def make_eval_loader(args: argparse.Namespace, data_config: dict[str, Any], dataset: Any, device: torch.device,
                     dtype: torch.dtype | None, distributed: bool = False) -> Any:
    """timm's loader over a whole data set, or the part of this process: normalized images (B, C, H, W) and labels (B,),
    on the device.
    """
    # Fewer workers of an iterable set, less padding.
    few = distributed and ('tfds' in args.dataset or 'wds' in args.dataset)
    return _timms_loader(
        dataset, batch_size=getattr(args, 'validation_batch_size', None) or args.batch_size, is_training=False,
        interpolation=data_config['interpolation'], crop_pct=data_config['crop_pct'],
        crop_mode=data_config['crop_mode'], crop_border_pixels=getattr(args, 'crop_border_pixels', None),
        num_workers=min(2, args.workers) if few else args.workers,
        **_common(args, data_config, device, dtype, distributed))


def _common(args: argparse.Namespace, data_config: dict[str, Any], device: torch.device, dtype: torch.dtype | None,
            distributed: bool) -> dict[str, Any]:
    return {
        'input_size': data_config['input_size'], 'mean': data_config['mean'], 'std': data_config['std'],
        'pin_memory': args.pin_mem, 'img_dtype': dtype or torch.float32, 'device': device,
        'distributed': distributed, 'use_prefetcher': not args.no_prefetcher}
