"""``python -m timm_asr freeze``: report, what is written, errors."""

import json

import pytest
import timm
import torch
from export_helpers import our_checkpoint
from helpers import randomize, relative_error

import timm_asr
from timm_asr.__main__ import COMMANDS
from timm_asr.engine.freeze_command import main
from timm_asr.errors import run_main
from timm_asr.freeze.gates import candidates


@pytest.fixture
def checkpoint(tmp_path):
    return checkpoint_of('resnet20_se', tmp_path)


def checkpoint_of(name, folder):
    model = randomize(timm.create_model(name, num_classes=10, in_chans=1))
    return our_checkpoint(folder / 'last.pth.tar', model, arch=name, argv=['--model', name])


def freeze(capsys, *argv):
    """(status, standard output, standard error) of the command."""
    status = run_main(lambda: main([str(word) for word in argv]), 'timm_asr freeze')
    out = capsys.readouterr()
    return status, out.out, out.err


@pytest.mark.slow
def test_a_network_without_gates_is_written(checkpoint, tmp_path, capsys):
    assert 'freeze' in COMMANDS
    folder = tmp_path / 'frozen'
    status, out, err = freeze(capsys, checkpoint, '-o', folder, '--samples', 100, '--recalibrate-bn')
    assert (status, err) == (0, '')
    assert "The model is a 'resnet20' now." in out
    assert 'statistics of 21 BatchNorms were estimated anew' in out
    assert {path.name for path in folder.iterdir()} == {
        'config.json', 'model.safetensors', 'metrics.json', 'gates.json', 'gates.png'}
    told = json.loads((folder / 'gates.json').read_text())
    assert (told['images'], told['architecture'], len(told['gates'])) == (100, 'resnet20', 9)
    loaded = timm.create_model(f'local-dir:{folder}', pretrained=True).eval()
    assert not [name for name in candidates(loaded) if name.endswith('.se')]
    figures = json.loads((folder / 'metrics.json').read_text())
    assert figures['top1_fused'] == told['top1_after']

    # The same by hand.
    model = timm.create_model('resnet20_se', num_classes=10, in_chans=1)
    model.load_state_dict(torch.load(checkpoint, weights_only=True)['state_dict'])
    loader = timm.data.create_loader(
        timm_asr.data.Digits('validation', input_img_mode='L'), (1, 32, 32), 64, mean=[0.3053], std=[0.376],
        crop_pct=1.0, interpolation='bilinear', use_prefetcher=False)
    timm_asr.freeze_attention(model, loader, samples=100, recalibrate_bn=True)
    x = torch.randn(2, 1, 32, 32)
    with torch.no_grad():
        assert relative_error(model.eval()(x), loaded(x)) < 1e-4

    status, out, err = freeze(capsys, checkpoint, '-o', folder, '--samples', 50)
    assert (status, out.count('\n')) == (2, 1)
    assert 'has another gates.json already; choose another folder' in err


@pytest.mark.slow
def test_with_gates_left_a_program_is_written(checkpoint, tmp_path, capsys):
    status, out, err = freeze(capsys, checkpoint, '-o', tmp_path / 'frozen', '--samples', 64, '--threshold', 0)
    assert (status, err) == (0, '')
    assert 'left: its deviation exceeds 0' in out
    assert {path.name for path in (tmp_path / 'frozen').iterdir()} == {'model.pt2', 'gates.json', 'gates.png'}
    program = torch.export.load(tmp_path / 'frozen' / 'model.pt2').module()
    model = timm.create_model('resnet20_se', num_classes=10, in_chans=1)
    model.load_state_dict(torch.load(checkpoint, weights_only=True)['state_dict'])
    x = torch.randn(2, 1, 32, 32)
    with torch.no_grad():
        assert relative_error(model.eval()(x), program(x)) < 1e-4


@pytest.mark.parametrize(('name', 'words', 'sentence'), [
    ('resnet20_se', ['--data-dir', 'nowhere'], 'no data at nowhere'),
    ('resnet20_se', ['--samples', '0'], 'samples is 0; it is a number of images, 1 or more'),
    ('resnet20_se', ['--threshold', '-1'], 'threshold is -1.0; it is a standard deviation, 0 or more'),
    ('resnet20', [], 'No channel gate (SE, ECA, ...) is inside this ASRCifarResNet'),
    ('resnet20_dia_se', [], 'since the blocks of a stage share it'),
    ('resnet20_se', ['-o', 'last.pth.tar'], 'last.pth.tar is a file, and a folder is to be written there'),
])
def test_bad_input(name, words, sentence, tmp_path, capsys, monkeypatch):
    checkpoint = checkpoint_of(name, tmp_path)
    monkeypatch.chdir(tmp_path)
    status, _, err = freeze(capsys, checkpoint, *words)
    assert status == 2
    assert sentence in err
    assert err.count('\n') == 1
    assert [path.name for path in tmp_path.iterdir()] == ['last.pth.tar']


def test_images_must_be_named_where_the_run_does_not_say(tmp_path, capsys):
    torch.save(timm.create_model('resnet20_se').state_dict(), tmp_path / 'weights.pth')
    status, _, err = freeze(capsys, tmp_path / 'weights.pth', '--model', 'resnet20_se')
    assert status == 2
    assert 'no images to measure the gates on: give the folder of the images (--data-dir DIR)' in err
