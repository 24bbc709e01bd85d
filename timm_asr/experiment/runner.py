"""Make the runs of a plan that are missing, each by ``train.py``'s own code."""

import argparse
import json
import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from multiprocessing import active_children, get_context
from pathlib import Path
from typing import Any

import timm
import torch
import yaml

from ..checkpoints.names import BEST, SUMMARY
from ..checkpoints.provenance import git_commit
from ..checkpoints.read import read_json, read_yaml
from ..engine import training
from ..engine.build import build_on_meta, make_optimizer, make_schedule, title_of
from ..engine.checkpoint import SaveFailed, write_atomically
from ..engine.flags import CORES
from ..engine.progress import setup_logging
from ..engine.summary import read_summary
from ..errors import BadInput, InUse, Stopped
from ..models.counts import count_parameters
from ..version import __version__
from .plan import Plan, Run

OPTIONS, RESULT = 'options.yaml', 'result.json'
Parse = Callable[[Sequence[str]], argparse.Namespace]  #: words of a command line to the options of train.py


def argv_of(run: Run, folder: Path, output: Path, device: str | None = None) -> list[str]:
    """The command line of a run whose options are in ``folder``."""
    line = ['--config', str(folder / OPTIONS), '--output', str(output), f'--experiment={run.name}', '--resume', 'auto']
    return line + (['--device', device] if device else [])


def check_plan(plan: Plan, folder: Path, parse_args: Parse) -> None:
    """Parse the options of every arm and make its model, without memory for the weights, optimizer and schedule.
    ``BadInput``: which arm, and what ``train.py`` says of it; SystemExit after its own sentence about an option.
    """
    for run in plan.runs[:len(plan.arms)]:
        place = folder / run.name
        _write_options(run, place)
        try:
            args = parse_args(argv_of(run, place, folder))
            if args.sched == 'plateau':
                raise BadInput('sched plateau follows validation, and an experiment measures at the end alone')
            if not args.val_split and not args.holdout:
                raise BadInput('no images to measure on: give val_split or holdout')
            make_schedule(make_optimizer(build_on_meta(args), args), args, 1)
        except BadInput as error:
            raise BadInput(f'arm {run.arm.name!r}: {error}') from None


def _write_options(run: Run, place: Path) -> None:
    """Write the options of a run into its folder, or see that it was begun with the same ones."""
    path = place / OPTIONS
    if path.is_file() and any(other != path for other in place.iterdir()):
        before = read_yaml(path)
        differing = sorted(key for key in {*before, *run.options} if before.get(key) != run.options.get(key))
        if differing:
            raise BadInput(f'{place} was begun with another {differing[0]} ({before.get(differing[0])!r} instead of '
                           f'{run.options.get(differing[0])!r}); use another --output')
        return
    try:
        place.mkdir(parents=True, exist_ok=True)
        text = yaml.safe_dump(run.options, sort_keys=True)
        write_atomically(path, lambda file: file.write(text.encode()))
    except (OSError, SaveFailed) as error:
        raise BadInput(f'--output: cannot write into {place} ({error})') from None


def make_run(run: Run, output: Path, parse_args: Parse, device: str | None, budget: float) -> None:
    """Begin a run or go on with it, and write down its last epoch. One that another process is making is left to it.

    A run whose loss stops being finite has an outcome too: it is written down as stopped, and not made again.
    """
    place = output / run.name
    if (place / RESULT).is_file():  # made by another process meanwhile
        return
    _write_options(run, place)
    argv = argv_of(run, place, output, device)
    row: dict[str, Any] = {'arm': run.arm.name, 'seed': run.seed, 'status': 'done'}
    setup_logging()
    job = training.Run(parse_args(argv), argv)
    row |= {'model': title_of(job.args), 'epochs': job.args.epochs, 'images': len(job.datasets[0])}
    row['parameters'] = count_parameters(job.training.task.get_trainable_module())
    try:
        if training.carry_out(job) == 130:
            raise KeyboardInterrupt
        last = read_summary(place / SUMMARY)[-1]
        row |= {'top1': float(last['eval_top1']), 'top5': float(last['eval_top5']), 'nll': float(last['eval_loss']),
                'train_loss': float(last['train_loss'])}
    except InUse:
        return
    except Stopped as stopped:
        if 'the loss became' not in str(stopped):
            raise
        row['status'] = 'stopped'
    row |= {'budget': budget, 'timm_asr': __version__, 'git_commit': git_commit(), 'timm': timm.__version__,
            'torch': torch.__version__}
    for path in (*place.glob('checkpoint-*.pth.tar'), place / BEST):
        path.unlink(missing_ok=True)
    write_atomically(place / RESULT, lambda file: file.write(json.dumps(row, indent=1).encode()))


def _end_with_parent(parent: int, threads: int) -> None:
    """Of a worker: end when the process that started it is gone, so that nobody else's run is trained twice."""
    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.2)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    if 'OMP_NUM_THREADS' not in os.environ:
        torch.set_num_threads(threads)


def missing_runs(plan: Plan, output: Path) -> list[Run]:
    """Those without a result, in the order of the plan."""
    return [run for run in plan.runs if not (output / run.name / RESULT).is_file()]


def make_runs(plan: Plan, output: Path, parse_args: Parse, parallel: int = 1, device: str | None = None) -> None:
    """Make every run that has no result, ``parallel`` at once, on the cores or on the one GPU that they share.

    ``Stopped``: the last ones are being made by other processes, which may share a folder.
    """
    runs = missing_runs(plan, output)
    make = partial(make_run, output=output, parse_args=parse_args, device=device, budget=plan.budget)
    if parallel == 1:
        for run in runs:
            make(run)
    else:
        threads = max(1, CORES // parallel)
        # Fresh processes: forked ones could not use a GPU.
        with ProcessPoolExecutor(parallel, get_context('spawn'), _end_with_parent, (os.getpid(), threads)) as pool:
            try:
                list(pool.map(make, runs))
            except BaseException as error:
                pool.shutdown(wait=False, cancel_futures=True)
                for worker in active_children():  # asked to end, one would begin the next run; its epochs are saved
                    worker.kill()
                if isinstance(error, BrokenProcessPool):
                    raise Stopped('a run was killed, perhaps for want of memory; its epochs are saved: start this '
                                  'again, with a smaller --parallel') from None
                raise
    if rest := missing_runs(plan, output):
        raise Stopped(f'{len(rest)} runs, such as {rest[0].name}, are being made by another process; start this again '
                      'when it has ended')


def read_results(plan: Plan, output: Path) -> list[dict[str, Any]]:
    """A row for each run that is finished: arm by arm, seeds in their order."""
    rows = []
    for run in (run for arm in plan.arms for run in plan.runs if run.arm is arm):
        path = output / run.name / RESULT
        if path.is_file():
            _write_options(run, path.parent)  # which complains about a result of other options
            rows.append({**read_json(path), 'arm': run.arm.name})  # which had another name, if the plan was edited
    return rows


def values_of(rows: Sequence[dict[str, Any]], arm: str, key: str) -> dict[int, float]:
    """Seed -> value, of the runs of an arm that were not stopped."""
    return {row['seed']: row[key] for row in rows if row['arm'] == arm and row['status'] == 'done'}
