"""Speed, memory and size of models, alone or against each other."""

import argparse
import json
import logging
import math
import re
import statistics
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from timm.layers import set_fast_norm
from timm.utils import random_seed

from ..checkpoints.find import check_model_name, expand_names, read_model_list, source_of
from ..errors import BadInput
from .bench_steps import InferenceStep, Step, TrainStep, split_name
from .device import find_device
from .inputs import fast_matmul, with_smaller_batches
from .progress import setup_logging
from .reports import as_markdown, check_results_file, write_results
from .versus import interleave, ratios

_logger = logging.getLogger(__name__)

_STEPS: dict[str, tuple[type[Step], ...]] = {
    'inference': (InferenceStep,), 'train': (TrainStep,), 'both': (InferenceStep, TrainStep), 'profile': ()}


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
            'param_count': _millions(steps[name])}
    return found


def _millions(step: Step) -> float:
    return round(step.param_count / 1e6, 2)


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
    if args.precision == 'tf32' and device.type != 'cuda':
        raise BadInput(f'--precision tf32: a number format of CUDA GPUs; this run is on {device.type}')
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
    if args.results_file and not failed:
        write_results(args.results_file, results, args.results_format)
    print(ratio_table(rows, args.rounds) if args.versus and not failed else as_markdown(rows), end='')
    # The delimiter is what timm's bulk_runner.py looks for.
    print(f'--result\n{json.dumps(results, indent=None if args.versus else 4)}')
    return int(failed)


def _bulk(names: Sequence[str], args: argparse.Namespace, device: torch.device, many: bool) -> list[dict[str, Any]]:
    """The rows of models that run one after another, the fastest first; those that could not be measured come last."""
    rows: list[dict[str, Any]] = []
    try:
        for name in names:
            try:
                if args.bench == 'profile':
                    step = InferenceStep(name, args, device, 1)
                    rows.append({'model': name, **step.about(), 'param_count': _millions(step)})
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
