"""Saving that survives a kill at any system call, and a metric that is not a number."""

import multiprocessing
import os
import signal

import pytest
import torch

from timm_asr.checkpoints.read import read_checkpoint
from timm_asr.engine.checkpoint import Saver, find_checkpoint

_CONTEXT = multiprocessing.get_context('fork')


def state(epoch):
    return {'state_dict': {'weight': torch.full((100,), float(epoch))}, 'arch': 'x'}


def run_child(function):
    process = _CONTEXT.Process(target=function)
    process.start()
    process.join(60)
    return process.exitcode


def epochs_of(folder):
    return {path.name: torch.load(path, weights_only=True)['epoch'] for path in folder.glob('*.pth.tar')}


METRICS = [50.0, 70.0, 60.0, float('nan'), 70.0, 80.0]


def test_keeps_last_best_and_the_best_few(tmp_path):
    saver = Saver(tmp_path, keep=2)
    for epoch, metric in enumerate(METRICS):
        saver.save(state(epoch), epoch, metric)
    assert (saver.best_metric, saver.best_epoch) == (80.0, 5)
    # Of the two with 70 the older one stays; the one without a metric went first.
    assert epochs_of(tmp_path) == {
        'last.pth.tar': 5, 'model_best.pth.tar': 5, 'checkpoint-5.pth.tar': 5, 'checkpoint-1.pth.tar': 1}
    assert find_checkpoint(tmp_path)[0] == tmp_path / 'last.pth.tar'


def test_smaller_is_better_for_a_loss(tmp_path):
    saver = Saver(tmp_path, decreasing=True, keep=1)
    for epoch, metric in enumerate([0.5, 0.3, float('nan'), 0.4, float('-inf')]):
        saver.save(state(epoch), epoch, metric)
    assert (saver.best_metric, saver.best_epoch) == (0.3, 1)
    assert epochs_of(tmp_path)['model_best.pth.tar'] == 1


def test_a_run_whose_metrics_are_all_nan_has_no_best(tmp_path):
    saver = Saver(tmp_path)
    saver.save(state(0), 0, float('nan'))
    assert saver.best_metric is None
    assert not (tmp_path / 'model_best.pth.tar').exists()
    assert saver.best == tmp_path / 'last.pth.tar'


@pytest.mark.parametrize('when', range(1, 13))
def test_killed_at_any_call_of_a_save(when, tmp_path):
    """SIGKILL at the n-th system call that matters; afterwards the saver catches up as if nothing had happened."""
    names = ('fsync', 'replace', 'link', 'unlink', 'open')

    def save_and_die():
        saver = Saver(tmp_path / 'killed', keep=1)
        for epoch in (0, 1):
            saver.save(state(epoch), epoch, METRICS[epoch])
        count = 0

        def counted(function):
            def wrapper(*args, **kwargs):
                nonlocal count
                count += 1
                if count == when:
                    os.kill(os.getpid(), signal.SIGKILL)
                return function(*args, **kwargs)
            return wrapper

        for name in names:
            setattr(os, name, counted(getattr(os, name)))
        saver.save(state(2), 2, 75.0)
        os._exit(3)

    (tmp_path / 'killed').mkdir()
    code = run_child(save_and_die)
    assert code in (-signal.SIGKILL, 3)
    assert when > 2 or code == -signal.SIGKILL  # the first ones must hit
    _, content = find_checkpoint(tmp_path / 'killed')
    epoch = content['epoch']
    assert epoch in (1, 2)
    assert content['state_dict']['weight'].eq(epoch).all()
    for path in (tmp_path / 'killed').glob('*.pth.tar'):
        read_checkpoint(path)  # no file under a final name is half a file

    resumed = Saver(tmp_path / 'killed', keep=1)
    resumed.load_state_dict(content['saver'])
    resumed.settle(epoch)
    if epoch == 1:
        resumed.save(state(2), 2, 75.0)
    whole = Saver(tmp_path / 'whole', keep=1)
    whole.folder.mkdir()
    for number, metric in enumerate((50.0, 70.0, 75.0)):
        whole.save(state(number), number, metric)
    assert epochs_of(tmp_path / 'killed') == epochs_of(tmp_path / 'whole')
    assert resumed.state_dict() == whole.state_dict()
