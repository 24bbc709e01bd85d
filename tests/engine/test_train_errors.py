"""What is wrong is said in one sentence, before any long work; what went wrong leaves the last checkpoint."""

import os
import pickle
import re
import shutil
from unittest.mock import Mock

import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from train_helpers import run

from timm_asr.checkpoints.read import HASH
from timm_asr.engine.commands.train import main, parse_args
from timm_asr.errors import BadInput, Stopped, run_main


@pytest.fixture
def refused(capsys, tmp_path):
    """Runs train.py in this process and returns its one line of error."""
    def call(*argv):
        words = ['--device', 'cpu', *map(str, argv), '--workers', '0', '--epochs', '1']
        words += ['--output', str(tmp_path / 'out')]
        code = run_main(lambda: main(words, 'train.py'), 'train.py')
        lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith('train.py: error: ')]
        assert code == 2
        assert len(lines) == 1
        assert not list((tmp_path / 'out').glob('*/last.pth.tar'))
        return lines[0].removeprefix('train.py: error: ')
    return call


DIGITS = ('--config', 'digits', '--img-size', 8)
SMALL = ('--model', 'resnet20_asr_se', '--num-classes', 3, '--img-size', 16, '-b', 6, '--workers', 0,
         '--experiment', 'x')


@pytest.fixture(scope='module')
def checkpoint(images, tmp_path_factory):
    folder = tmp_path_factory.mktemp('run')
    done = run(['--data-dir', images, *SMALL, '--epochs', 1, '--no-fuse', '--output', folder], folder / 'log')
    assert done.code == 0, done.text
    return folder / 'x' / 'last.pth.tar'


@pytest.mark.parametrize(('argv', 'said'), [
    (('--config', 'digitss'), "no such file, and no such recipe; the nearest is 'digits'"),
    ((*DIGITS, '--model', 'resnet20_asr_sse'), 'unknown model .* nearest names are resnet20_asr_se'),
    ((*DIGITS, '--num-classes', 5), 'the data has 10 classes and resnet20_asr_se only 5 outputs; use --num-classes 10'),
    ((*DIGITS, '--opt', 'adamx'), "unknown optimizer 'adamx' .* nearest are adamax"),
    ((*DIGITS, '--device', 'warp'), '--device warp: not a device; available here: .*cpu'),
    ((*DIGITS, '--bn-eps', '1e-3'), 'cannot be made with these options: .*bn_eps'),
    ((*DIGITS, '--batch-size', 4000, '--validation-batch-size', 1), '1438 training images do not fill one batch'),
    ((*DIGITS, '--batch-size', 5, '--mixup', 0.2), 'need batches of an even size, not of 5'),
    ((*DIGITS, '--aug-splits', 1), '--aug-splits must be 0 or at least 2'),
    ((*DIGITS, '--split-bn'), '--split-bn needs --aug-splits'),
    ((*DIGITS, '--jsd-loss'), '--jsd-loss needs --aug-splits'),
    ((*DIGITS, '--aug-splits', 2, '--mixup', 0.1), '--aug-splits goes neither with mixup'),
    ((*DIGITS, '--aug-splits', 2, '--no-prefetcher'), '--aug-splits goes neither with mixup'),
    ((*DIGITS, '--train-interpolation', 'bogus'), "do not go together: there is no 'bogus'"),
    ((*DIGITS, '--interpolation', 'bogus'), "do not go together: there is no 'bogus'"),
    ((*DIGITS, '--in-chans', 2), 'the model takes 2 channels; --input-img-mode names'),
    ((*DIGITS, '--device', 'meta'), '--device meta: there is none on this machine'),
    ((*DIGITS, '--aug-repeats', 3), '--aug-repeats works over several processes'),
    ((*DIGITS, '--amp', '--model-dtype', 'bfloat16'), '--amp needs a float32 model'),
    ((*DIGITS, '--torchcompile', '--torchscript'), 'exclude each other'),
    ((*DIGITS, '--torchcompile', 'fastest'), '--torchcompile fastest: PyTorch has .*inductor'),
    ((*DIGITS, '--mean', 0.1, 0.2), '--mean and --std take one value'),
    ((*DIGITS, '--train-split', 'lunch'), "cannot open the 'lunch' split of digits"),
    ((*DIGITS, '--aa', 'nonsense'), 'do not go together'),
    ((*DIGITS, '--device-modules', 'no_such_module'), '--device-modules no_such_module: No module'),
    (('--model', 'resnet20_asr_se'), 'no data: give the folder'),
    (('--model', 'resnet20_asr_se', '--dataset', 'torch/cifar10'), 'torch/cifar10 needs a folder: --data-dir DIR'),
    ((*DIGITS, '--resume', 'nowhere'), '--resume nowhere: no such file'),
    ((*DIGITS, '--initial-checkpoint', 'nowhere'), 'no checkpoint at nowhere'),
    ((*DIGITS, '--model', 'resnet20_ras', '--split-bn', '--aug-splits', 2), '--split-bn splits norms of images'),
    ((*DIGITS, '--asr-gain', 0), 'asr_gain is 0.0; it takes a positive number'),
    ((*DIGITS, '--seed', 5 * 10 ** 9), '--seed must be between 0 and 4294967295, not 5e'),
    ((*DIGITS, '--clip-grad', 0), '--clip-grad must be above 0, not 0'),
    ((*DIGITS, '--crop-pct', 87.5), '--crop-pct must be above 0 and at most 1, not 87.5'),
    ((*DIGITS, '--layer-decay', 0.7, '--sched', 'none'), '--layer-decay work by a schedule'),
    ((*DIGITS, '--smoothing', 2), '--smoothing must be at least 0 and below 1, not 2'),
    ((*DIGITS, '--decay-epochs', 0), '--decay-epochs must be above 0, not 0'),
    ((*DIGITS, '--drop-path', 2), '--drop-path must be at least 0 and below 1, not 2'),
    ((*DIGITS, '--validation-batch-size', -1), '--validation-batch-size must be at least 1, not -1'),
    ((*DIGITS, '--sched', 'wsd'), '--sched wsd cannot be made with these options: '),
    ((*DIGITS, '--opt', 'adamw', '--opt-betas', 0.9), '--opt adamw cannot be made with these options: '),
    ((*DIGITS, '--train-batches-per-epoch', 3), '--train-batches-per-epoch goes with --train-img-sizes')])
