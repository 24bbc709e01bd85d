"""Speed, memory and size of models, alone or against each other."""

import argparse
import json
import logging
import math
import re
import statistics
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from timm.layers import set_fast_norm
from timm.optim import create_optimizer_v2, optimizer_kwargs
from timm.utils import dispatch_clip_grad, random_seed
from torch import nn

from ..checkpoints.find import check_model_name, expand_names, read_model_list, source_of
from ..checkpoints.open import open_source
from ..errors import BadInput
from ..gates.passes import detached
from ..models.auxiliary import auxiliary_loss
from ..models.counts import count_operations, count_parameters
from .build import checkpoint_gradients
from .device import find_device, synchronize
from .inputs import DTYPES, autocast, compiled, data_config_of, fast_matmul, inference_form, with_smaller_batches
from .progress import setup_logging
from .reports import as_markdown, check_results_file, write_results
from .versus import interleave, ratios

_logger = logging.getLogger(__name__)


def split_name(name: str) -> tuple[str, str | None, str | None]:
    """``NAME[+asr-GATE][+reparam|+fold-bn]`` as (NAME, GATE, ``'reparam'`` or ``'fold-bn'``)."""
    base, gate, form = re.fullmatch(r'(.+?)(?:\+asr-(\w+))?(?:\+(reparam|fold-bn))?', name).groups()  # type: ignore[union-attr]
    return base, gate, form


def saved_for_backward(forward: Callable[[], object], model: nn.Module) -> int:
    """Bytes that autograd keeps from a forward pass (with its loss) for the backward pass. Each storage counts once;
    parameters and buffers of the model, which are there anyway, do not.
    """
    own = {t.untyped_storage()._cdata for t in (*model.parameters(), *model.buffers())}
    saved: dict[int, torch.UntypedStorage] = {}  # which keeps them, or a freed storage's address would be used again

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            saved[storage._cdata] = storage
        return detached(tensor)

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        forward()
    return sum(storage.nbytes() for storage in saved.values())


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
        count = count_parameters(model)
        self.millions = round(count / 1e6, 2)
        self.input_size = tuple(data_config_of(args, model, source.data_config)['input_size'])
        self.images = torch.randn((batch_size, *self.input_size), device=device, dtype=dtype)
        self.images = self.images.contiguous(memory_format=layout)
        self.eager = model
        self._prepare(args)
        self.model = compiled(model, args)
        _logger.info(f'Model {name} created, param count: {count}')

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
        self.eager.zero_grad()  # gradients of the step before
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
            checkpoint_gradients(self.eager, self.name)
        options = optimizer_kwargs(argparse.Namespace(**{**vars(args), 'lr': 1e-4}))
        try:
            self.optimizer = create_optimizer_v2(self.eager, **options)
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


_STEPS: dict[str, tuple[type[Step], ...]] = {
    'inference': (InferenceStep,), 'train': (TrainStep,), 'both': (InferenceStep, TrainStep)}


def measure(names: Sequence[str], args: argparse.Namespace, device: torch.device) -> list[dict[str, Any]]:
    """The rows of models that run in turns in this process; ratios are to the first, whose image size all take.

    Columns have the prefix ``infer_`` or ``train_``: ``samples_per_sec`` and ``step_time`` (ms) of the median round, of
    several models ``time_ratio`` and its quartiles, and those of :meth:`Step.about`; ``error`` in place of them where
    no batch is small enough.
    """
    rows: dict[str, dict[str, Any]] = {name: {'model': name} for name in names}
    for kind in _STEPS[args.bench]:
        found = with_smaller_batches(partial(_measure, kind, names, args, device), args.batch_size, 'benchmark',
                                     not args.no_retry)
        if 'error' in found:
            return [row | found for row in rows.values()]
        for name, row in rows.items():
            row.pop('param_count', None)  # comes last
            row |= found[name]
    return list(rows.values())


def _measure(kind: type[Step], names: Sequence[str], args: argparse.Namespace, device: torch.device,
             batch_size: int) -> dict[str, Any]:
    """Of each model, the columns of one kind of step."""
    if device.type == 'cuda':
        torch.cuda.empty_cache()
    random_seed(args.seed)
    first = kind(names[0], args, device, batch_size)
    same = {'img_size': None, 'input_size': first.input_size}
    if source_of(split_name(names[0])[0]) != 'registry':  # a checkpoint: the others tell as many classes apart
        same['num_classes'] = first.num_classes
    others = argparse.Namespace(**{**vars(args), **same})
    steps = {names[0]: first} | {name: kind(name, others, device, batch_size) for name in names[1:]}
    rounds = args.rounds if len(names) > 1 else 1
    iters = math.ceil(args.num_bench_iter / rounds)
    _logger.info(f'Running {kind.prefix} of {", ".join(names)}: {rounds} rounds of {iters} steps with batch size '
                 f'{batch_size} and input size {first.input_size}.')
    times = interleave(steps, rounds=rounds, iters=iters, warmup=args.num_warm_iter, device=device)
    found = {}
    for name, spread in ratios(times, names[0]).items():
        seconds = statistics.median(times[name])
        over = zip(('time_ratio', 'time_ratio_q1', 'time_ratio_q3'), spread, strict=True) if len(names) > 1 else ()
        figures = {'samples_per_sec': round(batch_size / seconds, 2), 'step_time': round(1000 * seconds, 3),
                   **{key: round(value, 4) for key, value in over}, **steps[name].about()}
        found[name] = {f'{kind.prefix}_{key}': value for key, value in figures.items()} | {
            'param_count': steps[name].millions}
    return found


