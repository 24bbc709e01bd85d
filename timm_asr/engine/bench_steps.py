"""One model's inference and training step, ready to be called, with its figures."""

import argparse
import logging
import time
from collections.abc import Callable
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
from .inputs import data_config_of
from .measure import peak_memory, saved_for_backward
from .prepare import autocast, compiled, inference_form

_logger = logging.getLogger(__name__)

_MB = 1e6
# (type of autocast, type of the model and the images)
PRECISIONS: dict[str, tuple[torch.dtype | None, torch.dtype]] = {
    'amp': (torch.float16, torch.float32), 'amp_float16': (torch.float16, torch.float32),
    'amp_bfloat16': (torch.bfloat16, torch.float32), 'float32': (None, torch.float32), 'tf32': (None, torch.float32),
    'float16': (None, torch.float16), 'bfloat16': (None, torch.bfloat16)}
_SUFFIXES = {'reparam': (True, False), 'fold-bn': (True, True)}


def split_name(name: str) -> tuple[str, bool, bool]:
    """``NAME+reparam`` or ``NAME+fold-bn`` as (NAME, reparam, fold_bn)."""
    base, plus, suffix = name.rpartition('+')
    if plus and base and suffix in _SUFFIXES:
        return base, *_SUFFIXES[suffix]
    return name, False, False


def split_asr(name: str) -> tuple[str, str | None]:
    """``NAME+asr-GATE`` as (NAME, GATE), any other name as (NAME, None)."""
    base, plus, suffix = name.rpartition('+')
    if plus and base and suffix.startswith('asr-'):
        return base, suffix.removeprefix('asr-')
    return name, None


def base_of(name: str) -> str:
    """What a name is before its suffixes."""
    return split_asr(split_name(name)[0])[0]


class Step:
    """What inference and training have in common: the model as asked for, and a batch of random images."""

    prefix = ''
    training = False

    def __init__(self, name: str, args: argparse.Namespace, device: torch.device, batch_size: int) -> None:
        base, reparam, fold_bn = split_name(name)
        base, asr = split_asr(base)
        reparam, fold_bn = reparam or args.reparam, fold_bn or args.fold_bn
        self.name, self.device, self.batch_size, self.detail = name, device, batch_size, args.detail
        if self.training and fold_bn:
            raise BadInput(f'{name}: a network whose BatchNorms are folded away is not trained; '
                           'use --bench inference with --fold-bn')
        amp_dtype, dtype = PRECISIONS[args.precision]
        self.autocast = autocast(device, amp_dtype)
        source = open_source(
            base, num_classes=args.num_classes, global_pool=args.gp, in_chans=args.input_size and args.input_size[0],
            img_size=args.img_size, input_size=args.input_size, scriptable=args.torchscript or None, pretrained=False,
            drop_rate=args.drop, drop_path_rate=args.drop_path, drop_block_rate=args.drop_block,
            asr=asr, model_kwargs=args.model_kwargs)
        model = source.model
        model = inference_form(model, name, reparam, fold_bn) if reparam or not self.training else model
        layout = torch.channels_last if args.channels_last else torch.contiguous_format
        model.to(device=device, dtype=dtype, memory_format=layout)
        model.train(self.training)
        self.num_classes = model.num_classes
        self.param_count = count_parameters(model)
        self.input_size = tuple(data_config_of(args, model, source.data_config)['input_size'])
        self.images = torch.randn((batch_size, *self.input_size), device=device, dtype=dtype)
        self.images = self.images.contiguous(memory_format=layout)
        self.eager = model
        self.model = self._finish(model, args)
        _logger.info(f'Model {name} created, param count: {self.param_count}')

    def _finish(self, model: nn.Module, args: argparse.Namespace) -> nn.Module:
        return compiled(model, args)

    @property
    def is_compiled(self) -> bool:
        return self.model is not self.eager

    def __call__(self) -> None:
        raise NotImplementedError

    def about(self) -> dict[str, Any]:
        """Columns that need no clock, without their prefix."""
        return {'batch_size': self.batch_size, 'img_size': self.input_size[-1]}

    def _measure(self, key: str, measure: Callable[[], int]) -> dict[str, float]:
        # Compiled graphs own their memory, and cannot be looked into.
        if self.is_compiled:
            return {}
        return {key: round(measure() / _MB, 2)}


class InferenceStep(Step):
    """A forward pass in eval mode."""

    prefix = 'infer'

    def __call__(self) -> None:
        with torch.inference_mode(), self.autocast():
            self.model(self.images)

    def about(self) -> dict[str, Any]:
        figures = super().about()
        if not self.is_compiled:
            macs, activations = count_operations(self.model, self.images[:1])
            figures |= {'gmacs': round(macs / 1e9, 2), 'macts': round(activations / 1e6, 2)}
        return figures | self._measure('memory_mb', lambda: peak_memory(self, self.device))


class TrainStep(Step):
    """Forward pass, loss, backward pass and update, each in timm's way; the model's auxiliary loss is part of it."""

    prefix = 'train'
    training = True

    def _finish(self, model: nn.Module, args: argparse.Namespace) -> nn.Module:
        if args.grad_checkpointing:
            if not hasattr(model, 'set_grad_checkpointing'):
                raise BadInput(f'--grad-checkpointing: {self.name} has no such mode')
            model.set_grad_checkpointing(True)
        options = {'momentum': args.momentum, 'weight_decay': args.weight_decay, 'eps': args.opt_eps,
                   'betas': args.opt_betas}
        try:
            self.optimizer = create_optimizer_v2(
                model, opt=args.opt, lr=1e-4, **{k: v for k, v in options.items() if v is not None})
        except (ValueError, AssertionError, TypeError) as error:
            raise BadInput(f'--opt {args.opt}: {str(error).splitlines()[0]}') from None
        self.clip = (args.clip_grad, args.clip_mode)
        self.loss = nn.CrossEntropyLoss(label_smoothing=args.smoothing).to(self.device)
        self.target = torch.randint(self.num_classes, (self.batch_size,), device=self.device)
        self.detailed: dict[str, float] = dict.fromkeys(('fwd', 'bwd', 'opt'), 0.0)
        return compiled(model, args)

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
        start = self._now()
        loss = self.forward_loss()
        forward = self._now()
        loss.backward()
        backward = self._now()
        if self.clip[0] is not None:
            dispatch_clip_grad(self.eager.parameters(), self.clip[0], mode=self.clip[1])
        self.optimizer.step()
        for key, seconds in (('fwd', forward - start), ('bwd', backward - forward), ('opt', self._now() - backward)):
            self.detailed[key] += seconds

    def about(self) -> dict[str, Any]:
        figures = super().about()
        figures |= self._measure('memory_mb', lambda: peak_memory(self, self.device))
        return figures | self._measure('saved_mb', lambda: saved_for_backward(self.forward_loss, self.eager))
