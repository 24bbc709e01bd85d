"""The flags of ``train.py``: timm's names, meanings and defaults (the device aside), then our own few."""

from typing import Any

from ..options import Option

SCHEDULES = ('cosine', 'tanh', 'step', 'multistep', 'plateau', 'poly', 'wsd', 'rsqrt', 'constant', 'none')

_GROUP = ''


def _group(name: str) -> None:
    global _GROUP
    _GROUP = name


def _value(name: str, type: Any, default: Any, help: str, *aliases: str, **kwargs: Any) -> Option:
    return Option(name, aliases, type=type, default=default, help=help, group=_GROUP, **kwargs)


def _switch(name: str, help: str, **kwargs: Any) -> Option:
    return Option(name, kind='switch', help=help, group=_GROUP, **kwargs)


def _data() -> list[Option]:
    _group('Data set')
    return [
        _value('data', str, None, 'folder or tar of the images (the same as --data-dir)', nargs='?', metavar='DIR'),
        _value('--data-dir', str, None, 'folder or tar of the images', metavar='DIR'),
        _value('--dataset', str, '', 'kind and name: torch/cifar10, hfds/..., tfds/..., wds/..., digits, npz:FILE; '
               'a folder or tar if empty', metavar='NAME'),
        _value('--train-split', str, 'train', 'name of the split to train on', metavar='NAME'),
        _value('--val-split', str, 'validation', 'name of the split to validate on; empty for none', metavar='NAME'),
        _value('--train-images', float, None, 'train on N images, or below 1 on this share, drawn by --split-seed; '
               'all if unset', metavar='N'),
        _value('--holdout', int, 0, 'validate on N images held out of the training split', metavar='N'),
        _value('--split-seed', int, 0, 'draws the images of --train-images and --holdout', metavar='S'),
        _value('--train-num-samples', int, None, 'training images, where an iterable set does not say', metavar='N'),
        _value('--val-num-samples', int, None, 'validation images, where an iterable set does not say', metavar='N'),
        _switch('--dataset-download', 'let torch/, hfids/ and tfds/ sets download themselves'),
        _value('--class-map', str, '', 'file that maps class names to indices', metavar='FILE'),
        _value('--input-img-mode', str, None, 'PIL mode of the images; RGB for 3 channels and L for others if unset'),
        _value('--input-key', str, None, 'key of the images in a data set of records'),
        _value('--target-key', str, None, 'key of the labels in a data set of records'),
        _switch('--dataset-trust-remote-code', 'let a Hugging Face data set run its own code'),
    ]