def _profile(name: str, args: argparse.Namespace, device: torch.device, batch_size: int) -> dict[str, Any]:
    """The columns of a model that do not take time."""
    step = InferenceStep(name, args, device, batch_size)
    return {**step.about(), 'param_count': step.millions}


def ratio_table(rows: Sequence[dict[str, Any]], rounds: int) -> str:
    """What ``--versus`` prints: how many times as long as the first model each one takes, with quartiles."""
    columns = [(prefix, what) for prefix, what in (('infer', 'inference'), ('train', 'training step'))
               if f'{prefix}_time_ratio' in rows[0]]

    def cell(row: dict[str, Any], prefix: str) -> str:
        key = f'{prefix}_time_ratio'
        if row is rows[0]:
            return f'{row[f"{prefix}_step_time"]:.3g} ms'
        return f'{row[key]:.3f} ({row[f"{key}_q1"]:.3f}-{row[f"{key}_q3"]:.3f})'

    table = [{'model': row['model'], **{what: cell(row, prefix) for prefix, what in columns},
              'parameters, M': row['param_count']} for row in rows]
    return as_markdown(table) + (f'Times are multiples of those of {rows[0]["model"]}: the median of {rounds} rounds, '
                                 'and the quartiles.\n')


def _names(args: argparse.Namespace) -> tuple[list[str], bool]:
    """The models to measure, each known to exist, and whether they are a list."""
    found = read_model_list(args.model_list) if args.model_list else expand_names(
        args.model, pretrained=args.model == 'all', exclude=['*in21k'])
    names = found or [args.model]
    if args.asr:  # those of --versus say it themselves
        names = [re.sub(r'(\+reparam|\+fold-bn)?$', rf'+asr-{args.asr}\1', name, count=1) for name in names]
    names = list(dict.fromkeys([*names, *(args.versus or [])]))
    for name in names:
        base = split_name(name)[0]
        if not source_of(base) and not Path(base).exists():
            check_model_name(base)
    if args.versus and len(names) < 2:
        raise BadInput(f'--versus {names[0]}: name another model than --model')
    return names, found is not None


def benchmark(args: argparse.Namespace, *_: Any) -> int:
    """Measure what the options name, print and write the results; returns the exit status."""
    setup_logging()
    device = find_device(args.device)
    check_results_file(args.results_file)
    if args.amp:
        args.precision = f'amp_{args.amp_dtype}'
    for flag in ('batch_size', 'num_bench_iter', 'rounds'):
        if getattr(args, flag) < 1:
            raise BadInput(f'--{flag.replace("_", "-")} must be at least 1')
    if args.versus and args.bench == 'profile':
        raise BadInput('--versus compares times: use --bench inference, train or both')
    names, many = _names(args)
    fast_matmul(device)
    set_fast_norm(args.fast_norm)
    _logger.info(f'Benchmarking on {device} in {args.precision} precision. '
                 f'{"NHWC" if args.channels_last else "NCHW"} layout. {torch.get_num_threads()} CPU threads.')
    rows = measure(names, args, device) if args.versus else _bulk(names, args, device, many)
    results = rows if args.versus or many else rows[0]
    failed = all('error' in row for row in rows)
    print(ratio_table(rows, args.rounds) if args.versus and not failed else as_markdown(rows), end='')
    # The delimiter is what timm's bulk_runner.py looks for.
    print(f'--result\n{json.dumps(results, indent=None if args.versus else 4)}')
    if args.results_file and not failed:
        write_results(args.results_file, results, args.results_format)
    return int(failed)


def _bulk(names: Sequence[str], args: argparse.Namespace, device: torch.device, many: bool) -> list[dict[str, Any]]:
    """The rows of models that run one after another, the fastest first; those that could not be measured come last."""
    rows: list[dict[str, Any]] = []
    try:
        for name in names:
            try:
                if args.bench == 'profile':
                    found = with_smaller_batches(partial(_profile, name, args, device), 1, 'profile', retry=False)
                    rows.append({'model': name, **found})
                else:
                    rows += measure([name], args, device)
            except BadInput as error:
                if not many:
                    raise
                _logger.error(str(error))
                rows.append({'model': name, 'error': str(error)})
    except KeyboardInterrupt:
        if not rows:
            raise
        _logger.warning(f'Interrupted: {len(rows)} of {len(names)} models are measured.')
    key = {'train': 'train_samples_per_sec', 'profile': 'gmacs'}.get(args.bench, 'infer_samples_per_sec')
    return sorted(rows, key=lambda row: row.get(key, -1), reverse=True)
