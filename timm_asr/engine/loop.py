"""One epoch of training."""

import argparse
import math
import time
from collections import OrderedDict
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from timm.utils import NativeScaler, dispatch_clip_grad
from torchvision.utils import save_image

from ..errors import Stopped
from .build import Task
from .device import synchronize
from .interrupt import stoppable
from .loaders import Loaders
from .progress import Progress


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
    clipped = None
    if args.clip_grad is not None:
        clipped = list(training.task.get_trainable_module().parameters())
        clipped = clipped[:-2] if args.clip_mode == 'agc' else clipped  # not the classifier
    if training.scaler is not None:
        training.scaler(loss, optimizer, clip_grad=args.clip_grad, clip_mode=args.clip_mode, parameters=clipped,
                        create_graph=second_order, need_update=need_update)
        return
    loss.backward(create_graph=second_order)
    if need_update:
        if clipped is not None:
            dispatch_clip_grad(clipped, value=args.clip_grad, mode=args.clip_mode)
        optimizer.step()


def train_one_epoch(training: Training, epoch: int, progress: Progress) -> 'OrderedDict[str, float]':
    """Train for one epoch, counted from 0.

    Returns:
        ``loss`` (mean over the images of all processes), ``images_per_second`` of all processes, and ``waiting``
        (share of the time of this one spent waiting for data, 0 to 1).

    Raises:
        Stopped: If the loss becomes NaN or infinite.
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
        if args.channels_last and images.dim() == 4:
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
    if hasattr(training.optimizer, 'sync_lookahead'):
        training.optimizer.sync_lookahead()
    return OrderedDict(loss=meter.average(epoch), **meter.rates(args.world_size))


def _after_update(training: Training, meter: _Meter, epoch: int, index: int, last: bool, images: torch.Tensor,
                  progress: Progress) -> None:
    args, task, updates = training.args, training.task, training.updates_per_epoch
    update = index // args.grad_accum_steps
    done = epoch * updates + update + 1
    training.optimizer.zero_grad()
    task.update_ema(step=done)
    if args.synchronize_step:
        synchronize(training.device)
    if update % args.log_interval == 0 or last:
        average, rates = meter.average(epoch), meter.rates(args.world_size)
        speed, data = f'{rates["images_per_second"]:.1f} images/s', f'{100 * rates["waiting"]:.0f} %'
        progress.step(epoch, loss=f'{average:.3g}', lr=f'{training.learning_rate:.2e}', speed=speed, data=data)
        progress.line(f'epoch {epoch} step {update + 1:>4}/{updates}  loss {meter.last:.4g} (mean {average:.4g})  '
                      f'lr {training.learning_rate:.3e}  {speed}  data loading {data}')
        if training.save_images is not None:
            save_image(images, training.save_images / f'train-batch-{index}.jpg', padding=0, normalize=True)
    else:
        progress.step(epoch)
    if args.recovery_interval and (update + 1) % args.recovery_interval == 0:
        meter.average(epoch)  # which stops before a state that is not finite is written
        if training.save_recovery is not None:
            training.save_recovery(epoch, update)
    if training.scheduler is not None:
        training.scheduler.step_update(num_updates=done, metric=meter.loss / max(meter.images, 1))