def _model() -> list[Option]:
    _group('Model')
    script = {'exclusive': 'script'}
    return [
        _value('--model', str, 'resnet50', 'name of the model', metavar='NAME'),
        _value('--asr', str, None, 'ASR on a model of any name: a gate (se, ie, srm, eca, spa, ...), or free, scale or '
               'scalar for vectors without one; further keywords go into --model-kwargs (asr_depth=2)', metavar='GATE'),
        _value('--asr-init', str, None, "where ASR starts: psi before a gate, v without one; N_0.1 draws psi from "
               'N(0, 0.1^2)', metavar='VALUE'),
        _value('--asr-gain', float, None, 'factor of the vectors of ASR; with 2 most of them start near one'),
        _switch('--asr-constant', 'train neither the vectors of ASR nor their gates'),
        _value('--last-norm-init', float, None, 'initial weight of the last norm of each residual branch, with ASR or '
               'without: 0.5 is the control for ASR(SE), 0 is zero_init_last', metavar='X'),
        _switch('--pretrained', 'start from the pretrained weights of the model'),
        _value('--pretrained-path', str, None, 'file to load as if it were the pretrained weights, head adapted',
               metavar='FILE'),
        _value('--initial-checkpoint', str, '', 'file to load into the model after it is made', metavar='FILE'),
        _value('--resume', str, '', 'checkpoint to go on from, or auto for the newest whole one of this run; '
               'without --experiment the run goes on in the folder of the checkpoint', metavar='FILE'),
        _switch('--no-resume-opt', 'resume the model but not the optimizer'),
        _value('--num-classes', int, None, 'number of classes; that of the model if unset', metavar='N'),
        _value('--gp', str, None, 'global pooling: fast, avg, max, avgmax or avgmaxc; that of the model if unset',
               metavar='POOL'),
        _value('--img-size', int, None, 'side of the square input in pixels; that of the model if unset', metavar='N'),
        _value('--in-chans', int, None, 'input channels; 3 if unset', metavar='N'),
        _value('--input-size', int, None, 'channels, height and width of the input', nargs=3, metavar='N'),
        _value('--crop-pct', float, None, 'part of the image that the centre crop of validation keeps', metavar='PCT'),
        _value('--mean', float, None, 'mean of the pixels, 0 to 1, per channel', nargs='+', metavar='MEAN'),
        _value('--std', float, None, 'standard deviation of the pixels per channel', nargs='+', metavar='STD'),
        _value('--interpolation', str, '', 'how validation resizes; that of the model if empty', metavar='NAME'),
        _value('--batch-size', int, 128, 'images per process and step', '-b', metavar='N'),
        _value('--validation-batch-size', int, None, 'the same for validation; as for training if unset', '-vb',
               metavar='N'),
        _switch('--channels-last', 'use the channels_last memory layout'),
        _value('--grad-accum-steps', int, 1, 'batches whose gradients are added up before each update', metavar='N'),
        _switch('--grad-checkpointing', 'recompute activations in the backward pass to save memory'),
        _switch('--fast-norm', "use timm's faster norm layers under AMP"),
        Option('--model-kwargs', kind='kwargs', default={}, help='more keywords of create_model', group=_GROUP),
        _value('--head-init-scale', float, None, 'multiply the initial classifier by this'),
        _value('--head-init-bias', float, None, 'fill the initial bias of the classifier with this'),
        _value('--torchcompile-mode', str, None, 'mode of torch.compile'),
        _switch('--torchscript', 'train the model as TorchScript', **script),
        _value('--torchcompile', str, None, 'compile the model, by this backend if one is named', nargs='?',
               const='inductor', metavar='BACKEND', **script),
    ]


def _device() -> list[Option]:
    _group('Device')
    return [
        _value('--device', str, None, 'cuda, cuda:1, mps, cpu, ...; the best one there is if unset'),
        _switch('--amp', 'train in mixed precision'),
        _value('--amp-dtype', str, 'float16', 'low precision of --amp', choices=('float16', 'bfloat16')),
        _value('--model-dtype', str, None, 'type of the whole model, without --amp; float32 if unset',
               choices=('float32', 'float16', 'bfloat16')),
        _switch('--no-ddp-bb', "do not broadcast buffers in PyTorch's DDP"),
        _switch('--synchronize-step', 'wait for the device at the end of each step'),
        _value('--local_rank', int, 0, 'index of this process on its machine, where a launcher says it so',
               '--local-rank'),
        _value('--device-modules', str, None, 'Python modules to import first', nargs='+', metavar='MODULE'),
    ]


def _optimizer() -> list[Option]:
    _group('Optimizer')
    return [
        _value('--opt', str, 'sgd', "name of the optimizer, as timm.optim.list_optimizers() has it", metavar='NAME'),
        _value('--opt-eps', float, None, "epsilon; the optimizer's own if unset", metavar='EPSILON'),
        _value('--opt-betas', float, None, "betas; the optimizer's own if unset", nargs='+', metavar='BETA'),
        _value('--momentum', float, 0.9, 'momentum', metavar='M'),
        _value('--weight-decay', float, 2e-5, 'weight decay (not of norms, biases and ASR vectors)'),
        _value('--clip-grad', float, None, 'clip gradients to this; no clipping if unset', metavar='NORM'),
        _value('--clip-mode', str, 'norm', 'how to clip: norm, value or agc', choices=('norm', 'value', 'agc')),
        _value('--layer-decay', float, None, 'factor of the learning rate from each layer to the one before it'),
        _value('--layer-decay-min-scale', float, 0.0, 'smallest such factor'),
        _value('--layer-decay-no-opt-scale', float, None, 'layers below this factor are not trained'),
        _switch('--decay-all', 'decay norms, biases and ASR vectors too, as the code of the papers does'),
        _value('--site-lr', float, None, 'factor of the learning rate of layers that ASR scales, or would scale; v^2 '
               'makes a plain network train as one whose ASR stays at v', metavar='X'),
        Option('--opt-kwargs', kind='kwargs', default={}, help='more keywords of the optimizer', group=_GROUP),
    ]


