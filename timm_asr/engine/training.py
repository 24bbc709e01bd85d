"""A training run: a timm model by name, the checkpoints that matter, and the folded model at the end."""

import argparse
import logging
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from timm.layers import set_fast_norm
from timm.utils import NativeScaler, distribute_bn, init_distributed_device, random_seed
from torch import nn

from ..checkpoints.names import ARGS, ATTENTION, CURVE, SUMMARY
from ..checkpoints.open import open_source
from ..checkpoints.read import first_line
from ..checkpoints.source import data_config_of
from ..errors import BadInput, OwnBadInput, Stopped
from ..export.place import list_in_manifest
from ..models.counts import count_parameters
from . import build, side_by_side
from .checkpoint import Found, SaveFailed, Saver, checkpoints_in, is_of, locate, make_room, write_atomically
from .device import find_device, processes
from .evaluate import evaluate
from .forms import export_run
from .inputs import DTYPES, autocast, check_backend, check_noise, fast_matmul
from .interrupt import deferred_interrupts
from .loaders import make_eval_loader, make_loaders, open_datasets
from .loop import Training, capture, place_schedule, restore, train_one_epoch
from .options import as_yaml
from .progress import Progress, setup_logging
from .seeding import start_epoch
from .summary import add_summary, plot_run, start_wandb

_logger = logging.getLogger(__name__)


def start_device(args: argparse.Namespace) -> torch.device:
    """Find the device, join the other processes if there are any, and seed."""
    if args.local_rank and 'WORLD_SIZE' in os.environ:
        os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    args.device = str(find_device(args.device))
    try:
        device = init_distributed_device(args)
    except ValueError as error:
        raise BadInput(f'several processes cannot meet: {first_line(error)}; start by torchrun, or set WORLD_SIZE=1 '
                       'for one alone') from None
    fast_matmul(device)
    set_fast_norm(args.fast_norm)
    random_seed(args.seed, args.rank)
    return device


def resolve(args: argparse.Namespace) -> dict[str, Any]:
    """Fill in what is found out from other options, without opening data; returns what the images would go through."""
    args.device = str(find_device(args.device))
    config = data_config_of(build.build_on_meta(args), vars(args))
    return {key: list(value) if isinstance(value, tuple) else value for key, value in config.items()
            if key != 'crop_mode'}


