"""A run's folder and checkpoints: a kill at any system call, files that cannot be trusted, and other runs' files."""

import errno
import io
import multiprocessing
import os
import signal
import time
from argparse import Namespace
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch

from timm_asr.checkpoints.open import open_source
from timm_asr.checkpoints.read import read_checkpoint
from timm_asr.engine import checkpoint as module
from timm_asr.engine.checkpoint import SaveFailed, Saver, find_checkpoint, make_room, open_run_folder, write_atomically
from timm_asr.engine.options import as_yaml
from timm_asr.errors import BadInput, InUse, Stopped


def state(epoch: int) -> dict:
    return {'state_dict': {'weight': torch.full((100,), float(epoch))}, 'arch': 'x', 'optimizer': {}}


def saved(folder: Path, metrics: list[float], **options: object) -> Saver:
    """The saver of a run of as many epochs as there are metrics."""
    folder.mkdir(exist_ok=True)
    saver = Saver(folder, **options)
    for epoch, metric in enumerate(metrics):
        saver.save(state(epoch), epoch, metric)
    return saver


def epochs_of(folder):
    return {path.name: torch.load(path, weights_only=True)['epoch'] for path in folder.glob('*.pth.tar')}


NAN = float('nan')
METRICS = [50.0, 70.0, 60.0, NAN, 70.0, 80.0]


@pytest.mark.parametrize(('options', 'metrics', 'best', 'kept'), [
    # Of the two with 70 the older one stays; the one without a metric goes first.
    ({'keep': 2}, METRICS, (80.0, 5), {5, 1}),
    ({'keep': 1}, [70.0, 70.0], (70.0, 0), {0}),
    ({'keep': 1, 'decreasing': True}, [0.5, 0.3, NAN, 0.4, float('-inf')], (0.3, 1), {1}),
    ({}, [NAN], (None, None), {0})], ids=['few', 'tie', 'loss', 'nan'])
def test_keeps_last_best_and_the_best_few(options, metrics, best, kept, tmp_path):
    saver = saved(tmp_path, metrics, **options)
    assert (saver.best_metric, saver.best_epoch) == best
    files = {'last.pth.tar': len(metrics) - 1, **{f'checkpoint-{epoch}.pth.tar': epoch for epoch in kept}}
    assert epochs_of(tmp_path) == files | ({} if best[1] is None else {'model_best.pth.tar': best[1]})
    assert saver.best == tmp_path / ('last.pth.tar' if best[1] is None else 'model_best.pth.tar')
    assert find_checkpoint(tmp_path)[0] == tmp_path / 'last.pth.tar'


def test_going_on_from_an_older_checkpoint(tmp_path):
    saved(tmp_path, [10.0, 20.0, 15.0, 40.0])
    again = Saver(tmp_path)
    again.load_state_dict(torch.load(tmp_path / 'checkpoint-1.pth.tar', weights_only=True)['saver'])
    again.goes_back = True
    assert epochs_of(tmp_path)['model_best.pth.tar'] == 3  # until the run has gone on
    again.save(state(2), 2, 12.0)
    assert epochs_of(tmp_path)['model_best.pth.tar'] == 1
    assert epochs_of(tmp_path)['checkpoint-3.pth.tar'] == 3  # until its epoch is reached again


def test_numbered_checkpoints_of_timms_run_keep_their_ranks(tmp_path):
    saved(tmp_path, [10.0, 20.0, 15.0, 40.0, 30.0])
    timms = {'checkpoint_files': [('checkpoint-3.pth.tar', 40.0), ('checkpoint-1.pth.tar', 20.0)], 'best_epoch': 3,
             'best_metric': 40.0, 'pending': (4, 30.0)}
    for held, kept in (({}, {0, 1, 2, 3, 4}), (timms, {1, 3, 4})):  # an older one of timm's holds nothing
        again = Saver(tmp_path)
        again.load_state_dict(held)
        again.settle(4)
        assert {epoch for name, epoch in epochs_of(tmp_path).items() if name.startswith('checkpoint-')} == kept
    assert [epoch for epoch, _ in again.ranked] == [3, 4, 1]


@pytest.mark.parametrize('when', range(1, 13))
def test_killed_at_any_call_of_a_save(when, tmp_path):
    """SIGKILL at the n-th system call that matters; afterwards the saver catches up as if nothing had happened."""
    names = ('fsync', 'replace', 'link', 'unlink', 'open')

    def save_and_die():
        saver = saved(tmp_path / 'killed', METRICS[:2], keep=1)
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

    process = multiprocessing.get_context('fork').Process(target=save_and_die)
    process.start()
    process.join(60)
    code = process.exitcode
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
    whole = saved(tmp_path / 'whole', [*METRICS[:2], 75.0], keep=1)
    assert epochs_of(tmp_path / 'killed') == epochs_of(tmp_path / 'whole')
    assert resumed.state_dict() == whole.state_dict()


