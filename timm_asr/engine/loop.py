"""One epoch of training, and the state of a run as a checkpoint holds it."""

import argparse
import logging
import math
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from timm.utils import NativeScaler, dispatch_clip_grad
from torchvision.utils import save_image

from ..checkpoints.provenance import git_commit, versions
from ..checkpoints.read import first_line
from ..checkpoints.weights import load_weights, state_dict_of
from ..errors import BadInput, Stopped
from .build import Task
from .checkpoint import Found
from .device import synchronize
from .interrupt import stoppable
from .loaders import Loaders, label_names
from .options import as_read, plain_options
from .progress import Progress

_logger = logging.getLogger(__name__)

#: The state of PyTorch's plateau schedule.
_PLATEAU = {'best', 'num_bad_epochs', 'cooldown_counter', 'last_epoch'}

@dataclass
class Training:
    """What the epochs of a run share. Images have type ``dtype`` (None: float32); ``save_recovery`` is called with
    epoch and update every ``--recovery-interval`` updates, and ``save_images`` is the folder of ``--save-images``.
    """

    args: argparse.Namespace
    task: Task
    loaders: Loaders
    optimizer: torch.optim.Optimizer
    scheduler: Any
    device: torch.device
    amp_autocast: Callable[[], Any] = suppress
    scaler: NativeScaler | None = None
    dtype: torch.dtype | None = None
    save_recovery: Callable[[int, int], None] | None = None
    save_images: Path | None = None
    data_config: Mapping[str, Any] = field(default_factory=dict)  # what the images go through

    @property
    def updates_per_epoch(self) -> int:
        return math.ceil(len(self.loaders.train) / self.args.grad_accum_steps)

    @property
    def learning_rate(self) -> float:
        """Mean over the parameter groups."""
        rates = [group['lr'] for group in self.optimizer.param_groups]
        return sum(rates) / len(rates)


@dataclass
class _Meter:
    """Loss and time of an epoch; the losses stay on the device until they are asked for."""

    distributed: bool
    device: torch.device
    step: int = 0
    images: int = 0
    loss: float = 0.0
    last: float = math.nan
    waited: float = 0.0
    bad_step: int = 2 ** 31 - 1  #: the first whose loss was not finite
    started: float = field(default_factory=time.perf_counter)
    pending: list[tuple[torch.Tensor, int]] = field(default_factory=list)

    def add(self, loss: torch.Tensor, count: int) -> None:
        self.pending.append((loss.detach(), count))
        self.step += 1

    def average(self, epoch: int) -> float:
        """Mean loss over the images of all processes; if it is not finite, all of them stop here together."""
        if self.pending:
            losses = torch.stack([loss for loss, _ in self.pending]).cpu().double()
            counts = torch.tensor([count for _, count in self.pending])
            bad = losses.isfinite().logical_not().nonzero().flatten().tolist()
            self.bad_step = min([self.bad_step, *(self.step - len(losses) + at for at in bad)])
            self.loss += float((losses * counts).sum())
            self.images += int(counts.sum())
            self.last = losses[-1].item()
            self.pending.clear()
        dtype = torch.float32 if self.device.type == 'mps' else torch.float64
        sums = torch.tensor([self.loss, float(self.images)], dtype=dtype, device=self.device)
        first = torch.tensor(self.bad_step, device=self.device)
        if self.distributed:
            dist.all_reduce(sums)
            dist.all_reduce(first, op=dist.ReduceOp.MIN)
        average = (sums[0] / sums[1]).item() if sums[1] else math.nan
        if not math.isfinite(average):
            raise Stopped(f'the loss became {average} at step {min(int(first), self.step)} of epoch {epoch}')
        return average

    def rates(self, processes: int) -> dict[str, float]:
        """Images a second of all processes, and the part of the time that was spent waiting for data."""
        seconds = max(time.perf_counter() - self.started, 1e-9)
        return {'images_per_second': self.images * processes / seconds, 'waiting': self.waited / seconds}


def _loss_scale(training: Training, batch_size: int) -> float:
    """Factor of the loss of a batch of another size than the average (``--variable-batch-loss-scale``)."""
    mode = training.args.variable_batch_loss_scale
    if not training.args.train_img_sizes or mode == 'none':
        return 1.0
    ratio = batch_size / training.loaders.batch_size
    return ratio ** 0.5 if mode == 'sqrt' else ratio