class Run:
    """A run from its first epoch to the folded network."""

    def __init__(self, args: argparse.Namespace, argv: Sequence[str] = (), prog: str = 'timm-asr train') -> None:
        self.args, self.argv, self.prog = args, list(argv), prog
        self.option_names = tuple(vars(args))
        self.device = start_device(args)
        self.primary = args.rank == 0
        amp = DTYPES[args.amp_dtype] if args.amp else None
        self.autocast = autocast(self.device, amp, args.bn_noise)
        self.scaler = NativeScaler('cuda') if amp == torch.float16 and self.device.type == 'cuda' else None
        if amp == torch.float16 and self.scaler is None:
            _logger.warning(f'float16 gradients are not scaled on {self.device.type}, where small ones become zero: '
                            'take --amp-dtype bfloat16.')
        self.training, self.data_config, self.datasets = self.build()
        self.metric = args.eval_metric if self.training.loaders.eval is not None else 'loss'
        self.use_ema = args.model_ema and not args.model_ema_force_cpu

    def build(self) -> tuple[Training, dict[str, Any], tuple[Any, Any]]:
        """Model, data, loss and optimizer; also what images go through, and the data sets."""
        args, device = self.args, self.device
        check_backend(args)
        check_noise(args)
        build.check_model(args)
        datasets = open_datasets(args, args.input_size[0] if args.input_size else args.in_chans or 3)
        model = build.build_model(args)
        args.num_classes = args.num_classes or model.num_classes
        data_config = {**data_config_of(model, vars(args)), 'crop_mode': None}
        dtype = DTYPES[args.model_dtype] if args.model_dtype else None
        count = count_parameters(model)
        model = build.prepare_model(model, args, device)
        if args.sync_bn and args.distributed and device.type == 'cpu':
            raise BadInput('--sync-bn: PyTorch computes SyncBatchNorm on GPUs only; without it, --dist-bn makes the '
                           'statistics of all processes equal after each epoch')
        loaders = make_loaders(args, data_config, datasets, device, dtype)
        build.resolve_learning_rate(args, loaders.batch_size)
        task = build.Task(model, build.make_loss(args, loaders.mixer is not None), device, dtype)
        training = Training(args, task, loaders, build.make_optimizer(model, args), None, device, self.autocast,
                            self.scaler, dtype, data_config=data_config)
        size = 'x'.join(map(str, data_config['input_size']))
        _logger.info(f'{build.title_of(args)}, {count:,} parameters, on {args.device}'
                     + (f' in {args.world_size} processes' if args.distributed else '')
                     + f', input {size}, {args.num_classes} classes'
                     + (f', AMP in {args.amp_dtype}' if args.amp else f', {args.model_dtype or "float32"}') + '.')
        return training, data_config, datasets

    def prepare(self) -> tuple[int, int]:
        """Find the folder, resume if asked, make schedule and saver; returns first epoch and end."""
        args, training = self.args, self.training
        self.folder, found, self.lock = locate(args, self.data_config['input_size'][-1])
        self.wrap(found)
        training.scheduler, epochs = build.make_schedule(
            training.optimizer, args, training.updates_per_epoch, decreasing=self.metric == 'loss')
        content = found[1] if found else {'epoch': -1}
        first = content['epoch'] + (0 if content.get('recovery') else 1)
        own = is_of(found, self.folder)
        if args.start_epoch is not None:
            if own and args.start_epoch < first:
                raise BadInput(f'--start-epoch {args.start_epoch}: {self.folder} goes on at epoch {first}, and its '
                               'checkpoints would be replaced; name another folder (--experiment)')
            first = args.start_epoch
        place_schedule(training, content, first)
        self.saver = Saver(self.folder, decreasing=self.metric == 'loss', keep=args.checkpoint_hist)
        if own:  # in another folder, ranks start anew
            self.saver.load_state_dict(content.get('saver', {}))
            self.saver.goes_back = 'saver' in content and found[0].name.startswith('checkpoint-')
        if self.primary:
            self._open_folder(found, first)
        return first, epochs

    def wrap(self, found: Found | None) -> None:
        """Average, resume, compile and distribute the model, in the order in which these depend on each other."""
        args, task = self.args, self.training.task
        if args.model_ema:
            task.setup_ema(decay=args.model_ema_decay, use_warmup=args.model_ema_warmup,
                           device=torch.device('cpu') if args.model_ema_force_cpu else None)
        if found is not None:
            restore(self.training, found)
        if args.torchcompile:
            torch.compiler.reset()  # dynamo compiles one class a few times only, over all runs of a process
            task.compile(backend=args.torchcompile, mode=args.torchcompile_mode)
            if task.has_ema():
                task.compile_ema(backend=args.torchcompile, mode=args.torchcompile_mode)
        if args.distributed:
            task.prepare_distributed(device_ids=None if self.device.type == 'cpu' else [self.device],
                                     broadcast_buffers=not args.no_ddp_bb)

    def _open_folder(self, found: Found | None, first: int) -> None:
        args, training, saver = self.args, self.training, self.saver
        try:
            make_room(self.folder, found, args.overwrite)
            once = ('resume', 'no_resume_opt', 'start_epoch', 'overwrite')  # the file is to repeat the whole run
            text = as_yaml({name: getattr(args, name) for name in self.option_names if name not in once})
            write_atomically(self.folder / ARGS, lambda file: file.write(text.encode()))
        except (OSError, SaveFailed) as error:
            raise BadInput(str(error)) from None
        _logger.info(f'Results go to {self.folder}')
        if found is not None:
            checkpoint, content = found
            _logger.info(f'Going on from {checkpoint} at epoch {first}.')
            if saver.last is not None and checkpoint.samefile(saver.last):
                saver.settle(content['epoch'])
        self.wandb = start_wandb(args, self.folder.name)
        if args.save_images:
            training.save_images = self.folder
        if args.recovery_interval:
            training.save_recovery = lambda epoch, update: saver.save_recovery(capture(training), epoch, update)

    def validate(self, progress: Progress) -> dict[str, float] | None:
        """The metrics of an epoch, by the names that they have in ``summary.csv`` after ``eval_``: of the raw model, or
        of the averaged one where there is one, as timm has it; None without validation images.
        """
        args, training, task = self.args, self.training, self.training.task
        if training.loaders.eval is None:
            return None

        def run(model: nn.Module, name: str) -> dict[str, float]:
            found = evaluate(model, training.loaders.eval, nn.CrossEntropyLoss(), device=self.device,
                             dtype=training.dtype, amp_autocast=self.autocast, channels_last=args.channels_last)
            progress.line(f'validation{name}: top-1 {found["top1"]:.2f} %, loss {found["loss"]:.4f}, '
                          f'{found.pop("count")} images')
            return found

        metrics = run(task.get_eval_model(), '')
        if self.use_ema:
            if args.distributed and args.dist_bn:
                distribute_bn(task.get_trainable_module(ema=True), args.world_size, args.dist_bn == 'reduce')
            metrics = run(task.get_eval_model(ema=True), ' of the averaged weights')
        return metrics

    def epoch(self, epoch: int, epochs: int, progress: Progress) -> None:
        """Train, validate, log and save one epoch."""
        args, training = self.args, self.training
        start_epoch(training.loaders.train, args.seed, epoch, args.rank)
        trained = train_one_epoch(training, epoch, progress)
        if args.distributed and args.dist_bn:
            distribute_bn(training.task.get_trainable_module(), args.world_size, args.dist_bn == 'reduce')
        rate = training.learning_rate
        end = (f'lr {rate:.2e}, {trained["images_per_second"]:.0f} images/s, '
               f'data loading {100 * trained["waiting"]:.0f} %')
        start = f'epoch {epoch} of {epochs}: loss {trained["loss"]:.4f}'
        skipped = bool((epoch + 1) % args.val_interval) and epoch + 1 != epochs
        validated = None if skipped else self.validate(progress)
        metric = None if skipped else (validated or trained)[self.metric]
        if training.scheduler is not None:
            training.scheduler.step(epoch + 1, metric)
        if not self.primary:
            return
        if skipped:
            self.saver.save_last(capture(training), epoch)
            progress.line(f'{start}, {end}', always=True)
            return
        row = {'epoch': epoch, 'train_loss': trained['loss'],
               **{f'eval_{key}': value for key, value in (validated or {}).items()}, 'lr': rate}
        add_summary(self.folder / SUMMARY, row)
        if self.wandb:
            self.wandb.log(row)
        self.saver.save(capture(training), epoch, metric)
        hidden = ('loss', 'top5') if args.num_classes <= 5 else ('loss',)  # five of five are always right
        shown = ''.join(f', {name} {value:.4g}' for name, value in (validated or {}).items() if name not in hidden)
        if self.saver.best_metric is not None:
            shown += f' (best {self.metric} {self.saver.best_metric:.4g} in epoch {self.saver.best_epoch})'
        progress.line(f'{start}{shown}, {end}', always=True)

    def fuse(self) -> dict[str, Any] | None:
        """Fold the best checkpoint into the run folder; None where there are no images to compare on."""
        loader, best = self.training.loaders.eval, self.saver.best
        if loader is None:
            _logger.warning('No folded network is written: there are no validation images to compare on (--val-split).')
            return None
        if best is None:
            raise Stopped('no checkpoint was written: there is nothing to fold')
        if self.args.distributed:  # the loader has a part of the images only
            loader = make_eval_loader(self.args, self.data_config, self.datasets[1], self.device, self.training.dtype)
        return export_run(best, self.folder, self.args, self.data_config, loader, self.device, self.use_ema)

    def train(self, first: int, epochs: int) -> int:
        """Run the epochs from ``first`` on, and what comes after them."""
        updates = self.training.updates_per_epoch
        with Progress(epochs * updates, first * updates, not self.args.no_progress and self.primary) as progress:
            for epoch in range(first, epochs):
                self.epoch(epoch, epochs, progress)
        leave_others(self.args)
        return self.finish() if self.primary else 0

    def finish(self) -> int:
        """Fold, plot, and print the table."""
        best = self.saver.best
        if self.saver.best_metric is not None:
            _logger.info(f'Best {self.metric}: {self.saver.best_metric:.4f} in epoch {self.saver.best_epoch}.')
        metrics = None if self.args.no_fuse else self.fuse()
        plot_run(self.folder, open_source(best, self.use_ema).model.float().eval() if best is not None else None)
        list_in_manifest(self.folder, (ARGS, SUMMARY, CURVE, ATTENTION))
        if metrics is not None and 'side_by_side' in metrics:
            print(side_by_side.table(metrics))
        elif metrics is not None:
            _logger.warning('No table of times: there is too little memory for the networks side by side.')
        print(f'Results: {self.folder}')
        return 0

    def command(self) -> str:
        """The command that goes on from the furthest checkpoint."""
        once = ('--resume', '--start-epoch')
        words = [word for i, word in enumerate(self.argv) if not (
            word.split('=')[0] in (*once, '--no-resume-opt') or (i and self.argv[i - 1] in once))]
        script = shlex.quote(sys.argv[0]) if self.prog.endswith('.py') else ''
        start = f'python {script}' if script else self.prog
        if count := os.environ.get('LOCAL_WORLD_SIZE'):  # torchrun's
            start = f'torchrun --nproc-per-node={count} {script or f"-m timm_asr {self.prog.split()[-1]}"}'
        return f'{start} {shlex.join([*words, "--resume", str(self.furthest)])}'

    @property
    def furthest(self) -> Path | None:
        """The checkpoint that a run goes on from."""
        return next(iter(checkpoints_in(self.folder)), None)


