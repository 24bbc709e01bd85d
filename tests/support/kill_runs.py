"""Kill a training run at random moments, resume it, and compare with one that was never killed, bit for bit.

    python tests/support/kill_runs.py --kills 100 --processes 2

A run of a few seconds is trained whole once. Then it is started again and again with ``--resume auto``; each time all
of its processes get SIGKILL after a random time. Whenever one reaches its end, its checkpoints and its summary are
compared with the whole run's, and the next one starts anew.
"""

import argparse
import random
import shutil
import signal
import socket
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm
from train_helpers import make_images, start

from timm_asr.checkpoints.read import read_checkpoint

ARGV = ['--model', 'resnet20_asr_se', '--num-classes', 3, '--img-size', 16, '-b', 6, '--epochs', 5, '--no-fuse',
        '--lr', 0.05, '--warmup-epochs', 1, '--experiment', 'run', '--checkpoint-hist', 2, '--workers', 0,
        '--model-ema', '--model-ema-decay', 0.9, '--model-ema-warmup', '--mixup', 0.2, '--drop', 0.1,
        '--aa', 'rand-m5-mstd0.5', '--reprob', 0.3, '--opt', 'adamw', '--sched-on-updates', '--resume', 'auto']
WORLD = """import os
os.environ.update(RANK='{rank}', LOCAL_RANK='{rank}', WORLD_SIZE='{processes}', MASTER_ADDR='127.0.0.1',
                  MASTER_PORT='{port}')
"""


def outcome(folder: Path) -> tuple[dict[str, Any], bytes]:
    """All that must be equal: the checkpoints, their names, and the summary."""
    files = {path.name: read_checkpoint(path) for path in folder.glob('*.pth.tar')}  # which compares the hash of all
    for content in files.values():
        for key in ('output', 'resume'):
            content['args'].pop(key)
    return files, (folder / 'summary.csv').read_bytes()


def assert_same(a: Any, b: Any, where: str = 'checkpoint') -> None:
    """Equal to the last bit, whatever it is made of; ``where`` is what the message calls it."""
    assert type(a) is type(b), where
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    elif isinstance(a, dict):
        assert list(a) == list(b), where
        for key in a:
            assert_same(a[key], b[key], f'{where}[{key!r}]')
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same(x, y, f'{where}[{i}]')
    else:
        assert a == b, where


def go(argv: list, folder: Path, processes: int, seconds: float, setup: str = '') -> list[int]:
    """Run until the end or until ``seconds`` have passed, when all processes are killed; returns their statuses.

    Each runs the Python code ``setup`` first, and says what it says in ``log`` and its rank.
    """
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    world = WORLD if processes > 1 else ''
    started = [start(argv, folder / f'log{rank}', world.format(rank=rank, processes=processes, port=port) + setup)
               for rank in range(processes)]
    end = time.monotonic() + seconds
    for process in started:
        process.join(max(0.0, end - time.monotonic()))
    for process in started:
        process.kill()
    for process in started:
        process.join()
    return [process.exitcode for process in started]


def check(folder: Path, kills: int, processes: int, seed: int = 0, more: Sequence = ()) -> int:
    """Kill ``kills`` times, with ``more`` options; returns how many runs reached their end and were equal.

    Raises:
        AssertionError: A run ended by itself with another status than 0, or differs from the whole one.
    """
    argv = ['--data-dir', make_images(folder / 'images'), *ARGV, *more]
    began = time.monotonic()
    codes = go([*argv, '--output', folder / 'whole'], folder, processes, 300)
    assert codes == [0] * processes, (folder / 'log0').read_text()
    whole, seconds = outcome(folder / 'whole' / 'run'), time.monotonic() - began
    moments, done, killed = random.Random(seed), 0, 0
    shown = tqdm(total=kills, unit='kill', disable=None)
    while killed < kills or not done:
        limit = moments.uniform(0, seconds) if killed < kills else 300
        codes = go([*argv, '--output', folder / 'killed'], folder, processes, limit)
        if -signal.SIGKILL in codes:
            killed += 1
            shown.update()
            continue
        assert codes == [0] * processes, (folder / 'log0').read_text()
        assert_same(whole, outcome(folder / 'killed' / 'run'), f'after {killed} kills')
        shutil.rmtree(folder / 'killed')
        done += 1
    return done


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--kills', type=int, default=100)
    parser.add_argument('--processes', type=int, default=1)
    parser.add_argument('--seed', type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        runs = check(Path(scratch), args.kills, args.processes, args.seed)
    print(f'{args.kills} kills of {args.processes} process(es): {runs} runs reached their end, each equal bit for bit')
