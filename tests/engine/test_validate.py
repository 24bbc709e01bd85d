"""validate.py: its figures, its errors."""

import csv
import json
import logging
import re
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import nn

import timm_asr
from timm_asr.engine import validation
from timm_asr.engine.commands import validate
from timm_asr.engine.evaluate import evaluate
from timm_asr.errors import BadInput

NAME = 'resnet20_asr_se'
CLASSES = 7
IMAGES = 3  # of each class


@pytest.fixture(autouse=True)
def _log_to_pytest(monkeypatch):
    monkeypatch.setattr(validation, 'setup_logging', lambda: None)
    monkeypatch.setattr(logging.getLogger('timm_asr'), 'propagate', True)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """Small images of seven classes, each of its own random pattern."""
    root = tmp_path_factory.mktemp('images')
    rng = np.random.default_rng(0)
    for label in range(CLASSES):
        where = root / 'validation' / f'class_{label}'
        where.mkdir(parents=True)
        for i in range(IMAGES):
            pattern = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
            pattern.resize((32, 32), Image.Resampling.NEAREST).save(where / f'{i}.png')
    return root


def data_of(folder, model):
    """Images and labels, without timm's loader."""
    mean, std = (torch.tensor(model.pretrained_cfg[key]).view(3, 1, 1) for key in ('mean', 'std'))
    paths = sorted((folder / 'validation').rglob('*.png'))
    pixels = torch.stack([torch.from_numpy(np.array(Image.open(path).convert('RGB'))) for path in paths])
    return (pixels.permute(0, 3, 1, 2) / 255 - mean) / std, torch.tensor([int(path.parent.name[-1]) for path in paths])