def options(output: Path, **more: object) -> Namespace:
    return Namespace(**{'output': str(output), 'experiment': '', 'resume': '', 'overwrite': False, 'rank': 0,
                        'distributed': False, 'model': 'resnet20', 'asr': None, **more})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Of a run of three epochs."""
    return saved(tmp_path / 'run', [0.0, 1.0, 2.0]).folder


@pytest.mark.parametrize(('where', 'error', 'said'), [
    ((torch, 'load'), OSError(errno.EIO, 'Input/output error'), r'cannot be read \(Input/output error'),
    ((torch, 'load'), RuntimeError('Attempted to read a PyTorch file with version 99'),
     'is not a checkpoint that this PyTorch reads'),
    ((Path, 'open'), PermissionError(errno.EACCES, 'Permission denied'), r'cannot be read \(Permission denied')])
def test_a_checkpoint_that_cannot_be_read_stops_the_run(folder, monkeypatch, where, error, said):
    with monkeypatch.context() as patched:
        patched.setattr(*where, Mock(side_effect=error))
        with pytest.raises((BadInput, Stopped), match=f'last.pth.tar {said}'):
            find_checkpoint(folder)
    assert len(list(folder.glob('*.pth.tar'))) == 5  # as before: nothing removed


def test_only_what_is_no_checkpoint_is_passed_over(folder):
    """Cut off, empty, or of another kind."""
    last = folder / 'last.pth.tar'
    whole = last.read_bytes()
    for data in (whole[:-200], b'', b'hello'):
        last.unlink()  # the others are links to it
        last.write_bytes(data)
        assert find_checkpoint(folder)[0] == folder / 'checkpoint-2.pth.tar'


def test_a_changed_checkpoint_is_noticed(folder):
    """400 inverted bytes in the middle of the weights, or a changed number: the file opens, and was not written so."""
    last, changed = folder / 'last.pth.tar', io.BytesIO()
    whole, weights = last.read_bytes(), torch.full((100,), 2.0).numpy().tobytes()
    assert whole.count(weights) == 1
    content = torch.load(last, weights_only=True)
    content['saver']['ranked'][1] = [1, 7.0]
    torch.save(content, changed)
    last.unlink()
    for data in (whole.replace(weights, bytes(byte ^ 255 for byte in weights)), changed.getvalue()):
        last.write_bytes(data)
        for opening in (lambda: find_checkpoint(folder), lambda: open_source(last, name='resnet20')):
            with pytest.raises(BadInput, match=r'last.pth.tar is damaged: it holds something else than was written'):
                opening()


def test_another_runs_checkpoints_stay(folder):
    before = {path.name: path.read_bytes() for path in folder.glob('*.pth.tar')}
    with pytest.raises(BadInput, match='holds the checkpoints of another run: go on with it') as error:
        open_run_folder(options(folder.parent, experiment='run'), 16)
    assert '--overwrite' in str(error.value)
    assert {path.name: path.read_bytes() for path in folder.glob('*.pth.tar')} == before
    for path in folder.glob('*.pth.tar'):
        path.rename(folder.parent / path.name)
    for name in ('model.safetensors', 'config.json', 'metrics.json', 'summary.csv', 'curve.png', 'attention.png'):
        (folder / name).touch()
    for resume in ('', 'auto'):
        with pytest.raises(BadInput, match='holds the network of another run: replace it'):
            open_run_folder(options(folder.parent, experiment='run', resume=resume), 16)
    for path in folder.parent.glob('*.pth.tar'):
        path.rename(folder / path.name)
    (folder / 'mine.pth.tar').write_bytes(before['last.pth.tar'])
    with pytest.raises(BadInput, match='holds the checkpoints of another run'):
        open_run_folder(options(folder.parent, resume=str(folder / 'mine.pth.tar')), 16)
    (folder / 'mine.pth.tar').unlink()
    _, found, lock = open_run_folder(options(folder.parent, experiment='run', overwrite=True), 16)
    lock.close()
    assert len(list(folder.glob('*.pth.tar'))) == len(before)  # until the run is known to be possible
    make_room(folder, found, overwrite=True)
    assert [path.name for path in folder.iterdir()] == ['.lock']


def test_a_folder_of_this_second_gets_a_number(tmp_path, monkeypatch):
    monkeypatch.setattr('timm_asr.engine.checkpoint.datetime', type('Fixed', (), {'now': staticmethod(
        lambda: __import__('datetime').datetime(2026, 1, 2, 3, 4, 5))}))
    made = [open_run_folder(options(tmp_path), 32) for _ in range(2)]
    assert [folder.name for folder, *_ in made] == ['20260102-030405-resnet20-32', '20260102-030405.2-resnet20-32']


def test_a_folder_that_cannot_be_locked_is_used(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(module.fcntl, 'lockf', Mock(side_effect=OSError(errno.ENOLCK, 'No locks available')))
    module._hold(tmp_path).close()
    assert 'cannot be locked (No locks available): start no second run there' in caplog.text


def test_a_live_run_holds_its_folder(folder):
    def hold(ready):
        lock = open_run_folder(options(folder.parent, experiment='run', resume='auto'), 16)
        ready.set()
        time.sleep(100)
        return lock

    context = multiprocessing.get_context('fork')
    ready = context.Event()
    process = context.Process(target=hold, args=(ready,))
    process.start()
    ready.wait()
    with pytest.raises(InUse, match='another run is writing into'):
        open_run_folder(options(folder.parent, experiment='run', resume='auto'), 16)
    process.kill()
    process.join()
    open_run_folder(options(folder.parent, experiment='run', resume='auto'), 16)[-1].close()  # it died with the process


def test_recovery_and_temporary_files_belong_to_their_run(folder, monkeypatch):
    """A run that goes on from an earlier checkpoint must not meet what it did before; one in the folder of another
    run must not meet that run's."""
    saver = Saver(folder)
    monkeypatch.chdir(folder)
    saver.save_recovery(state(7), 7, 4)
    for name in ('.last.pth.tar.1-ab.tmp', '.of-an-editor.tmp'):
        (folder / name).write_text('left by a kill')
    for name, rest in (('recovery-7-4.pth.tar', 1), ('checkpoint-1.pth.tar', 0)):  # as the line after Ctrl-C has it
        found, checkpoint, lock = open_run_folder(options(folder.parent, resume=name), 16)
        lock.close()
        assert (found, checkpoint[0].name) == (folder.resolve(), name)
        assert list(folder.glob('recovery*'))
        make_room(found, checkpoint, overwrite=False)
        assert len(list(folder.glob('recovery*'))) == rest
    assert [path.name for path in folder.glob('.*.tmp')] == ['.of-an-editor.tmp']
    saver.save_recovery(state(7), 7, 4)
    _, checkpoint, lock = open_run_folder(options(folder.parent, experiment='run', overwrite=True), 16)
    lock.close()
    assert checkpoint is None
    make_room(folder, checkpoint, overwrite=True)
    assert not list(folder.glob('*.pth.tar'))