def _schedule() -> list[Option]:
    _group('Learning rate')
    return [
        _value('--sched', str, 'cosine', f'schedule: {", ".join(SCHEDULES)}', metavar='NAME', choices=SCHEDULES),
        _switch('--sched-on-updates', 'change the learning rate at every update, not every epoch'),
        _value('--lr', float, None, 'learning rate; from --lr-base if unset', metavar='LR'),
        _value('--lr-base', float, 0.1, 'learning rate of one base batch: lr = lr_base * global batch / base size',
               metavar='LR'),
        _value('--lr-base-size', int, 256, 'images of the base batch', metavar='N'),
        _value('--lr-base-scale', str, '', 'linear or sqrt; by the optimizer if empty',
               choices=('', 'linear', 'sqrt')),
        _value('--lr-noise', float, None, 'noise on the learning rate from (and to) these parts of the schedule',
               nargs='+', metavar='PCT'),
        _value('--lr-noise-pct', float, 0.67, 'limit of the noise', metavar='PCT'),
        _value('--lr-noise-std', float, 1.0, 'standard deviation of the noise', metavar='STD'),
        _value('--lr-cycle-mul', float, 1.0, 'factor of the length of each cycle', metavar='X'),
        _value('--lr-cycle-decay', float, 0.5, 'factor of the height of each cycle', metavar='X'),
        _value('--lr-cycle-limit', int, 1, 'number of cycles', metavar='N'),
        _value('--lr-k-decay', float, 1.0, 'k-decay of the cosine and poly schedules'),
        _value('--warmup-lr', float, 1e-5, 'learning rate at the start of warm-up', metavar='LR'),
        _value('--min-lr', float, 0.0, 'lowest learning rate', metavar='LR'),
        _value('--epochs', int, 300, 'epochs to train', metavar='N'),
        _value('--epoch-repeats', float, 0.0, 'times an iterable set is repeated in each epoch', metavar='N'),
        _value('--start-epoch', int, None, 'epoch to start from, whatever a checkpoint says', metavar='N'),
        _value('--decay-milestones', int, [90, 180, 270], 'epochs at which multistep decays', nargs='+', metavar='N'),
        _value('--decay-epochs', float, 90.0, 'epochs between the decays of step', metavar='N'),
        _value('--warmup-epochs', int, 5, 'epochs of warm-up', metavar='N'),
        _switch('--warmup-prefix', 'warm up before the schedule, not in its first epochs'),
        _value('--cooldown-epochs', int, 0, 'epochs at the lowest rate after the schedule', metavar='N'),
        _value('--patience-epochs', int, 10, 'epochs without progress before plateau decays', metavar='N'),
        _value('--decay-rate', float, 0.1, 'factor of each decay', '--dr', metavar='X'),
    ]