def _update(training: Training, loss: torch.Tensor, need_update: bool) -> None:
    """Backward, and the optimizer's step where one is due."""
    args, optimizer = training.args, training.optimizer
    second_order = bool(getattr(optimizer, 'is_second_order', False))
    clipped = None if args.clip_grad is None else list(
        training.task.get_clip_parameters(exclude_head=args.clip_mode == 'agc'))
    if training.scaler is not None:
        training.scaler(loss, optimizer, clip_grad=args.clip_grad, clip_mode=args.clip_mode, parameters=clipped,
                        create_graph=second_order, need_update=need_update)
        return
    loss.backward(create_graph=second_order)
    if need_update:
        if clipped is not None:
            dispatch_clip_grad(clipped, value=args.clip_grad, mode=args.clip_mode)
        optimizer.step()


def train_one_epoch(training: Training, epoch: int, progress: Progress) -> dict[str, float]:
    """Train for one epoch, counted from 0; ``Stopped`` if the loss becomes NaN or infinite. Returns ``loss`` (mean over
    the images of all processes), their ``images_per_second``, and ``waiting`` (share of this one's time, for data).
    """
    args, task, device, loaders = training.args, training.task, training.device, training.loaders
    if loaders.mixer is not None and 0 < args.mixup_off_epoch <= epoch and loaders.mixer.mixup_enabled:
        loaders.mixer.mixup_enabled = False
        getattr(loaders.train, 'loader', loaders.train)._iterator = None  # workers that live on would go on mixing
    task.get_trainable_module().train()
    batches, accumulate = len(loaders.train), args.grad_accum_steps
    rest = batches % accumulate
    meter = _Meter(args.distributed, device)
    training.optimizer.zero_grad()
    waiting_since = time.perf_counter()
    for index, (images, target) in enumerate(stoppable(loaders.train)):
        last = index + 1 == batches
        need_update = last or (index + 1) % accumulate == 0
        if args.no_prefetcher:
            images = images.to(device=device, dtype=training.dtype, non_blocking=True)
            target = target.to(device=device, non_blocking=True)
            if loaders.mixer is not None:
                images, target = loaders.mixer(images, target)
        if args.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        meter.waited += time.perf_counter() - waiting_since

        with task.no_sync() if args.distributed and not need_update else nullcontext():
            with training.amp_autocast():
                loss = task(images, target)['loss']
            meter.add(loss, len(images))
            share = rest if rest and index >= batches - rest else accumulate
            scale = _loss_scale(training, len(images))
            _update(training, loss if share == scale == 1 else loss * scale / share, need_update)

        if need_update:
            _after_update(training, meter, epoch, index, last, images, progress)
        waiting_since = time.perf_counter()
    return {'loss': meter.average(epoch), **meter.rates(args.world_size)}


def _after_update(training: Training, meter: _Meter, epoch: int, index: int, last: bool, images: torch.Tensor,
                  progress: Progress) -> None:
    args, task, updates = training.args, training.task, training.updates_per_epoch
    update = index // args.grad_accum_steps
    done = epoch * updates + update + 1
    training.optimizer.zero_grad()
    task.update_ema(step=done)
    if args.synchronize_step:
        synchronize(training.device)
    progress.bar.update()
    if update % args.log_interval == 0 or last:
        average, rates = meter.average(epoch), meter.rates(args.world_size)
        text = (f'loss {meter.last:.4g} (mean {average:.4g})  lr {training.learning_rate:.3e}  '
                f'{rates["images_per_second"]:.1f} images/s  data loading {100 * rates["waiting"]:.0f} %')
        progress.bar.set_description(f'epoch {epoch}', refresh=False)
        progress.bar.set_postfix_str(text, refresh=False)
        progress.line(f'epoch {epoch} step {update + 1:>4}/{updates}  {text}')
        if training.save_images is not None:
            save_image(images, training.save_images / f'train-batch-{index}.jpg', padding=0, normalize=True)
    if args.recovery_interval and (update + 1) % args.recovery_interval == 0:
        meter.average(epoch)  # which stops before a state that is not finite is written
        if training.save_recovery is not None:
            training.save_recovery(epoch, update)
    if training.scheduler is not None:
        training.scheduler.step_update(num_updates=done, metric=meter.loss / max(meter.images, 1))