def test_the_newest_run_is_the_one_written_last(tmp_path):
    for name, age in (('20260101-000000-resnet20-32', 10), ('20260202-000000-resnet20-32', 1000)):
        for path in saved(tmp_path / name, [1.0]).folder.glob('*.pth.tar'):
            os.utime(path, (time.time() - age,) * 2)
    found, checkpoint, lock = open_run_folder(options(tmp_path, resume='auto'), 32)
    lock.close()
    assert found.name == '20260101-000000-resnet20-32'
    assert checkpoint[0].name == 'last.pth.tar'


@pytest.mark.parametrize(('key', 'value'), [
    ('seed', 1), ('data_dir', 'b'), ('dataset', 'digits'), ('model_kwargs', {'channels': (1, 2)}),
    ('last_norm_init', 0.5)])
def test_the_newest_run_has_the_same_data_seed_and_model_keywords(key, value, tmp_path):
    folder = saved(tmp_path / '20260101-000000-resnet20-32', [1.0]).folder
    (folder / 'args.yaml').write_text(as_yaml({key: value}))
    ours = {'seed': 0, 'data_dir': 'a', 'dataset': '', 'model_kwargs': {}, 'last_norm_init': None}
    for own, same in ((ours, False), ({**ours, key: value}, True)):
        found, checkpoint, lock = open_run_folder(options(tmp_path, resume='auto', **own), 32)
        lock.close()
        assert (found == folder) == (checkpoint is not None) == same


def test_a_link_in_the_place_of_a_temporary_file_is_not_followed(tmp_path, monkeypatch):
    monkeypatch.setattr(module, '_new_name_beside', lambda path: path.with_name('.x.tmp'))
    (tmp_path / 'elsewhere').write_text('precious')
    (tmp_path / '.x.tmp').symlink_to(tmp_path / 'elsewhere')
    with pytest.raises(SaveFailed, match='File exists'):
        write_atomically(tmp_path / 'x', lambda file: file.write(b'new'))
    assert (tmp_path / 'elsewhere').read_text() == 'precious'


def test_a_disk_that_is_full_read_only_or_not_mounted_says_so(tmp_path, monkeypatch):
    class Full:
        """What torch.save meets: each write fails, and then torch's own error about where the file ends."""

        def __init__(self, file):
            self.file = file

        def write(self, data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        def flush(self):
            self.file.flush()

    with pytest.raises(SaveFailed, match=r'x could not be written \(No space left on device\)'):
        write_atomically(tmp_path / 'x', lambda file: torch.save({'a': torch.ones(9)}, Full(file)))
    (tmp_path / 'away').symlink_to(tmp_path / 'unmounted' / 'away')
    with pytest.raises(BadInput, match='cannot write into the folder'):
        open_run_folder(options(tmp_path / 'away'), 16)
    monkeypatch.setattr(Path, 'mkdir', Mock(side_effect=OSError(errno.EROFS, os.strerror(errno.EROFS))))
    with pytest.raises(BadInput, match=r'cannot write into the folder .*out \(Read-only file system\)'):
        open_run_folder(options(tmp_path / 'out'), 16)