def _augmentation() -> list[Option]:
    _group('Augmentation and regularization')
    return [
        _switch('--no-aug', 'train without any augmentation'),
        _value('--train-crop-mode', str, None, "how training crops: timm's rrc, rkrc or rkrr; or pad: zeros on each "
               'side, an eighth of it, and a random crop (CIFAR)', choices=('rrc', 'rkrc', 'rkrr', 'pad')),
        _value('--scale', float, [0.08, 1.0], 'range of the area of random crops', nargs='+', metavar='PCT'),
        _value('--ratio', float, [3 / 4, 4 / 3], 'range of the aspect ratio of random crops', nargs='+', metavar='X'),
        _value('--hflip', float, 0.5, 'probability of a horizontal flip'),
        _value('--vflip', float, 0.0, 'probability of a vertical flip'),
        _value('--color-jitter', float, 0.4, 'strength of colour jitter', metavar='PCT'),
        _value('--color-jitter-prob', float, None, 'probability of colour jitter', metavar='PCT'),
        _value('--grayscale-prob', float, None, 'probability of conversion to grey', metavar='PCT'),
        _value('--gaussian-blur-prob', float, None, 'probability of blur', metavar='PCT'),
        _value('--aa', str, None, 'AutoAugment policy: original, v0, rand-m9-mstd0.5, augmix-m5-w4-d2, ...',
               metavar='NAME'),
        _value('--aug-repeats', float, 0.0, 'augmented copies of each image in a batch, over several processes'),
        _value('--aug-splits', int, 0, 'differently augmented parts of each batch, 0 or at least 2'),
        _switch('--jsd-loss', 'Jensen-Shannon divergence over the parts of --aug-splits'),
        _switch('--bce-loss', 'binary cross entropy instead of cross entropy'),
        _switch('--bce-sum', 'sum it over classes'),
        _value('--bce-target-thresh', float, None, 'make its targets 0 or 1 at this threshold'),
        _value('--bce-pos-weight', float, None, 'weight of its positive targets'),
        _value('--reprob', float, 0.0, 'probability of random erasing', metavar='PCT'),
        _value('--remode', str, 'pixel', 'what to erase with: const, rand or pixel',
               choices=('const', 'rand', 'pixel')),
        _value('--recount', int, 1, 'largest number of erased parts'),
        _switch('--resplit', 'do not erase in the first, clean part of --aug-splits'),
        _value('--mixup', float, 0.0, 'alpha of mixup, which is on if positive'),
        _value('--cutmix', float, 0.0, 'alpha of cutmix, which is on if positive'),
        _value('--cutmix-minmax', float, None, 'smallest and largest part that cutmix replaces; sets cutmix on',
               nargs='+'),
        _value('--mixup-prob', float, 1.0, 'probability of mixing at all'),
        _value('--mixup-switch-prob', float, 0.5, 'probability of cutmix where both are on'),
        _value('--mixup-mode', str, 'batch', 'mix per batch, pair or elem', choices=('batch', 'pair', 'elem', 'half')),
        _value('--mixup-off-epoch', int, 0, 'no mixing from this epoch on; 0 for never', metavar='N'),
        _value('--smoothing', float, 0.1, 'label smoothing'),
        _value('--train-interpolation', str, 'random', 'how training resizes: random, bilinear or bicubic'),
        _value('--drop', float, 0.0, 'dropout rate', metavar='PCT'),
        _value('--drop-connect', float, None, 'old name of --drop-path', metavar='PCT'),
        _value('--drop-path', float, None, 'rate of stochastic depth', metavar='PCT'),
        _value('--drop-block', float, None, 'rate of DropBlock', metavar='PCT'),
    ]


def _norm_and_ema() -> list[Option]:
    _group('Batch norm')
    norm = [
        _value('--bn-momentum', float, None, 'momentum of BatchNorm, for the models that take it'),
        _value('--bn-eps', float, None, 'epsilon of BatchNorm, for the models that take it'),
        _switch('--sync-bn', 'share BatchNorm statistics between processes'),
        _value('--dist-bn', str, 'reduce', 'make the running statistics of all processes equal after each epoch',
               choices=('reduce', 'broadcast', '')),
        _switch('--split-bn', 'separate BatchNorms for the parts of --aug-splits'),
    ]
    _group('Averaged weights')
    return [
        *norm,
        _switch('--model-ema', 'keep a moving average of the weights, and validate that'),
        _switch('--model-ema-force-cpu', 'keep it on the CPU; then it is not validated'),
        _value('--model-ema-decay', float, 0.9998, 'decay of the average'),
        _switch('--model-ema-warmup', 'let the decay grow to that'),
    ]