def main(args: argparse.Namespace, argv: Sequence[str] = (), prog: str = 'timm-asr train') -> int:
    """Train as the options say, which came from the line ``argv``; returns the exit status.

    BadInput for anything wrong with the options, the data or a checkpoint; Stopped as :func:`carry_out`.
    """
    setup_logging(processes()[0] == 0)
    if args.print_config:
        names = tuple(vars(args))
        data = resolve(args)
        print(as_yaml({name: getattr(args, name) for name in names} | data), end='')
        return 0
    return carry_out(Run(args, argv, prog))


def carry_out(job: Run) -> int:
    """Train, or go on training, and fold; returns the exit status: 0, or 130 after a signal. ``Stopped`` if training
    cannot go on, or the folded model must not be written.
    """
    first, epochs = job.prepare()
    try:
        with deferred_interrupts():
            return job.train(first, epochs)
    except KeyboardInterrupt:
        if job.primary:
            last = job.furthest
            _logger.info(f'Stopped. The last checkpoint is {last}; go on with\n  {job.command()}' if last else
                         'Stopped before the first checkpoint.')
        return 130
    except (Stopped, torch.OutOfMemoryError) as stopped:
        last = job.furthest
        text = str(stopped) if isinstance(stopped, Stopped) else (
            f'too little memory for --batch-size {job.args.batch_size}: use a smaller one with --grad-accum-steps, or '
            f'--grad-checkpointing ({first_line(stopped)[:120]})')
        if not job.primary and not isinstance(stopped, Stopped):
            raise OwnBadInput(f'process {job.args.rank}: {text}') from None
        raise Stopped(f'{text}; the last checkpoint is {last}' if last else
                      f'{text}; no checkpoint was written') from None
    except RuntimeError as error:
        if 'DataLoader worker' not in str(error):
            raise
        raise Stopped(f'{first_line(error)}: use fewer --workers, or give it more (shared) memory; the last checkpoint '
                      f'is {job.furthest}') from None
    finally:
        leave_others(job.args)
        if job.primary:
            if job.wandb:
                job.wandb.finish()
            job.lock.close()


def leave_others(args: argparse.Namespace) -> None:
    """End the work with other processes; the first may then take its time alone."""
    if args.distributed and dist.is_initialized():
        dist.destroy_process_group()