@pytest.fixture(scope='module')
def model(folder):
    """A model whose classifier is fitted to logits that are right for some of the images and wrong for others."""
    torch.manual_seed(0)
    model = timm.create_model(NAME, num_classes=CLASSES)
    images, labels = data_of(folder, model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith('psi'):
                parameter.normal_()
        for _ in range(30):  # running statistics of these images
            model(images)
        features = model.eval().forward_head(model.forward_features(images), pre_logits=True)
        wanted = 0.6 * nn.functional.one_hot(labels, CLASSES) + torch.randn(len(labels), CLASSES)
        model.fc.weight.copy_(torch.linalg.lstsq(features.double(), wanted.double()).solution.T)
        nn.init.zeros_(model.fc.bias)
    return model


@pytest.fixture(scope='module')
def checkpoint(model, tmp_path_factory):
    path = tmp_path_factory.mktemp('run') / 'last.pth.tar'
    torch.save({'arch': NAME, 'state_dict': model.state_dict()}, path)
    return path


def expected(model, folder, columns=None):
    """Top-1 and top-5 in percent."""
    images, labels = data_of(folder, model)
    with torch.no_grad():
        logits = model(images)
    right = (logits if columns is None else logits[:, columns]).argsort(dim=1, descending=True) == labels[:, None]
    return tuple(round(100 * right[:, :k].sum().item() / len(labels), 4) for k in (1, 5))


@pytest.fixture
def run(folder, capsys):
    """Runs validate.py on the folder and returns what it prints after ``--result``."""
    def call(*words: object) -> Any:
        validate.main(['--data-dir', str(folder), '--device', 'cpu', '-j', '0', '-b', '8', *map(str, words)])
        return json.loads(capsys.readouterr().out.split('--result\n')[1])
    return call


def test_figures(run, model, folder, checkpoint, tmp_path):
    row = run('--checkpoint', checkpoint, '--results-file', tmp_path / 'a.csv')
    top1, top5 = expected(model, folder)
    assert 0 < top1 < top5 < 100  # or it would prove nothing
    assert row == {
        'model': str(checkpoint), 'top1': top1, 'top1_err': round(100 - top1, 4), 'top5': top5,
        'top5_err': round(100 - top5, 4), 'param_count': 0.27, 'img_size': 32, 'crop_pct': 1.0,
        'interpolation': 'bilinear'}
    with (tmp_path / 'a.csv').open() as file:
        assert list(csv.DictReader(file)) == [{key: str(value) for key, value in row.items()}]


@pytest.mark.parametrize('words', [
    ['--reparam', '--channels-last'], ['--fold-bn', '-b', '1000'], ['--no-prefetcher', '-j', '1'],
    ['--model', NAME, '--retry'], ['--torchscript'], ['--split', 'val', '--fast-norm']], ids=' '.join)
def test_other_ways_to_the_same_figures(run, model, folder, checkpoint, words):
    row = run('--checkpoint', checkpoint, *words)
    assert (row['top1'], row['top5']) == expected(model, folder)


def test_the_inference_form_is_what_is_measured(run, checkpoint, monkeypatch):
    seen, crops = [], []
    monkeypatch.setattr(validation, 'evaluate', lambda model, loader, *a, **k: (
        seen.append(model) or crops.append(repr(loader.dataset.transform)) or evaluate(model, loader, *a, **k)))
    for words in (['--gp', 'max'], ['--reparam'], ['--fold-bn', '--crop-border-pixels', '4']):
        run('--checkpoint', checkpoint, *words)
    assert [timm_asr.has_asr(m) for m in seen] == [True, False, False]
    assert [m.global_pool.pool_type for m in seen] == ['max', 'avg', 'avg']
    norms = [sum(isinstance(x, nn.BatchNorm2d) for x in m.modules()) for m in seen]
    assert norms[0] == norms[1] > norms[2] == 0
    assert ['TrimBorder' in transform for transform in crops] == [False, False, True]


@pytest.mark.parametrize('words', [['--model-dtype', 'bfloat16'], ['--amp', '--amp-dtype', 'bfloat16']])
def test_low_precision(run, model, folder, checkpoint, monkeypatch, words):
    types: set[torch.dtype] = set()

    def spy(model: nn.Module, *args: Any, **kwargs: Any) -> Any:
        model.fc.register_forward_hook(lambda module, args, out: types.add(out.dtype))
        return evaluate(model, *args, **kwargs)

    monkeypatch.setattr(validation, 'evaluate', spy)
    row = run('--checkpoint', checkpoint, *words)
    assert types == {torch.bfloat16}
    assert abs(row['top1'] - expected(model, folder)[0]) <= 100 / (CLASSES * IMAGES) + 1e-3  # one image may tip over


def test_valid_labels(run, model, folder, checkpoint, tmp_path):
    order = [6, 5, 4, 3, 2, 1, 0]
    (tmp_path / 'labels.txt').write_text('\n'.join(map(str, order)))
    row = run('--checkpoint', checkpoint, '--valid-labels', tmp_path / 'labels.txt')
    assert (row['top1'], row['top5']) == expected(model, folder, order) != expected(model, folder)


def test_real_labels(run, model, folder, checkpoint, tmp_path, monkeypatch):
    """Here the class after that of the folder is right, for images that are called as those of ImageNet."""
    names = [f'ILSVRC2012_val_{i + 1:08d}.JPEG' for i in range(CLASSES * IMAGES)]
    monkeypatch.setattr(timm.data.ImageDataset, 'filenames', lambda *args, **kwargs: names)
    (tmp_path / 'real.json').write_text(json.dumps([[(i // IMAGES + 1) % CLASSES] for i in range(len(names))]))
    row = run('--checkpoint', checkpoint, '--real-labels', tmp_path / 'real.json')
    assert (row['top1'], row['top5']) == expected(model, folder, [1, 2, 3, 4, 5, 6, 0]) != expected(model, folder)


def test_all_checkpoints_of_a_folder(run, checkpoint, tmp_path):
    for name in ('checkpoint-2.pth.tar', 'checkpoint-10.pth.tar'):
        (tmp_path / name).write_bytes(checkpoint.read_bytes())
    worse = timm.create_model(NAME, num_classes=CLASSES)
    nn.init.zeros_(worse.fc.weight)
    nn.init.zeros_(worse.fc.bias)
    worse.fc.bias.data[3] = 1
    torch.save({'arch': NAME, 'state_dict': worse.state_dict()}, tmp_path / 'worse.pth')
    (tmp_path / 'damaged.pth').write_bytes(b'damaged')
    rows = run('--checkpoint', tmp_path)
    assert [Path(row['checkpoint']).name for row in rows] == [
        'checkpoint-2.pth.tar', 'checkpoint-10.pth.tar', 'worse.pth']
    assert rows[2]['top1'] == pytest.approx(100 / CLASSES, abs=1e-3)


def test_a_network_that_does_not_take_the_images(run, checkpoint, tmp_path):
    other = timm.create_model('maxvit_rmlp_pico_rw_256', num_classes=CLASSES)
    torch.save({'arch': 'maxvit_rmlp_pico_rw_256', 'state_dict': other.state_dict()}, tmp_path / 'a.pth')
    with pytest.raises(BadInput, match=r'a.pth cannot be validated: height \(25\) must be divisible by window \(3\)'):
        run('--checkpoint', tmp_path / 'a.pth', '--img-size', 100)
    (tmp_path / 'b.pth').write_bytes(checkpoint.read_bytes())
    row, = run('--checkpoint', tmp_path, '--img-size', 100)
    assert Path(row['checkpoint']).name == 'b.pth'
    words = '--checkpoint', tmp_path / 'a.pth', '--img-size', 100, '--results-file', tmp_path / 'a.csv'
    assert 'error' in run(*words, '--retry')
    assert not (tmp_path / 'a.csv').exists()


def test_an_error_in_a_loading_worker_is_said(run, checkpoint, monkeypatch):
    monkeypatch.setattr(timm.data.ImageDataset, '__getitem__', Mock(side_effect=ValueError('this image has no pixels')))
    with pytest.raises(BadInput, match=r'cannot be validated: this image has no pixels$'):
        run('--checkpoint', checkpoint, '-j', '1')


def test_a_list_of_models(run, model, folder, tmp_path, checkpoint):
    timm_asr.save_fused(model, tmp_path / 'folder')
    (tmp_path / 'list.txt').write_text(f'{tmp_path / "folder"}\n{checkpoint}\nresnet32_asr_se\n')
    rows = run('--model', tmp_path / 'list.txt', '--results-file', tmp_path / 'all.csv')
    assert {row['model'] for row in rows} == {str(tmp_path / 'folder'), str(checkpoint)}  # the last has no weights
    assert all((row['top1'], row['top5']) == expected(model, folder) for row in rows)
    assert len((tmp_path / 'all.csv').read_text().splitlines()) == 3


def test_an_interrupt_keeps_the_models_that_are_done(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(validation, 'validate', Mock(side_effect=[{'model': 'a', 'top1': 50.0}, KeyboardInterrupt]))
    for name in ('a.pth', 'b.pth', 'c.pth'):
        (tmp_path / name).write_bytes(b'')
    words = ['--data-dir', str(folder), '--checkpoint', str(tmp_path), '--results-file', str(tmp_path / 'all.csv')]
    assert validate.main(words) == 130
    assert len((tmp_path / 'all.csv').read_text().splitlines()) == 2
    assert [row['model'] for row in json.loads(capsys.readouterr().out.split('--result\n')[1])] == ['a']


def test_accuracy_of_each_class(folder, checkpoint, capsys):
    validate.main(['--data-dir', str(folder), '--checkpoint', str(checkpoint), '-j', '0', '-b', '8', '--device', 'cpu',
                   '--per-class', '--metrics-avg', 'micro'])
    printed, result = capsys.readouterr().out.split('--result\n')
    rows = re.findall(r'\| (class_\d) +\| +(\d+) \| +([\d.]+) \|', printed)
    assert [name for name, _, _ in rows] == [f'class_{i}' for i in range(CLASSES)]
    assert sum(int(count) * float(top1) for _, count, top1 in rows) / (CLASSES * IMAGES) == pytest.approx(
        json.loads(result)['top1'], abs=0.05)
    assert json.loads(result)['micro_recall'] == json.loads(result)['top1']


def test_bad_options(run, checkpoint, tmp_path):
    (tmp_path / 'labels.txt').write_text('1\n99\n')
    for words, said in (
            (['--device', 'warp'], '--device warp'),
            (['--amp', '--model-dtype', 'bfloat16'], '--amp keeps the model in float32'),
            (['--num-gpu', 64], '--num-gpu 64'), (['--results-file', tmp_path / 'no' / 'a.csv'], 'there is no folder'),
            (['--results-file', tmp_path], 'is a folder'),
            (['--valid-labels', tmp_path / 'labels.txt'], 'between 0 and 6'),
            (['--valid-labels', tmp_path / 'no.txt'], 'No such file'),
            (['--real-labels', tmp_path / 'labels.txt'], '--real-labels'),
            (['--num-classes', 10], 'trained for 7 classes, but 10 were asked for'),
            (['--torchcompile', 'nope'], '--torchcompile nope'), (['-b', 0], '--batch-size'),
            (['--dataset', 'digits'], 'has 10 classes, and the model tells only 7 apart')):
        with pytest.raises(BadInput) as error:
            run('--checkpoint', checkpoint, *words)
        assert said in str(error.value)
        assert '\n' not in str(error.value)


def test_a_loss_that_is_not_finite_is_said(run, tmp_path, caplog):
    broken = timm.create_model('resnet20', num_classes=CLASSES)
    nn.init.constant_(broken.fc.bias, float('nan'))
    torch.save({'arch': 'resnet20', 'state_dict': broken.state_dict()}, tmp_path / 'a.pth')
    run('--checkpoint', tmp_path / 'a.pth')
    assert 'its accuracy means nothing' in caplog.text


def test_test_pool(run, monkeypatch, checkpoint):
    seen: list[Any] = []
    monkeypatch.setattr(
        validation, 'apply_test_time_pool', lambda model, config: (seen.append(config) or model, True))
    row = run('--checkpoint', checkpoint, '--test-pool', '--crop-pct', '0.5')
    assert seen
    assert row['crop_pct'] == 1.0