def _running() -> list[Option]:
    _group('Running')
    return [
        _value('--seed', int, 42, 'random seed', metavar='S'),
        _value('--worker-seeding', str, 'all', 'generators to seed in loading processes: all, or part (not NumPy)',
               choices=('all', 'part')),
        _value('--log-interval', int, 50, 'updates between log lines', metavar='N'),
        _value('--val-interval', int, 1, 'epochs between validations', metavar='N'),
        _value('--recovery-interval', int, 0, 'updates between checkpoints inside an epoch; 0 for none', metavar='N'),
        _value('--checkpoint-hist', int, 10, 'best checkpoints to keep', metavar='N'),
        _value('--workers', int, 4, 'processes that load images', '-j', metavar='N'),
        _switch('--save-images', 'save a batch of training images at every log line'),
        _switch('--pin-mem', 'pin the memory that batches are copied from'),
        _switch('--no-prefetcher', "normalize in the loading processes, not in timm's prefetcher"),
        _value('--output', str, '', 'folder of the run folders; ./output/train if empty', metavar='DIR'),
        _value('--experiment', str, '', 'name of the run folder; time, model and size if empty', metavar='NAME'),
        _value('--eval-metric', str, 'top1', 'what makes a checkpoint the best', choices=('top1', 'top5', 'loss')),
        _switch('--use-multi-epochs-loader', 'keep the loader running between epochs'),
        _switch('--log-wandb', 'log to Weights & Biases'),
        _value('--wandb-project', str, None, 'its project', metavar='NAME'),
        _value('--wandb-tags', str, [], 'its tags', nargs='+', metavar='TAG'),
        _value('--wandb-resume-id', str, '', 'id of the run to resume there', metavar='ID'),
    ]


def _scheduled_sizes() -> list[Option]:
    _group('Scheduled resolution')
    return [
        _value('--train-img-sizes', int, None, 'image sizes to choose from, batch by batch', nargs='+', metavar='N'),
        _value('--train-batch-sizes', int, None, 'batch size of each; --batch-size if unset', nargs='+', metavar='N'),
        _value('--train-size-probs', float, None, 'weight of each; equal if unset', nargs='+', metavar='P'),
        _value('--train-size-schedule', str, 'constant', 'constant, or progressive from the first size to the last',
               choices=('constant', 'progressive')),
        _value('--train-size-schedule-spread', float, 0.65, 'width of the progressive choice, in sizes'),
        _value('--train-size-random-mix', float, 0.1, 'part of the progressive choices that is uniform'),
        _value('--train-batches-per-epoch', int, None, 'batches of an epoch with --train-img-sizes',
               '--train-steps-per-epoch', metavar='N'),
        _value('--variable-batch-loss-scale', str, 'none', 'scale gradients by batch size: none, sqrt or linear',
               choices=('none', 'sqrt', 'linear')),
    ]


def _ours() -> list[Option]:
    _group('Fusing and output')
    return [
        _value('--fuse-every', int, 0, 'also write the fused model of the best checkpoint every N epochs; '
               '0 for the end only', metavar='N'),
        _switch('--no-fuse', 'do not write the fused model at the end'),
        _switch('--no-progress', 'plain log lines instead of a progress bar'),
        _switch('--log-tensorboard', 'log to TensorBoard, in the run folder'),
    ]


TRAIN_OPTIONS: list[Option] = [
    option for part in (_data, _model, _device, _optimizer, _schedule, _augmentation, _norm_and_ema, _running,
                        _scheduled_sizes, _ours)
    for option in part()
]

_NAFLEX = "NaFlex loading is not part of this engine; use timm's own train.py with --device-modules timm_asr"
_DISTILL = "knowledge distillation is not part of this engine; use timm's own train.py with --device-modules timm_asr"

#: Flags of timm's train.py that are left out on purpose, each with the sentence that says so.
TRAIN_REFUSED: dict[str, str] = {
    '--fuser': "PyTorch's JIT fusers are superseded; use --torchcompile",
    '--tta': "timm's loaders make no oversampled copies, so the factor would average different images",
    **dict.fromkeys((
        '--naflex-loader', '--naflex-train-seq-lens', '--naflex-max-seq-len', '--naflex-patch-sizes',
        '--naflex-patch-size-probs', '--naflex-loss-scale', '--naflex-patchify-channels-first'), _NAFLEX),
    **dict.fromkeys((
        '--kd-model-name', '--kd-distill-type', '--kd-loss-type', '--kd-temperature', '--kd-student-feature-dim',
        '--kd-teacher-feature-dim', '--kd-token-distill-type', '--distill-loss-weight', '--task-loss-weight'),
        _DISTILL),
}
