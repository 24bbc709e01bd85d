"""Killed and resumed equals never interrupted, bit for bit."""

import os
import signal
import time
from contextlib import suppress
from types import SimpleNamespace

import kill_runs
import pytest
import torch
from train_helpers import children_of, run, start

from timm_asr.engine.training import Run

COMMON = ['--model', 'resnet20_asr_se', '--num-classes', 3, '--img-size', 16, '-b', 6, '--epochs', 5, '--no-fuse',
          '--lr', 0.05, '--warmup-epochs', 1, '--experiment', 'run', '--checkpoint-hist', 2]
# Beside what the run of kill_runs has already.
WORKERS_PLATEAU = ['--workers', 2, '--sched', 'plateau', '--patience-epochs', 1, '--epochs', 8, '--lr-noise', 0.1, 0.9,
                   '--grad-accum-steps', 2, '--color-jitter', 0.4, '--no-sched-on-updates']
HALF_PRECISION = ['--model-dtype', 'bfloat16', '--cutmix', 1.0, '--no-prefetcher', '--opt', 'lamb']
# The process kills itself, as kill -9 does, at the n-th of the calls that write and rename, or of the updates.
KILL_AT = '''
import os, signal, torch
import timm_asr.engine.loop as loop
count = [0]
def counted(function):
    def wrapper(*args, **kwargs):
        count[0] += 1
        if count[0] == {at}:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **kwargs)
    return wrapper
os.fsync, os.replace, os.link = counted(os.fsync), counted(os.replace), counted(os.link)
loop._after_update = counted(loop._after_update)
'''


@pytest.mark.slow
@pytest.mark.parametrize(('processes', 'kills', 'more'), [(1, 3, []), (2, 3, []), (1, 2, WORKERS_PLATEAU),
                                                         (1, 2, HALF_PRECISION)],
                         ids=['one', 'two', 'workers and plateau', 'half precision'])
def test_killed_at_random_moments(processes, kills, more, tmp_path):
    assert kill_runs.check(tmp_path, kills, processes, more=more) >= 1


@pytest.mark.parametrize(('number', 'workers_too'), [(signal.SIGINT, False), (signal.SIGTERM, True)],
                         ids=['ctrl-c', 'scheduler'])
def test_a_signal_prints_the_command_that_goes_on(images, tmp_path, number, workers_too):
    argv = ['--data-dir', images, *COMMON, '--workers', 2, '--output', tmp_path, '--epochs', 300]
    process = start(argv, tmp_path / 'log')
    last = tmp_path / 'run' / 'last.pth.tar'
    deadline = time.monotonic() + 120
    while not last.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    children = children_of(process.pid) if workers_too else []
    for pid in [process.pid, *children]:
        with suppress(ProcessLookupError):
            os.kill(pid, number)
    process.join(60)
    text = (tmp_path / 'log').read_text()
    assert process.exitcode == 130, text
    assert len(children) >= 2 * workers_too  # two that train, two that validate where these are alive still
    assert 'Traceback' not in text
    assert f'--resume {last}' in text
    assert 'python train.py --data-dir' in text
    torch.load(last, weights_only=True)


def test_recovery_inside_an_epoch(images, tmp_path):
    argv = ['--data-dir', images, *COMMON, '--workers', 0, '--output', tmp_path, '--recovery-interval', 1,
            '--resume', 'auto']
    # Call 11 is the third update; each recovery file takes three calls.
    assert run(argv, tmp_path / 'log', KILL_AT.format(at=11)).code == -signal.SIGKILL
    assert list((tmp_path / 'run').glob('recovery-0-*.pth.tar'))
    more = run(argv, tmp_path / 'log')
    assert more.code == 0, more.text
    assert 'recovery-0-' in more.text
    assert 'at epoch 0' in more.text
    assert not list((tmp_path / 'run').glob('recovery-0-*.pth.tar'))  # the epoch's own checkpoint replaced it


def test_the_command_that_goes_on_starts_as_many_processes(monkeypatch):
    argv = ['--epochs', '3', '--resume', 'auto', '--start-epoch=1', '--no-resume-opt']
    job = SimpleNamespace(argv=argv, prog='timm-asr train', furthest='last.pth.tar')
    assert Run.command(job) == 'timm-asr train --epochs 3 --resume last.pth.tar'
    monkeypatch.setenv('LOCAL_WORLD_SIZE', '2')
    assert Run.command(job) == 'torchrun --nproc-per-node=2 -m timm_asr train --epochs 3 --resume last.pth.tar'
