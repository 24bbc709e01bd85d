"""``python -m timm_asr freeze``: report, what is written, errors."""

import json

import pytest
import timm
import torch
from export_helpers import command, our_checkpoint
from helpers import randomize, relative_error
from torch.utils.data import DataLoader, Subset
from train_helpers import make_images

import timm_asr
from timm_asr.engine import exporting as freeze_command
from timm_asr.freeze.attention import candidates

SMALL = {'num_classes': 10, 'in_chans': 1, 'layers': (1, 1, 1)}


@pytest.fixture
def checkpoint(tmp_path):
    model = randomize(timm.create_model('resnet20_se', **SMALL))
    return our_checkpoint(tmp_path / 'last.pth.tar', model, arch='resnet20_se', argv=['--model', 'resnet20_se'])


@pytest.mark.slow
def test_a_network_without_gates_is_written(checkpoint, tmp_path, capsys):
    folder = tmp_path / 'frozen'
    status, out, err = command(capsys, 'freeze', checkpoint, '-o', folder, '--samples', 100, '--recalibrate-bn')
    assert (status, err) == (0, '')
    assert "The model is a 'resnet20' now." in out
    assert 'statistics of 9 BatchNorms were estimated anew' in out
    assert {path.name for path in folder.iterdir()} >= {
        'config.json', 'model.safetensors', 'metrics.json', 'gates.json', 'gates.png'}
    told = json.loads((folder / 'gates.json').read_text())
    assert (told['images'], told['architecture'], len(told['gates'])) == (100, 'resnet20', 3)
    loaded = timm.create_model(f'local-dir:{folder}', pretrained=True).eval()
    assert not [name for name in candidates(loaded) if name.endswith('.se')]
    figures = json.loads((folder / 'metrics.json').read_text())
    assert figures['top1_folded'] == told['top1_after']
    assert (figures['dataset'], figures['split']) == ('digits', told['compared_split'])

    # The same by hand.
    model = timm.create_model('resnet20_se', **SMALL)
    model.load_state_dict(torch.load(checkpoint, weights_only=True)['state_dict'])
    digits = timm_asr.data.Digits('validation', input_img_mode='L')
    loader = timm.data.create_loader(
        digits, (1, 32, 32), 64, mean=[0.3053], std=[0.376], crop_pct=1.0, interpolation='bilinear',
        use_prefetcher=False)
    chosen = torch.randperm(len(digits), generator=torch.Generator().manual_seed(0))[:100]
    timm_asr.freeze_attention(
        model, DataLoader(Subset(digits, chosen.tolist()), 64, collate_fn=loader.collate_fn), recalibrate_bn=True)
    x = torch.randn(2, 1, 32, 32)
    with torch.no_grad():
        assert relative_error(model.eval()(x), loaded(x)) < 1e-4

    status, out, err = command(capsys, 'freeze', checkpoint, '-o', folder, '--samples', 50)
    assert (status, out.count('\n')) == (2, 1)
    assert 'has a model.safetensors already; choose another folder' in err


@pytest.mark.slow
def test_with_gates_left_a_program_is_written(checkpoint, tmp_path, capsys):
    folder = tmp_path / 'frozen'
    status, out, err = command(capsys, 'freeze', checkpoint, '-o', folder, '--samples', 64, '--threshold', 0)
    assert (status, err) == (0, '')
    assert 'left: its deviation exceeds 0' in out
    assert {path.name for path in folder.iterdir()} == {'model.pt2', 'gates.json', 'gates.png'}
    program = torch.export.load(folder / 'model.pt2').module()
    model = timm.create_model('resnet20_se', **SMALL)
    model.load_state_dict(torch.load(checkpoint, weights_only=True)['state_dict'])
    x = torch.randn(2, 1, 32, 32)
    with torch.no_grad():
        assert relative_error(model.eval()(x), program(x)) < 1e-4


