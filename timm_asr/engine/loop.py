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
    step: int = 0
    images: int = 0
    loss: float = 0.0
    last: float = math.nan
    waited: float = 0.0
    bad_step: int = -1
    started: float = field(default_factory=time.perf_counter)
    _pending: list[torch.Tensor] = field(default_factory=list)
    _counts: list[int] = field(default_factory=list)

    def add(self, loss: torch.Tensor, count: int) -> None:
        self._pending.append(loss.detach())
        self._counts.append(count)
        self.step += 1

    def read(self, epoch: int) -> None:
        """Take in what is pending; a loss that is not finite stops a run of one process here."""
        if not self._pending:
            return
        losses = torch.stack(self._pending).cpu().double()
        bad = torch.isfinite(losses).logical_not().nonzero()
        if len(bad) and self.bad_step < 0:
            self.bad_step = self.step - len(losses) + int(bad[0])
            if not self.distributed:
                raise Stopped(f'the loss became {losses[bad[0]].item()} at step {self.bad_step} of epoch {epoch}')
        counts = torch.tensor(self._counts, dtype=torch.float64)
        self.loss += float((losses * counts).sum())
        self.images += int(counts.sum())
        self.last = losses[-1].item()
        self._pending.clear()
        self._counts.clear()

    def average(self, epoch: int, device: torch.device) -> float:
        """Mean loss over the images of all processes; if it is not finite, all of them stop here together."""
        self.read(epoch)
        dtype = torch.float32 if device.type == 'mps' else torch.float64
        sums = torch.tensor([self.loss, float(self.images)], dtype=dtype, device=device)
        if self.distributed:
            dist.all_reduce(sums)
        average = (sums[0] / sums[1]).item() if sums[1] else math.nan
        if not math.isfinite(average):
            first = torch.tensor(self.bad_step if self.bad_step >= 0 else self.step, device=device)
            if self.distributed:
                dist.all_reduce(first, op=dist.ReduceOp.MIN)
            raise Stopped(f'the loss became {average} at step {int(first)} of epoch {epoch}')
        return average


def _loss_scale(training: Training, batch_size: int) -> float:
    """Factor of the loss of a batch of another size than the average (``--variable-batch-loss-scale``)."""
    mode = training.args.variable_batch_loss_scale
    if not training.args.train_img_sizes or mode == 'none':
        return 1.0
    ratio = batch_size / training.loaders.batch_size
    return ratio ** 0.5 if mode == 'sqrt' else ratio


def _update(training: Training, loss: torch.Tensor, need_update: bool) -> None:
    """Backward, and the optimizer's step where one is due."""
    args, task, optimizer = training.args, training.task, training.optimizer
    second_order = bool(getattr(optimizer, 'is_second_order', False))
    clipped = None
    if args.clip_grad is not None:
        clipped = list(task.get_trainable_module().parameters())
        if args.clip_mode == 'agc':
            clipped = clipped[:-2]  # not the classifier
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
        ``loss`` (mean over the images of all processes), ``images_per_second`` and ``waiting`` (share of the time
        spent waiting for data, 0 to 1), both of this process times their number.

    Raises:
        Stopped: If the loss becomes NaN or infinite.
    """
    args, task, device, loaders = training.args, training.task, training.device, training.loaders
    _switch_mixing(loaders, not (args.mixup_off_epoch and epoch >= args.mixup_off_epoch))
    module = task.get_trainable_module()
    module.train()
    batches, accumulate = len(loaders.train), args.grad_accum_steps
    updates = training.updates_per_epoch
    rest = batches % accumulate
    meter = _Meter(args.distributed)
    # Reading the loss waits for the device; where that costs nothing, a NaN stops the run at once.
    read_always = device.type == 'cpu' and not args.distributed
    training.optimizer.zero_grad()
    waiting_since = time.perf_counter()
    for index, (images, target) in enumerate(stoppable(loaders.train)):
        last = index + 1 == batches
        need_update = last or (index + 1) % accumulate == 0
        share = rest if rest and index >= batches - rest else accumulate
        if args.no_prefetcher:
            images = images.to(device=device, dtype=training.dtype, non_blocking=True)
            target = target.to(device=device, non_blocking=True)
            if loaders.mixup is not None:
                images, target = loaders.mixup(images, target)
        if args.channels_last and images.dim() == 4:
            images = images.contiguous(memory_format=torch.channels_last)
        meter.waited += time.perf_counter() - waiting_since

        with task.no_sync() if args.distributed and not need_update else nullcontext():
            with training.amp_autocast():
                loss = task(images, target)['loss']
            scaled = loss if share == 1 else loss / share
            scale = _loss_scale(training, len(images))
            meter.add(loss, len(images))
            if read_always:
                meter.read(epoch)
            _update(training, scaled if scale == 1.0 else scaled * scale, need_update)

        if need_update:
            _after_update(training, meter, epoch, index, updates, last, images, progress)
        waiting_since = time.perf_counter()
    if hasattr(training.optimizer, 'sync_lookahead'):
        training.optimizer.sync_lookahead()
    average = meter.average(epoch, device)
    seconds = max(time.perf_counter() - meter.started, 1e-9)
    return OrderedDict(
        loss=average, images_per_second=meter.images * args.world_size / seconds, waiting=meter.waited / seconds)


def _after_update(training: Training, meter: _Meter, epoch: int, index: int, updates: int, last: bool,
                  images: torch.Tensor, progress: Progress) -> None:
    args, task = training.args, training.task
    update = index // args.grad_accum_steps
    done = epoch * updates + update + 1
    training.optimizer.zero_grad()
    task.update_ema(step=done)
    if args.synchronize_step:
        synchronize(training.device)
    if update % args.log_interval == 0 or last:
        average = meter.average(epoch, training.device)
        seconds = max(time.perf_counter() - meter.started, 1e-9)
        speed = meter.images * args.world_size / seconds
        data = 100 * meter.waited / seconds
        progress.step(epoch, loss=f'{average:.3g}', lr=f'{training.learning_rate:.2e}', speed=f'{speed:.0f} images/s',
                      data=f'{data:.0f} %')
        progress.line(f'epoch {epoch} step {update + 1:>4}/{updates}  loss {meter.last:.4g} (mean {average:.4g})  '
                      f'lr {training.learning_rate:.3e}  {speed:.1f} images/s  data loading {data:.0f} %')
        if training.save_images is not None:
            from torchvision.utils import save_image
            save_image(images, training.save_images / f'train-batch-{index}.jpg', padding=0, normalize=True)
    else:
        progress.step(epoch)
    if training.save_recovery is not None and args.recovery_interval and (update + 1) % args.recovery_interval == 0:
        training.save_recovery(epoch, update)
    if training.scheduler is not None:
        training.scheduler.step_update(num_updates=done, metric=meter.loss / max(meter.images, 1))


def _switch_mixing(loaders: Loaders, on: bool) -> None:
    if loaders.mixup is not None:
        loaders.mixup.mixup_enabled = on  # type: ignore[attr-defined]
    elif loaders.mixing:
        loaders.train.mixup_enabled = on
