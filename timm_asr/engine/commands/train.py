"""Train a model; without arguments, the recipe digits.

The options have timm's names, meanings and defaults (the device aside); some are our own.
"""

import argparse
import importlib
import sys
from collections.abc import Sequence
from functools import partial

from ...errors import BadInput
from ..flags import COMPILE, pick
from ..options import Option, group, pairs, parse, switch, value

SCHEDULES = ('cosine', 'tanh', 'step', 'multistep', 'plateau', 'poly', 'wsd', 'rsqrt', 'constant', 'none')

OPTIONS: list[Option] = [
    *group(
        'Data set',
        *pick('data data-dir dataset'),
        value('--train-split', str, 'train', 'name of the split to train on'),
        value('--val-split', str, 'validation', 'name of the split to validate on; empty for none'),
        value('--train-images', float, None, 'number (or share, below 1) of images to train on; all if unset'),
        value('--holdout', int, 0, 'validate on N images held out of the training split'),
        value('--split-seed', int, 0, 'draws the images of --train-images and --holdout'),
        value('--train-num-samples', int, None, 'training images, where an iterable set does not say'),
        value('--val-num-samples', int, None, 'validation images, where an iterable set does not say'),
        *pick('dataset-download class-map input-img-mode input-key target-key dataset-trust-remote-code'),
    ),
    *group(
        'Model',
        *pick('model', default='resnet50', help='name of the model', aliases=()),
        *pick('asr', help='ASR on a model of any name: a gate (se, ie, srm, eca, spa, ...), or free, scale or scalar '
              'for vectors without one; further keywords go into --model-kwargs (asr_depth=2)'),
        value('--asr-init', str, None, 'where ASR starts: psi before a gate, else v; N_0.1 draws psi from N(0, 0.1^2)'),
        value('--asr-gain', float, None, 'factor of the channel weights of ASR; with 2 most of them start near one'),
        switch('--asr-constant', 'train neither the vectors of ASR nor their gates: its channel weights stay the same'),
        value('--last-norm-init', float, None, 'initial weight of the last norm of each residual branch'),
        switch('--pretrained', 'start from the pretrained weights of the model'),
        value('--pretrained-path', str, None, 'file to load in place of the pretrained weights, head adapted'),
        value('--initial-checkpoint', str, '', 'file to load into the model after it is made', metavar='FILE'),
        value('--resume', str, '', 'checkpoint to go on from, or auto for the newest whole one of this run; '
              'without --experiment the run goes on in the folder of the checkpoint', metavar='FILE'),
        switch('--no-resume-opt', 'resume the model but not the optimizer'),
        *pick('num-classes', help='number of classes; that of the data if unset'),
        *pick('gp img-size in-chans input-size crop-pct mean std'),
        *pick('interpolation', help='how validation resizes; that of the model if empty'),
        value('--batch-size', int, 128, 'images per process and step', '-b'),
        value('--validation-batch-size', int, None, 'the same for validation; as for training if unset', '-vb'),
        *pick('channels-last'),
        value('--grad-accum-steps', int, 1, 'batches whose gradients are added up before each update'),
        switch('--grad-checkpointing', 'recompute activations in the backward pass to save memory'),
        *pick('fast-norm'), *pick('model-kwargs'), *pick('bn-noise'),
        value('--head-init-scale', float, None, 'multiply the initial classifier by this'),
        value('--head-init-bias', float, None, 'fill the initial bias of the classifier with this'),
        *COMPILE,
    ),
    *group(
        'Device',
        *pick('device amp amp-dtype model-dtype'),
        switch('--no-ddp-bb', "do not broadcast buffers in PyTorch's DDP"),
        switch('--synchronize-step', 'wait for the device at the end of each step'),
        value('--local_rank', int, 0, 'index of this process on its machine, from a launcher', '--local-rank'),
        value('--device-modules', str, None, 'Python modules to import first', nargs='+', metavar='MODULE'),
    ),
    *group(
        'Optimizer',
        value('--opt', str, 'sgd', "name of the optimizer, as timm.optim.list_optimizers() has it"),
        value('--opt-eps', float, None, "epsilon; the optimizer's own if unset"),
        value('--opt-betas', float, None, "betas; the optimizer's own if unset", nargs='+'),
        value('--momentum', float, 0.9, 'momentum'),
        value('--weight-decay', float, 2e-5, 'weight decay (not of norms, biases and ASR vectors)'),
        value('--clip-grad', float, None, 'clip gradients to this; no clipping if unset'),
        value('--clip-mode', str, 'norm', 'how to clip: norm, value or agc', choices=('norm', 'value', 'agc')),
        value('--layer-decay', float, None, 'factor of the learning rate from each layer to the one before it'),
        value('--layer-decay-min-scale', float, 0.0, 'smallest such factor'),
        value('--layer-decay-no-opt-scale', float, None, 'layers below this factor are not trained'),
        switch('--decay-all', 'decay norms, biases and ASR vectors too, as the code of the papers does'),
        value('--psi-lr', float, None, 'factor of the learning rate of psi, the input of ASR'),
        value('--site-lr', float, None, 'factor of the learning rate of layers that ASR scales, or would scale'),
        pairs('--opt-kwargs', 'more keywords of the optimizer'),
    ),
    *group(
        'Learning rate',
        value('--sched', str, 'cosine', f'schedule: {", ".join(SCHEDULES)}', choices=SCHEDULES),
        switch('--sched-on-updates', 'change the learning rate at every update, not every epoch'),
        value('--lr', float, None, 'learning rate; from --lr-base if unset'),
        value('--lr-base', float, 0.1, 'learning rate of one base batch: lr = lr_base * global batch / base size'),
        value('--lr-base-size', int, 256, 'images of the base batch'),
        value('--lr-base-scale', str, '', 'linear or sqrt; by the optimizer if empty', choices=('', 'linear', 'sqrt')),
        value('--lr-noise', float, None, 'parts of the schedule from (and to) which the rate has noise', nargs='+'),
        value('--lr-noise-pct', float, 0.67, 'limit of the noise'),
        value('--lr-noise-std', float, 1.0, 'standard deviation of the noise'),
        value('--lr-cycle-mul', float, 1.0, 'factor of the length of each cycle'),
        value('--lr-cycle-decay', float, 0.5, 'factor of the height of each cycle'),
        value('--lr-cycle-limit', int, 1, 'number of cycles'),
        value('--lr-k-decay', float, 1.0, 'k-decay of the cosine and poly schedules'),
        value('--warmup-lr', float, 1e-5, 'learning rate at the start of warm-up'),
        value('--min-lr', float, 0.0, 'lowest learning rate'),
        value('--epochs', int, 300, 'epochs to train'),
        value('--epoch-repeats', float, 0.0, 'times an iterable set is repeated in each epoch'),
        value('--start-epoch', int, None, 'epoch to start from, whatever a checkpoint says'),
        value('--decay-milestones', int, [90, 180, 270], 'epochs at which multistep decays', nargs='+'),
        value('--decay-epochs', float, 90.0, 'epochs between the decays of step'),
        value('--warmup-epochs', int, 5, 'epochs of warm-up'),
        switch('--warmup-prefix', 'warm up before the schedule, not in its first epochs'),
        value('--cooldown-epochs', int, 0, 'epochs at the lowest rate after the schedule'),
        value('--patience-epochs', int, 10, 'epochs without progress before plateau decays'),
        value('--decay-rate', float, 0.1, 'factor of each decay', '--dr'),
    ),
    *group(
        'Augmentation and regularization',
        switch('--no-aug', 'train without any augmentation'),
        value('--train-crop-mode', str, None, "how training crops: timm's rrc, rkrc or rkrr; or pad: zeros on each "
              'side, an eighth of it, and a random crop (CIFAR)', choices=('rrc', 'rkrc', 'rkrr', 'pad')),
        value('--scale', float, [0.08, 1.0], 'range of the area of random crops', nargs=2),
        value('--ratio', float, [3 / 4, 4 / 3], 'range of the aspect ratio of random crops', nargs=2),
        value('--hflip', float, 0.5, 'probability of a horizontal flip'),
        value('--vflip', float, 0.0, 'probability of a vertical flip'),
        value('--color-jitter', float, 0.4, 'strength of colour jitter'),
        value('--color-jitter-prob', float, None, 'probability of colour jitter'),
        value('--grayscale-prob', float, None, 'probability of conversion to grey'),
        value('--gaussian-blur-prob', float, None, 'probability of blur'),
        value('--aa', str, None, 'AutoAugment policy: original, v0, rand-m9-mstd0.5, augmix-m5-w4-d2, ...'),
        value('--aug-repeats', float, 0.0, 'augmented copies of each image in a batch, over several processes'),
        value('--aug-splits', int, 0, 'differently augmented parts of each batch, 0 or at least 2'),
        switch('--jsd-loss', 'Jensen-Shannon divergence over the parts of --aug-splits', '--jsd'),
        switch('--bce-loss', 'binary cross entropy instead of cross entropy'),
        switch('--bce-sum', 'sum it over classes'),
        value('--bce-target-thresh', float, None, 'make its targets 0 or 1 at this threshold'),
        value('--bce-pos-weight', float, None, 'weight of its positive targets'),
        value('--reprob', float, 0.0, 'probability of random erasing'),
        value('--remode', str, 'pixel', 'what to erase with: const, rand or pixel', choices=('const', 'rand', 'pixel')),
        value('--recount', int, 1, 'largest number of erased parts'),
        switch('--resplit', 'do not erase in the first, clean part of --aug-splits'),
        value('--mixup', float, 0.0, 'alpha of mixup, which is on if positive'),
        value('--cutmix', float, 0.0, 'alpha of cutmix, which is on if positive'),
        value('--cutmix-minmax', float, None, 'cutmix, replacing parts of at least and at most this', nargs=2),
        value('--mixup-prob', float, 1.0, 'probability of mixing at all'),
        value('--mixup-switch-prob', float, 0.5, 'probability of cutmix where both are on'),
        value('--mixup-mode', str, 'batch', 'mix per batch, pair or elem', choices=('batch', 'pair', 'elem', 'half')),
        value('--mixup-off-epoch', int, 0, 'no mixing from this epoch on; 0 for never'),
        value('--smoothing', float, 0.1, 'label smoothing'),
        value('--train-interpolation', str, 'random', 'how training resizes: random, bilinear or bicubic'),
        value('--drop', float, 0.0, 'dropout rate'),
        value('--drop-connect', float, None, 'old name of --drop-path'),
        value('--drop-path', float, None, 'rate of stochastic depth'),
        value('--drop-block', float, None, 'rate of DropBlock'),
    ),
    *group(
        'Batch norm',
        value('--bn-momentum', float, None, 'momentum of BatchNorm, for the models that take it'),
        value('--bn-eps', float, None, 'epsilon of BatchNorm, for the models that take it'),
        switch('--sync-bn', 'share BatchNorm statistics between processes'),
        value('--dist-bn', str, 'reduce', 'how processes share statistics', choices=('reduce', 'broadcast', '')),
        switch('--split-bn', 'separate BatchNorms for the parts of --aug-splits'),
    ),
    *group(
        'Averaged weights',
        switch('--model-ema', 'keep a moving average of the weights, and validate that'),
        switch('--model-ema-force-cpu', 'keep it on the CPU; then it is not validated'),
        value('--model-ema-decay', float, 0.9998, 'decay of the average'),
        switch('--model-ema-warmup', 'let the decay grow to that'),
    ),
    *group(
        'Running',
        *pick('seed'),
        value('--worker-seeding', str, 'all', 'seed NumPy in loading processes too, or not', choices=('all', 'part')),
        value('--log-interval', int, 50, 'updates between log lines'),
        value('--val-interval', int, 1, 'epochs between validations'),
        value('--recovery-interval', int, 0, 'updates between checkpoints inside an epoch; 0 for none'),
        value('--checkpoint-hist', int, 10, 'best checkpoints to keep beside the last and model_best'),
        *pick('workers pin-mem no-prefetcher'),
        switch('--save-images', 'save a batch of training images at every log line'),
        value('--output', str, '', 'folder of the run folders; ./output/train if empty', metavar='DIR'),
        value('--experiment', str, '', 'name of the run folder; time, model and size if empty'),
        switch('--overwrite', 'replace the run that is in the folder of --experiment'),
        value('--eval-metric', str, 'top1', 'what makes a checkpoint the best', choices=('top1', 'top5', 'loss')),
        switch('--log-wandb', 'log to Weights & Biases'),
        value('--wandb-project', str, None, 'its project'),
        value('--wandb-tags', str, [], 'its tags', nargs='+', metavar='TAG'),
        value('--wandb-resume-id', str, '', 'id of the run to resume there', metavar='ID'),
    ),
    *group(
        'Scheduled resolution',
        value('--train-img-sizes', int, None, 'image sizes to choose from, batch by batch', nargs='+'),
        value('--train-batch-sizes', int, None, 'batch size of each; --batch-size if unset', nargs='+'),
        value('--train-size-probs', float, None, 'weight of each; equal if unset', nargs='+'),
        value('--train-size-schedule', str, 'constant', 'how sizes are chosen', choices=('constant', 'progressive')),
        value('--train-size-schedule-spread', float, 0.65, 'width of the progressive choice, in sizes'),
        value('--train-size-random-mix', float, 0.1, 'part of the progressive choices that is uniform'),
        value('--train-batches-per-epoch', int, None, 'batches of an epoch', '--train-steps-per-epoch'),
        value('--variable-batch-loss-scale', str, 'none', 'gradients by size', choices=('none', 'sqrt', 'linear')),
    ),
    *group(
        'Folding and output',
        switch('--no-fuse', 'do not write the folded network at the end'),
        switch('--no-progress', 'plain log lines instead of a progress bar'),
    ),
]