def capture(training: Training) -> dict[str, Any]:
    """Everything a checkpoint holds about a run but its place in it.

    Random numbers need no state: each epoch starts from a seed made of ``--seed``, the epoch and the process.
    """
    task, scheduler = training.task, training.scheduler
    state: dict[str, Any] = {
        'arch': training.args.model, 'args': plain_options(vars(training.args)),
        'made_by': {**versions(), 'git_commit': git_commit()}, 'data_config': dict(training.data_config),
        'label_names': label_names(training.loaders.train.dataset, training.args.num_classes),
        'optimizer': training.optimizer.state_dict(),
        **task.get_checkpoint_state(), **task.get_checkpoint_state(ema=True)}
    if training.scaler is not None:
        state[training.scaler.state_dict_key] = training.scaler.state_dict()
    if (ema := task.get_trainable_module(ema=True)) is not None:
        state['ema_generator'] = ema._sr_generator.get_state()
    if (plateau := getattr(scheduler, 'lr_scheduler', None)) is not None:  # the others are functions of the epoch
        state['plateau'] = {'restore_lr': scheduler.restore_lr,
                            **{key: getattr(plateau, key) for key in sorted(_PLATEAU)}}
    return state


def restore(training: Training, found: Found) -> None:
    """Load model, EMA, optimizer and scaler; ``BadInput`` where the checkpoint is not one of such a run."""
    path, content = found
    args, ema, scaler = training.args, training.task.get_trainable_module(ema=True), training.scaler
    if any(content.get(key) is None for key in ('state_dict', 'optimizer', 'epoch')):
        raise BadInput(f'--resume {path}: not a training checkpoint; load weights alone by --initial-checkpoint')
    if content.get('arch') != args.model:
        raise BadInput(f'--resume {path}: it is a checkpoint of {content.get("arch")}, not of {args.model}')
    before = content.get('args') or {}
    had, asked = (f'with --asr {gate}' if gate else 'without --asr' for gate in (before.get('asr'), args.asr))
    keywords = [as_read(of.get('model_kwargs') or {}) for of in (before, vars(args))]
    if had == asked and keywords[0] != keywords[1]:  # no parameter shows some of them, such as asr_gain
        had, asked = (f'with {", ".join(f"{k}={v}" for k, v in own.items()) or "no keywords"}' for own in keywords)
    if had != asked:
        raise BadInput(f'--resume {path}: it was trained {had}, not {asked}')
    model = training.task.get_trainable_module()
    own = tuple(model.state_dict())
    load_weights(model, path, state_dict_of(content, path=path, own=own), args.model)
    if ema is not None:
        load_weights(ema.module, path, state_dict_of(content, 'state_dict_ema' in content, path, own), args.model)
        if 'ema_generator' in content:
            with suppress(RuntimeError):  # of another kind of device
                ema._sr_generator.set_state(content['ema_generator'].cpu())
    if args.no_resume_opt:
        return
    try:
        training.optimizer.load_state_dict(content['optimizer'])
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # whatever an optimizer says to a state that is not its own
        raise BadInput(f'--resume {path}: its optimizer does not fit --opt {args.opt} ({first_line(error)}); '
                       'use --no-resume-opt to go on without it') from None
    for name in ('lr', 'weight_decay', 'momentum'):
        asked, had = getattr(args, name), before.get(name)
        if had is not None and had != asked:
            _logger.warning(f'--{name.replace("_", "-")} is {had:g}, as in the checkpoint, whose optimizer goes on; '
                            f'--no-resume-opt takes {asked:g}.')
            setattr(args, name, had)
    if scaler is not None and scaler.state_dict_key in content:
        scaler.load_state_dict(content[scaler.state_dict_key])


def place_schedule(training: Training, content: Mapping[str, Any], start_epoch: int) -> None:
    """Bring the learning rate to where it is at the start of an epoch."""
    scheduler = training.scheduler
    if scheduler is None or start_epoch == 0:
        return
    plateau = getattr(scheduler, 'lr_scheduler', None)
    if plateau is None and training.args.sched_on_updates:
        scheduler.step_update(start_epoch * training.updates_per_epoch)
    elif plateau is None:
        scheduler.step(start_epoch)
    elif 'plateau' in content and not training.args.no_resume_opt:
        state = content['plateau']
        scheduler.restore_lr = state.get('restore_lr')
        for key in _PLATEAU & state.keys():
            setattr(plateau, key, state[key])
        # timm's constructor set the warm-up rate; the optimizer's own state has the true one.
        for group, saved in zip(training.optimizer.param_groups, content['optimizer']['param_groups'], strict=True):
            group['lr'] = saved['lr']
    elif start_epoch <= scheduler.warmup_t:
        scheduler.step(start_epoch)
    else:
        scheduler.update_groups(scheduler.base_values)
