"""What a run may touch: its own folder, nobody else's; and what it does with a checkpoint that it cannot trust."""

import errno
import io
import multiprocessing
import os
import time
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from train_helpers import run

from timm_asr.checkpoints.open import open_source
from timm_asr.data import create_dataset
from timm_asr.engine import checkpoint as module
from timm_asr.engine.checkpoint import SaveFailed, Saver, find_checkpoint, write_atomically
from timm_asr.engine.run_folder import open_run_folder
from timm_asr.errors import BadInput, Stopped

ARGV = ['--model', 'resnet20_asr_se', '--img-size', 16, '-b', 6, '--epochs', 2, '--no-fuse', '--lr', 0.05,
        '--num-classes', 3, '-j', 0]


def state(epoch: int) -> dict:
    return {'state_dict': {'weight': torch.full((100,), float(epoch))}, 'arch': 'x', 'optimizer': {}}


def options(output: Path, **more: object) -> Namespace:
    return Namespace(**{'output': str(output), 'experiment': '', 'resume': '', 'overwrite': False, 'rank': 0,
                        'distributed': False, 'model': 'resnet20', 'asr': None, **more})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Of a run of three epochs."""
    saver = Saver(tmp_path / 'run')
    saver.folder.mkdir()
    for epoch in range(3):
        saver.save(state(epoch), epoch, float(epoch))
    return saver.folder


@pytest.mark.parametrize(('error', 'said'), [
    (OSError(errno.EIO, 'Input/output error'), r'cannot be read \(Input/output error'),
    (OSError(errno.ENOMEM, 'Cannot allocate memory'), r'cannot be read \(Cannot allocate'),
    (RuntimeError('Attempted to read a PyTorch file with version 99'), 'is not a checkpoint that this PyTorch reads')])
def test_a_checkpoint_that_cannot_be_read_stops_the_run(folder, monkeypatch, error, said):
    def fails(*args, **kwargs):
        raise error

    monkeypatch.setattr(torch, 'load', fails)
    with pytest.raises((BadInput, Stopped), match=f'last.pth.tar {said}'):
        open_run_folder(options(folder.parent, experiment='run', resume='auto'), 16)
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
    *_, lock = open_run_folder(options(folder.parent, experiment='run', overwrite=True), 16)
    lock.close()
    assert not list(folder.glob('*.pth.tar'))


def test_a_folder_of_this_second_gets_a_number(tmp_path, monkeypatch):
    monkeypatch.setattr('timm_asr.engine.run_folder.datetime', type('Fixed', (), {'now': staticmethod(
        lambda: __import__('datetime').datetime(2026, 1, 2, 3, 4, 5))}))
    made = [open_run_folder(options(tmp_path), 32) for _ in range(2)]
    assert [folder.name for folder, *_ in made] == ['20260102-030405-resnet20-32', '20260102-030405.2-resnet20-32']


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
    with pytest.raises(BadInput, match='another run is writing into'):
        open_run_folder(options(folder.parent, experiment='run', resume='auto'), 16)
    process.kill()
    process.join()
    open_run_folder(options(folder.parent, experiment='run', resume='auto'), 16)[-1].close()  # it died with the process


def test_recovery_and_temporary_files_belong_to_their_run(folder):
    """A run that goes on from an earlier checkpoint must not meet what it did before; one in the folder of another
    run must not meet that run's."""
    saver = Saver(folder)
    saver.save_recovery(state(7), 7, 4)
    (folder / '.last.pth.tar.1-ab.tmp').write_text('left by a kill')
    found, checkpoint, lock = open_run_folder(options(folder.parent, resume=str(folder / 'checkpoint-1.pth.tar')), 16)
    lock.close()
    assert (found, checkpoint[0].name) == (folder.resolve(), 'checkpoint-1.pth.tar')
    assert not list(folder.glob('recovery*')) + list(folder.glob('.*.tmp'))
    saver.save_recovery(state(7), 7, 4)
    _, checkpoint, lock = open_run_folder(options(folder.parent, experiment='run', overwrite=True), 16)
    lock.close()
    assert checkpoint is None
    assert not list(folder.glob('*.pth.tar'))


def test_the_newest_run_is_the_one_written_last(tmp_path):
    for name, age in (('20260101-000000-resnet20-32', 10), ('20260202-000000-resnet20-32', 1000)):
        saver = Saver(tmp_path / name)
        saver.folder.mkdir()
        saver.save(state(0), 0, 1.0)
        for path in saver.folder.glob('*.pth.tar'):
            os.utime(path, (time.time() - age,) * 2)
    found, checkpoint, lock = open_run_folder(options(tmp_path, resume='auto'), 32)
    lock.close()
    assert found.name == '20260101-000000-resnet20-32'
    assert checkpoint[0].name == 'last.pth.tar'


def test_a_link_in_the_place_of_a_temporary_file_is_not_followed(tmp_path, monkeypatch):
    monkeypatch.setattr(module, '_new_name_beside', lambda path: path.with_name('.x.tmp'))
    (tmp_path / 'elsewhere').write_text('precious')
    (tmp_path / '.x.tmp').symlink_to(tmp_path / 'elsewhere')
    with pytest.raises(SaveFailed, match='File exists'):
        write_atomically(tmp_path / 'x', lambda file: file.write(b'new'))
    assert (tmp_path / 'elsewhere').read_text() == 'precious'


def test_a_full_or_read_only_disk_says_so(tmp_path, monkeypatch):
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
    monkeypatch.setattr(Path, 'mkdir', lambda *args, **kwargs: (_ for _ in ()).throw(
        OSError(errno.EROFS, os.strerror(errno.EROFS))))
    with pytest.raises(BadInput, match=r'cannot write into the folder .*out \(Read-only file system\)'):
        open_run_folder(options(tmp_path / 'out'), 16)


@pytest.mark.parametrize(('split', 'said'), [
    ('trian', 'its folders are train, validation'), ('test', 'its folders are train, validation')])
def test_a_split_that_is_not_there_names_those_that_are(images, split, said):
    with pytest.raises(ValueError, match=said):
        create_dataset('', str(images), split)
    assert len(create_dataset('', str(images), 'val')) == 12  # timm takes it for validation
    assert len(create_dataset('', str(images / 'train'), 'validation')) == 24  # a folder of classes is one set
    with pytest.raises(ValueError, match='its folders are class0, class1, class2'):
        create_dataset('', str(images / 'train'), split='trian')
    with pytest.raises(ValueError, match="the splits train and validation, not 'trian'"):
        create_dataset('torch/cifar10', str(images), split='trian')


def test_training_images_are_not_taken_for_validation(images, tmp_path):
    argv = [*ARGV, '--output', tmp_path]
    (tmp_path / 'half').mkdir()
    (tmp_path / 'half' / 'train').symlink_to(images / 'train')
    done = run(['--data-dir', tmp_path / 'half', *argv], tmp_path / 'log')
    assert (done.code, 'its folders are train' in done.text) == (2, True)
    done = run(['--data-dir', images / 'train', *argv], tmp_path / 'log')
    assert (done.code, 'training and validation would be on the same images' in done.text) == (2, True)