_TIMMS = "is not part of this engine; use timm's own train.py with --device-modules timm_asr"
_DISTILL = f'knowledge distillation {_TIMMS}'

#: Flags of timm's train.py (patterns of their names) that are left out on purpose, each with the sentence that says so.
REFUSED = {
    '--fuser': "PyTorch's JIT fusers are superseded; use --torchcompile",
    '--tta': "timm's loaders make no oversampled copies, so the factor would average different images",
    '--use-multi-epochs-loader': 'loading workers live on between epochs without it',
    '--naflex-*': f'NaFlex loading {_TIMMS}',
    '--kd-model-name': _DISTILL, '--kd-*': _DISTILL, '--distill-loss-weight': _DISTILL, '--task-loss-weight': _DISTILL,
}

#: Options, and the numbers that they take.
_RANGES = (
    ('batch_size validation_batch_size epochs val_interval log_interval grad_accum_steps', lambda n: n >= 1,
     'at least 1'),
    ('start_epoch workers', lambda n: n >= 0, 'at least 0'),
    ('seed', lambda n: 0 <= n < 2 ** 32, 'between 0 and 4294967295'),
    ('decay_epochs lr_cycle_mul lr_base_size clip_grad', lambda x: x > 0, 'above 0'),
    ('crop_pct', lambda x: 0 < x <= 1, 'above 0 and at most 1'), ('hflip', lambda x: 0 <= x <= 1, 'between 0 and 1'),
    ('smoothing drop drop_connect drop_path drop_block', lambda x: 0 <= x < 1, 'at least 0 and below 1'))
