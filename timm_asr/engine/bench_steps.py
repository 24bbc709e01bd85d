"""One model's inference and training step, ready to be called, with its figures."""

import argparse
import logging
import re
import statistics
import time
from collections import deque
from itertools import pairwise
from typing import Any

import torch
from timm.optim import create_optimizer_v2
from timm.utils import dispatch_clip_grad
from torch import nn

from ..checkpoints.open import open_source
from ..errors import BadInput
from ..models.auxiliary import auxiliary_loss
from ..models.counts import count_operations, count_parameters
from .device import synchronize
from .inputs import DTYPES, autocast, compiled, data_config_of, inference_form
from .operations import saved_for_backward

_logger = logging.getLogger(__name__)


def split_name(name: str) -> tuple[str, str | None, str | None]:
    """``NAME[+asr-GATE][+reparam|+fold-bn]`` as (NAME, GATE, ``'reparam'`` or ``'fold-bn'``)."""
    base, gate, form = re.fullmatch(r'(.+?)(?:\+asr-(\w+))?(?:\+(reparam|fold-bn))?', name).groups()  # type: ignore[union-attr]
    return base, gate, form


class Step:
    """What inference and training have in common: the model as asked for, and a batch of random images."""

    prefix = ''
    training = False

    def __init__(self, name: str, args: argparse.Namespace, device: torch.device, batch_size: int) -> None:
        base, gate, form = split_name(name)
        fold_bn = form == 'fold-bn' or args.fold_bn
        reparam = form == 'reparam' or fold_bn or args.reparam
        self.name, self.device, self.batch_size, self.detail = name, device, batch_size, args.detail
        if self.training and fold_bn:
            raise BadInput(f'{name}: a network whose BatchNorms are folded away is not trained; '
                           'use --bench inference with --fold-bn')
        # amp, amp_bfloat16, bfloat16, ...: what autocast computes in, and what the model and the images are.
        amp, dtype = args.precision.startswith('amp'), DTYPES.get(args.precision, torch.float32)
        low = torch.bfloat16 if args.precision == 'amp_bfloat16' else torch.float16
        self.autocast = autocast(device, low if amp else None)
        source = open_source(
            base, num_classes=args.num_classes, global_pool=args.gp, in_chans=args.input_size and args.input_size[0],
            img_size=args.img_size, input_size=args.input_size, scriptable=args.torchscript or None, pretrained=False,
            drop_rate=args.drop, drop_path_rate=args.drop_path, drop_block_rate=args.drop_block,
            asr=gate, model_kwargs=args.model_kwargs)
        model = source.model
        if reparam or not self.training:
            model = inference_form(model, name, reparam, fold_bn)
        layout = torch.channels_last if args.channels_last else torch.contiguous_format
        model.to(device=device, dtype=dtype, memory_format=layout)  # type: ignore[call-overload]
        model.train(self.training)
        self.num_classes = model.num_classes
        self.param_count = count_parameters(model)
        self.input_size = tuple(data_config_of(args, model, source.data_config)['input_size'])
        self.images = torch.randn((batch_size, *self.input_size), device=device, dtype=dtype)
        self.images = self.images.contiguous(memory_format=layout)
        self.eager = model
        self._prepare(args)
        self.model = compiled(model, args)
        _logger.info(f'Model {name} created, param count: {self.param_count}')

    def _prepare(self, args: argparse.Namespace) -> None:
        """What a kind of step needs besides the model, before that is compiled."""

    def __call__(self) -> None:
        raise NotImplementedError

    def about(self) -> dict[str, Any]:
        """Columns without their prefix: batch and image size, on CUDA ``memory_mb`` (peak of a step, 10^6 bytes), for
        inference ``gmacs`` and ``macts``, for training ``saved_mb`` (kept for the backward pass), and with detail
        ``fwd_time``, ``bwd_time`` and ``opt_time`` (ms).
        """
        figures = {'batch_size': self.batch_size, 'img_size': self.input_size[-1]}
        # A compiled graph owns its memory, and cannot be looked into.
        return figures if self.model is not self.eager else figures | self._measured()

    def _measured(self) -> dict[str, float]:
        if self.device.type != 'cuda':
            return {}
        torch.cuda.synchronize(self.device)
        torch.cuda.reset_peak_memory_stats(self.device)
        before = torch.cuda.memory_allocated(self.device)
        self()
        torch.cuda.synchronize(self.device)
        return {'memory_mb': _megabytes(torch.cuda.max_memory_allocated(self.device) - before)}


def _megabytes(count: int) -> float:
    return round(count / 1e6, 2)


class InferenceStep(Step):
    """A forward pass in eval mode."""

    prefix = 'infer'

    def __call__(self) -> None:
        with torch.inference_mode(), self.autocast():
            self.model(self.images)

    def _measured(self) -> dict[str, float]:
        macs, activations = count_operations(self.model, self.images[:1])
        return {'gmacs': round(macs / 1e9, 2), 'macts': round(activations / 1e6, 2), **super()._measured()}


class TrainStep(Step):
    """Forward pass, loss, backward pass and update, each in timm's way; the model's auxiliary loss is part of it."""

    prefix = 'train'
    training = True

    def _prepare(self, args: argparse.Namespace) -> None:
        if args.grad_checkpointing:
            if not hasattr(self.eager, 'set_grad_checkpointing'):
                raise BadInput(f'--grad-checkpointing: {self.name} has no such mode')
            self.eager.set_grad_checkpointing(True)  # type: ignore[operator]
        options = {'momentum': args.momentum, 'weight_decay': args.weight_decay, 'eps': args.opt_eps,
                   'betas': args.opt_betas}
        try:
            self.optimizer = create_optimizer_v2(
                self.eager, opt=args.opt, lr=1e-4, **{k: v for k, v in options.items() if v is not None})
        except (ValueError, AssertionError, TypeError) as error:
            raise BadInput(f'--opt {args.opt}: {str(error).splitlines()[0]}') from None
        self.clip = (args.clip_grad, args.clip_mode)
        self.loss = nn.CrossEntropyLoss(label_smoothing=args.smoothing).to(self.device)
        self.target = torch.randint(self.num_classes, (self.batch_size,), device=self.device)
        self.parts: deque[list[float]] = deque(maxlen=args.num_bench_iter)  # seconds of each step's three parts

    def forward_loss(self) -> torch.Tensor:
        with self.autocast():
            output = self.model(self.images)
            output = output[0] if isinstance(output, tuple | list) else output
            return self.loss(output, self.target) + auxiliary_loss(self.eager)

    def _now(self) -> float:
        if self.detail:
            synchronize(self.device)
        return time.perf_counter()

    def __call__(self) -> None:
        self.optimizer.zero_grad()
        times = [self._now()]
        loss = self.forward_loss()
        times.append(self._now())
        loss.backward()
        times.append(self._now())
        if self.clip[0] is not None:
            dispatch_clip_grad(self.eager.parameters(), self.clip[0], mode=self.clip[1])
        self.optimizer.step()
        times.append(self._now())
        self.parts.append([end - start for start, end in pairwise(times)])

    def about(self) -> dict[str, Any]:
        names = ('fwd_time', 'bwd_time', 'opt_time') if self.detail else ()
        return {name: round(1000 * statistics.fmean(seconds), 3)
                for name, seconds in zip(names, zip(*self.parts, strict=True), strict=False)} | super().about()

    def _measured(self) -> dict[str, float]:
        return {**super()._measured(), 'saved_mb': _megabytes(saved_for_backward(self.forward_loss, self.eager))}