def test_refused(argv, said, refused):
    assert re.search(said, refused(*argv))


def test_checkpoints_that_do_not_fit(refused, images, checkpoint, tmp_path):
    def said(path, *more, option='--resume'):
        return refused('--data-dir', images, *SMALL, *more, option, path)

    assert 'it is a checkpoint of resnet20_asr_se, not of resnet20_asr_eca' in said(
        checkpoint, '--model', 'resnet20_asr_eca')
    for option in ('--resume', '--initial-checkpoint'):
        assert 'was trained for 3 classes, but 4 were asked for' in said(checkpoint, '--num-classes', 4, option=option)
    assert 'its optimizer does not fit --opt sgd' in said(checkpoint, '--layer-decay', 0.5)
    assert 'it was trained with no keywords, not with asr_gain=2' in said(checkpoint, '--asr-gain', 2)
    assert 'goes on at epoch 1, and its checkpoints would be replaced; name another folder' in refused(
        '--data-dir', images, *SMALL[:-2], '--resume', checkpoint, '--start-epoch', 0)
    path, data = tmp_path / 'changed.pth.tar', checkpoint.read_bytes()
    for content, reason in ((data[:len(data) // 2], 'is truncated'), (b'not a checkpoint', 'is not a checkpoint')):
        path.write_bytes(content)
        assert f'changed.pth.tar {reason}' in said(path)
    whole = {key: value for key, value in torch.load(checkpoint, weights_only=True).items() if key != HASH}
    for change, reason in (
            ({'epoch': None}, 'not a training checkpoint; load weights alone by --initial-checkpoint'),
            ({'optimizer': {'state': 3, 'param_groups': [{}]}}, 'its optimizer does not fit --opt sgd')):
        torch.save({**whole, **change}, path)
        assert reason in said(path)


def test_weights_that_are_on_the_hub_alone(refused, monkeypatch):
    monkeypatch.setattr('timm_asr.engine.build.create_model', Mock(side_effect=LocalEntryNotFoundError('x')))
    said = refused(*DIGITS, '--model', 'resnet18', '--pretrained')
    assert said.startswith('the weights of resnet18 are not on this machine, and the Hub cannot be reached; --pretr')
    monkeypatch.setattr('timm_asr.engine.build.create_model', Mock(side_effect=ValueError(300 * 'x')))
    assert refused(*DIGITS, '--model', 'resnet18').endswith('xxx…')


@pytest.mark.parametrize(('error', 'said'), [
    (torch.OutOfMemoryError('CUDA out of memory. Tried to allocate'),
     'too little memory for --batch-size .*CUDA out.*; no checkpoint was written'),
    (RuntimeError('DataLoader worker (pid 7) is killed by signal: Bus error.'),
     r'Bus error: use fewer --workers, or give it more \(shared\) memory; the last')])
def test_too_little_memory_is_said_in_a_sentence(error, said, tmp_path, monkeypatch):
    monkeypatch.setattr('timm_asr.engine.build.Task.forward', Mock(side_effect=error))
    with pytest.raises(Stopped, match=said):
        main(['--config', 'digits', '--device', 'cpu', '--workers', '0', '--output', str(tmp_path)])


def test_processes_of_slurm_that_cannot_meet(tmp_path, monkeypatch):
    for name, value in (('SLURM_NTASKS', '8'), ('SLURM_PROCID', '0'), ('SLURM_LOCALID', '0')):
        monkeypatch.setenv(name, value)
    for name in ('WORLD_SIZE', 'RANK', 'LOCAL_RANK'):  # which timm sets
        monkeypatch.setenv(name, '')
        monkeypatch.delenv(name)
    with pytest.raises(BadInput, match='several processes cannot meet: .*; start by torchrun, or set WORLD_SIZE=1'):
        main(['--config', 'digits', '--device', 'cpu', '--output', str(tmp_path)])


def test_a_number_of_processes_that_is_none(refused, monkeypatch):
    monkeypatch.setenv('WORLD_SIZE', '')
    for words in ((), ('--print-config',)):
        assert 'WORLD_SIZE, RANK or a variable of SLURM is no number' in refused(*DIGITS, *words)


def test_a_gate_that_the_line_names_wins_over_a_keyword():
    args = parse_args(['--model', 'resnet20', '--asr', 'se', '--model-kwargs', 'asr=ie', 'asr_depth=2'])
    assert (args.asr, args.model_kwargs) == ('se', {'asr_depth': 2})


def test_too_little_memory_before_the_first_step(capsys):
    assert run_main(Mock(side_effect=torch.OutOfMemoryError('CUDA out of memory.')), 'train.py') == 1
    assert capsys.readouterr().err == 'train.py: error: too little memory (CUDA out of memory.)\n'


def test_a_checkpoint_that_would_run_code(refused, tmp_path):
    class Evil:
        def __reduce__(self):
            return os.system, (f'touch {tmp_path / "ran"}',)

    for name, save in (('zip.pth.tar', torch.save), ('plain.pth.tar', lambda x, f: f.write_bytes(pickle.dumps(x, 2)))):
        save({'state_dict': {}, 'optimizer': Evil()}, tmp_path / name)
        for option in ('--resume', '--initial-checkpoint', '--pretrained-path'):
            assert 'would run code' in refused(*DIGITS, option, tmp_path / name)
    assert not (tmp_path / 'ran').exists()


def test_bad_folders(refused, images, tmp_path):
    model = ('--model', 'resnet20_asr_se', '--img-size', 16, '-b', 4, '--num-classes')
    (tmp_path / 'empty').mkdir()
    assert 'Found 0 images' in refused(*model, 3, '--data-dir', tmp_path / 'empty')
    one = tmp_path / 'one'
    for split in ('train', 'validation'):
        shutil.copytree(images / split / 'class0', one / split / 'class0')
    assert "has only one class, 'class0'" in refused(*model, 3, '--data-dir', one)
    other = tmp_path / 'other'
    shutil.copytree(images, other)
    (other / 'validation' / 'class2').rename(other / 'validation' / 'zebra')
    assert "the validation data has the class 'zebra'" in refused(*model, 3, '--data-dir', other)


def test_an_image_that_breaks_off_is_named(images, tmp_path):
    """Its header is whole, so that only decoding finds it, in a loading process."""
    folder = tmp_path / 'data'
    shutil.copytree(images, folder)
    path = folder / 'train' / 'class1' / '3.png'
    data = path.read_bytes()
    path.write_bytes(data[:len(data) // 2])
    done = run(['--data-dir', folder, *SMALL, '--epochs', 1, '--workers', 2, '--output', tmp_path], tmp_path / 'log')
    assert done.code == 2, done.text
    assert f'train.py: error: cannot read the image {path}' in done.text.splitlines()
    assert 'Traceback' not in done.text


def test_a_full_disk_says_so_and_keeps_the_checkpoint(images, tmp_path):
    argv = ['--data-dir', images, *SMALL, '--epochs', 3, '--no-fuse', '--output', tmp_path]
    full = '''
import errno, torch
save, calls = torch.save, [0]
def failing(content, file):
    calls[0] += 1
    if calls[0] == 2:
        file.write(b'x' * 1000)
        raise OSError(errno.ENOSPC, 'No space left on device')
    save(content, file)
torch.save = failing
'''
    done = run(argv, tmp_path / 'log', full)
    assert done.code == 1, done.text
    last = tmp_path / 'x' / 'last.pth.tar'
    assert done.text.splitlines()[-1] == (
        f'train.py: error: {last} could not be written (No space left on device); the last checkpoint is {last}')
    assert torch.load(last, weights_only=True)['epoch'] == 0
    assert not list(last.parent.glob('.*.tmp'))
    resumed = run([*argv, '--resume', 'auto'], tmp_path / 'log')
    assert resumed.code == 0, resumed.text
    assert len((tmp_path / 'x' / 'summary.csv').read_text().splitlines()) == 4


def test_a_fused_model_that_differs_is_not_written(images, tmp_path):
    argv = ['--data-dir', images, *SMALL, '--epochs', 1, '--output', tmp_path]
    wrong = '''
import torch, timm_asr.engine.forms as export
fold = export.fold_asr
def off(model):
    model = fold(model)
    with torch.no_grad():
        model.fc.bias[0] += 1e-3
    return model
export.fold_asr = off
'''
    done = run(argv, tmp_path / 'log', wrong)
    assert done.code == 1, done.text
    assert 'nothing is written: the logits of the folded network differ by' in done.text.splitlines()[-1]
    assert not (tmp_path / 'x' / 'model.safetensors').exists()
    assert (tmp_path / 'x' / 'last.pth.tar').exists()