_DATA_OR_MODEL = ('--config', '--data-dir', '--dataset', '--model')


def main(argv: Sequence[str], prog: str = 'timm-asr train') -> int:
    """Run the command; returns the exit status."""
    args = parse_args(argv, prog)
    from .. import training
    return training.main(args, argv, prog)


def check_ranges(args: argparse.Namespace) -> None:
    """``BadInput`` for a number that an option does not take."""
    for names, fits, what in _RANGES:
        for name in names.split():
            value = getattr(args, name, None)
            if value is not None and not fits(value):
                raise BadInput(f'--{name.replace("_", "-")} must be {what}, not {value:g}')


def parse_args(argv: Sequence[str], prog: str = 'timm-asr train') -> argparse.Namespace:
    """The options; a line that names neither a recipe, nor data, nor a model stands for the recipe ``digits``."""
    parsing = partial(parse, OPTIONS, REFUSED, prog=prog, description=__doc__, print_config=False)
    args = parsing(argv=argv)
    if not args.data and not any(word.split('=')[0] in _DATA_OR_MODEL or word.startswith('-c') for word in argv):
        print('No data, model or recipe named: this is the recipe digits.', file=sys.stderr)
        args = parsing(argv=['--config', 'digits', *argv])
    args.data_dir = args.data_dir or args.data
    del args.data
    own = args.model_kwargs.pop('asr', None)
    args.asr = args.asr or own
    for key in ('asr_init', 'asr_gain', 'asr_constant'):
        if getattr(args, key) is not None and getattr(args, key) is not False:
            args.model_kwargs = {**args.model_kwargs, key: getattr(args, key)}
        elif f'--no-{key.replace("_", "-")}' in argv:  # what a file has switched on
            args.model_kwargs.pop(key, None)
    for module in args.device_modules or ():
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise BadInput(f'--device-modules {module}: {error}') from None
    args.grad_accum_steps = max(1, args.grad_accum_steps)
    check_ranges(args)
    if args.aug_splits == 1:
        raise BadInput('--aug-splits must be 0 or at least 2')
    if args.amp and args.model_dtype not in (None, 'float32'):
        raise BadInput(f'--amp needs a float32 model, not --model-dtype {args.model_dtype}')
    return args