def test_some_images_are_of_all_classes(checkpoint, tmp_path, capsys, monkeypatch):
    make_images(tmp_path / 'data', classes=3, train=0, validation=10, size=8)  # class by class, as in any folder
    seen = []

    def freeze_attention(model, loader, *, samples, **kwargs):
        seen.extend(torch.cat([labels for _, labels in loader]).tolist() for _ in range(2))
        raise ValueError('seen')

    monkeypatch.setattr(freeze_command, 'freeze_attention', freeze_attention)
    words = checkpoint, '--data-dir', tmp_path / 'data', '--batch-size', 4, '-j', 0
    command(capsys, 'freeze', *words, '--samples', 10)
    command(capsys, 'freeze', *words, '--recalibrate-bn')
    command(capsys, 'freeze', *words)
    assert len(seen[0]) == 10
    assert set(seen[0]) == set(seen[2][:10]) == {0, 1, 2}
    assert sorted(seen[2]) == seen[4] == [0] * 10 + [1] * 10 + [2] * 10
    assert all(first == again for first, again in zip(seen[::2], seen[1::2], strict=True))


def test_a_split_of_its_own_to_compare_on(checkpoint, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(freeze_command, 'export_program', lambda *_, **__: (tmp_path / 'frozen').mkdir())
    status, out, _ = command(capsys, 'freeze', checkpoint, '--split', 'train', '--eval-split', 'validation',
                             '--samples', 40, '-j', 0, '--threshold', 0, '--thresholds', 2, '-o', tmp_path / 'frozen')
    assert status == 0
    assert 'Compared on 359 images, other ones' in out
    assert 'What thresholds would cost on these images' in out
    assert 'measured on train, compared on validation' in out
    told = json.loads((tmp_path / 'frozen' / 'gates.json').read_text())
    assert (told['images'], told['compared_images'], told['compared_split']) == (40, 359, 'validation')
    assert len(told['thresholds']) == 2


def test_figures_are_those_of_images_held_out(checkpoint, tmp_path, capsys, monkeypatch):
    written = []
    monkeypatch.setattr(freeze_command, 'save_fused', lambda source, folder, **_: written.append(source))
    monkeypatch.setattr(freeze_command, 'plot_frozen', lambda gates, path, title: path.write_bytes(b''))
    for split in ('train', 'validation'):
        command(capsys, 'freeze', checkpoint, '--split', split, '--samples', 8, '-j', 0, '-o', tmp_path / 'frozen')
    assert written[0].metrics is None
    assert written[1].metrics['images'] == 8
    assert not any('metrics' in source.facts for source in written)


@pytest.mark.parametrize(('threshold', 'mine', 'other'), [
    ((), 'model.safetensors', ['model.pt2']),
    (('--threshold', 0), 'model.pt2', ['config.json', 'metrics.json', 'model.safetensors'])])
def test_one_kind_of_result_takes_the_place_of_the_other(
        threshold, mine, other, checkpoint, tmp_path, capsys, monkeypatch):
    folder = tmp_path / 'frozen'
    folder.mkdir()
    for name in other:
        folder.joinpath(name).write_text('{}')
    monkeypatch.setattr(freeze_command, 'save_fused', lambda *_, **__: (folder / 'model.safetensors').write_text('new'))
    monkeypatch.setattr(freeze_command, 'export_program', lambda *_, **__: (folder / 'model.pt2').write_text('new'))
    monkeypatch.setattr(freeze_command, 'plot_frozen', lambda gates, path, title: path.write_bytes(b''))
    words = checkpoint, '--samples', 8, '-j', 0, '-o', folder, *threshold
    status, _, err = command(capsys, 'freeze', *words)
    assert status == 2
    assert 'already; choose another folder' in err
    assert sorted(path.name for path in folder.iterdir()) == other
    assert command(capsys, 'freeze', *words, '--force')[0] == 0
    assert {path.name for path in folder.iterdir()} - {'gates.json', 'gates.png'} == {mine}


@pytest.mark.parametrize(('line', 'sentence'), [
    ('last.pth.tar --data-dir nowhere', 'no data at nowhere'),
    ('last.pth.tar --samples 0', 'samples is 0; it is a number of images, 1 or more'),
    ('last.pth.tar -o last.pth.tar', 'last.pth.tar is a file, and a folder is to be written there'),
    ('resnet20_se.cifar10', 'no images to measure the gates on: give the folder of the images (--data-dir DIR)')])
def test_bad_input(line, sentence, checkpoint, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, _, err = command(capsys, 'freeze', *line.split())
    assert status == 2
    assert sentence in err
    assert err.count('\n') == 1
    assert [path.name for path in tmp_path.iterdir()] == ['last.pth.tar']
