"""Train a detector on data in COCO's format: Faster R-CNN, Mask R-CNN or RetinaNet over any timm backbone.

The defaults are the usual 1x schedule: 12 epochs, SGD with learning rate 0.02 for 16 images, a tenth of it from epoch 8
on and a hundredth from epoch 11 on, after a linear warm-up.
"""

import argparse
from collections.abc import Sequence

from ...errors import BadInput
from ..flags import pick
from ..options import Option, group, pairs, parse, switch, value
from . import train

#: Options of `train` that mean the same here, with the defaults of detection.
_FROM_TRAIN = {
    **dict.fromkeys((
        'amp', 'amp_dtype', 'device', 'local_rank', 'opt', 'momentum', 'clip_grad', 'clip_mode', 'decay_all', 'psi_lr',
        'site_lr', 'opt_kwargs', 'lr', 'decay_rate', 'grad_accum_steps', 'seed', 'log_interval', 'recovery_interval',
        'workers', 'output', 'experiment', 'no_progress', 'resume', 'no_resume_opt',
        'overwrite')),
    'weight_decay': 1e-4, 'sched': 'multistep', 'lr_base': 0.02, 'lr_base_size': 16, 'warmup_lr': 0.0, 'epochs': 12,
    'decay_milestones': [8, 11], 'checkpoint_hist': 1,
}
OPTIONS: list[Option] = [
    *group(
        'Detector',
        value('--detector', str, 'fasterrcnn', 'architecture', choices=('fasterrcnn', 'maskrcnn', 'retinanet')),
        value('--backbone', str, 'resnet50', 'name of a timm model that gives features'),
        *pick('asr pretrained'),
        value('--backbone-checkpoint', str, '', 'checkpoint of train, or a state dict, of the backbone'),
        switch('--frozen-bn', "keep the backbone's BatchNorms as they are, as is usual with trained weights"),
        value('--strides', int, None, 'strides of the features; all from 4 (RetinaNet: 8) if unset', nargs='+'),
        value('--fpn-channels', int, 256, 'channels of the feature pyramid'),
        pairs('--backbone-kwargs', 'more keywords of create_model'),
        pairs('--detector-kwargs', "more keywords of torchvision's class, such as min_size=800"),
    ),
    *group(
        'Data set',
        value('--data-dir', str, '', "folder with COCO's layout: train2017/, val2017/, annotations/", metavar='DIR'),
        value('--train-split', str, 'train2017', 'folder and annotations to train on'),
        value('--val-split', str, 'val2017', 'folder and annotations to evaluate on; empty for none'),
        value('--batch-size', int, 2, 'images per batch and process', '-b'),
        value('--hflip', float, 0.5, 'probability of a horizontal flip'),
    ),
    *group('Learning rate', value('--warmup-steps', int, 500, 'updates of linear warm-up')),
    *(option if _FROM_TRAIN[option.key] is None else option.but(default=_FROM_TRAIN[option.key])
      for option in train.OPTIONS if option.key in _FROM_TRAIN),
]


def main(argv: Sequence[str], prog: str = 'timm-asr detect') -> int:
    """Run the command; returns the exit status."""
    own = parse(OPTIONS, {}, argv, prog, __doc__)
    if not own.data_dir:
        raise BadInput("--data-dir is missing: a folder with train2017/, val2017/ and annotations/, as COCO has")
    train.check_ranges(own)
    if own.amp and own.amp_dtype == 'bfloat16':
        raise BadInput('--amp-dtype bfloat16: it rounds the corners of boxes by pixels; take float16')
    defaults = {option.key: option.start for option in train.OPTIONS}  # the engine reads them too
    from .. import detecting
    return detecting.detect(argparse.Namespace(**defaults | vars(own)), argv, prog, tuple(vars(own)))
