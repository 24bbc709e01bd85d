"""Weights that come with the package: how a run becomes one, the wheel that holds them, what loading them does."""

import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import ship_weights
import timm
import torch
from helpers import images, randomize, zoo_names
from pages import ROOT
from safetensors.torch import load_file
from timm.models import get_pretrained_cfg

import timm_asr
from timm_asr.data import create_dataset
from timm_asr.errors import BadInput
from timm_asr.models.pretrained import FOLDER, shipped, with_shipped

CLASSES = ('airplane', 'automobile', 'bird', 'cat', 'deer', 'dog', 'frog', 'horse', 'ship', 'truck')


def _run_folder(folder, name='resnet20_asr_se', **changes):
    """What train.py leaves, as far as it matters here."""
    folder.mkdir()
    model = randomize(timm.create_model(name))
    args = {'model': name, 'seed': 7, 'config': 'recipes/cifar10_resnet20.yaml', 'dataset': 'digits', 'epochs': 4,
            'output': '/home/me/output', 'std': [0.2023, 0.1994, 0.201], 'num_classes': 10, 'model_kwargs': {},
            'wandb_api_key': 'secret', **changes}
    torch.save({'arch': name, 'args': args, 'state_dict': model.state_dict(), 'epoch': 3, 'metric': 88.5},
               folder / 'last.pth.tar')
    (folder / 'summary.csv').write_text('epoch,train_loss,eval_top1\n2,0.5,88.0\n3,0.4,88.5\n')
    return model


@pytest.mark.parametrize('half', [True, False])
def test_a_run_becomes_weights_with_their_history(tmp_path, monkeypatch, half):
    model = _run_folder(tmp_path / 'run')
    as_half = ship_weights._as_half
    monkeypatch.setattr(ship_weights, '_as_half', lambda *given: as_half(*given) if half else None)
    weights = ship_weights.ship(tmp_path / 'run', 'digits', folder=tmp_path, labels=CLASSES, git_commit='abc')
    assert weights.name == 'resnet20_asr_se.digits.safetensors'
    loaded = load_file(weights)
    assert loaded.keys() == model.state_dict().keys()
    for key, value in model.state_dict().items():
        assert torch.equal(value.half() if half and value.is_floating_point() else value, loaded[key])
    text = weights.with_suffix('.json').read_text()
    content = json.loads(text)
    assert content['sha256'] == hashlib.sha256(weights.read_bytes()).hexdigest()
    assert content['metrics']['images'] == len(create_dataset('digits', '', split='validation'))
    assert content['metrics']['top1'] == content['metrics']['top1_folded']
    assert content['provenance'].items() >= {
        'seed': 7, 'recipe': 'cifar10_resnet20', 'dataset': 'digits', 'epoch': 3, 'git_commit': 'abc'}.items()
    assert content['log'] == [{'epoch': 2, 'train_loss': 0.5, 'eval_top1': 88.0},
                              {'epoch': 3, 'train_loss': 0.4, 'eval_top1': 88.5}]
    assert '/home' not in text
    assert 'secret' not in text

    rows = with_shipped({'resnet20': {'mean': (0, 0, 0)}, 'resnet20_asr_se': {'mean': (0, 0, 0)}}, tmp_path)
    assert list(rows) == ['resnet20', 'resnet20_asr_se.digits']
    row = rows['resnet20_asr_se.digits']
    assert row['file'] == str(weights)
    assert row['std'] == (0.2023, 0.1994, 0.201)
    assert row['mean'] == (0.4914, 0.4822, 0.4465)
    assert row['label_names'] == CLASSES


@pytest.mark.parametrize(('spoil', 'sentence'), [
    ({'gp': 'max'}, 'was built with gp,'),
    ({'model_kwargs': {'no_skip': False}}, 'was built with no_skip, which the name resnet20_asr_se.cifar10 does'),
    ({'epochs': 5}, 'has not come to its end: last.pth.tar is of epoch 3, counted from 0, of 5'),
    (lambda run: (run / 'summary.csv').unlink(), 'has no summary.csv'),
    (lambda run: (run / 'last.pth.tar').unlink(), 'it has no last.pth.tar')])
def test_what_is_no_finished_run_of_its_name_is_refused(tmp_path, spoil, sentence):
    _run_folder(tmp_path / 'run', **({} if callable(spoil) else spoil))
    if callable(spoil):
        spoil(tmp_path / 'run')
    with pytest.raises(BadInput, match=sentence):
        ship_weights.ship(tmp_path / 'run', 'cifar10', folder=tmp_path)
    assert not list(tmp_path.glob('*.safetensors'))


def test_half_precision_is_for_networks_whose_predictions_it_keeps():
    images = [(torch.randn(64, 4), torch.zeros(64, dtype=torch.long))]
    layer = torch.nn.Linear(4, 2)
    half = ship_weights._as_half(layer, images)
    assert torch.equal(half.weight, half.weight.half().float())
    assert torch.equal(half(images[0][0]).argmax(1), layer(images[0][0]).argmax(1))
    layer.bias.data.zero_()
    layer.weight.data = 1e-9 * torch.tensor([[-1.0], [1.0]]).expand(2, 4)  # becomes zero
    assert ship_weights._as_half(layer, images, tries=3) is None


@pytest.mark.parametrize('name', sorted(shipped()))
def test_shipped(name):
    content = shipped()[name]
    weights = FOLDER / f'{name}.safetensors'
    assert hashlib.sha256(weights.read_bytes()).hexdigest() == content['sha256']
    assert name == f'{content["architecture"]}.{content["tag"]}'
    for key in ('model', 'recipe', 'seed', 'dataset', 'epoch', 'arguments', 'git_commit'):
        assert content['provenance'][key] is not None, key
    assert 0 < content['metrics']['top1'] <= 100
    assert content['log'][-1]['epoch'] == content['provenance']['epoch']
    for call in (name, content['architecture']):
        model = timm.create_model(call, pretrained=True)
        assert model.pretrained_cfg['tag'] == content['tag']
        assert all(torch.equal(value, load_file(weights)[key].to(value)) for key, value in model.state_dict().items())
    plain = timm.create_model(timm_asr.plain_architecture(name))
    plain.load_state_dict(timm_asr.fold_asr(model).state_dict())
    x = images(model)
    torch.testing.assert_close(plain.eval()(x), model.eval()(x), rtol=1e-5, atol=1e-5)


def test_only_weights_that_exist_are_promised():
    assert {path.stem for path in FOLDER.glob('*.json')} == {path.stem for path in FOLDER.glob('*.safetensors')}
    cfgs = {name: get_pretrained_cfg(name) for name in zoo_names()}
    assert not [name for name, cfg in cfgs.items() if cfg.hf_hub_id]
    theirs = {name: cfg.url for name, cfg in cfgs.items() if cfg.url}  # torchvision's, of the same network
    assert all(url.startswith('https://download.pytorch.org/models/') for url in theirs.values()), theirs
    assert {f'{name}.{cfg.tag}' for name, cfg in cfgs.items() if cfg.file} == set(shipped())
    if 'resnet164' not in {content['architecture'] for content in shipped().values()}:
        with pytest.raises(RuntimeError, match='No pretrained weights exist for resnet164'):
            timm.create_model('resnet164', pretrained=True)
    with pytest.raises(RuntimeError, match=r"create_model\('resnet50', pretrained=True, asr='se'\) puts ASR on those"):
        timm.create_model('resnet50_asr_se', pretrained=True)


FROM_THE_WHEEL = """
import json, socket, sys
from pathlib import Path
def no_network(*_, **__):
    raise AssertionError('the network was asked')
socket.socket.connect = no_network
import torch, timm, timm_asr
from safetensors.torch import load_file
from timm.data import resolve_model_data_config
name = 'resnet20_asr_se.cifar10'
folder = Path(timm_asr.__file__).parent / 'weights'
assert str(folder).startswith(sys.argv[1]), folder
assert name in timm.list_models('*.cifar10', pretrained=True)
state = load_file(folder / f'{name}.safetensors')
create = lambda name=name, **kwargs: timm.create_model(name, pretrained=True, **kwargs).eval()
model = create()
assert all(torch.equal(value, state[key].to(value)) for key, value in model.state_dict().items())
assert model.pretrained_cfg['tag'] == 'cifar10' and model.pretrained_cfg['label_names'][3] == 'cat'
data = resolve_model_data_config(model)
assert data['input_size'] == (3, 32, 32) and data['std'] == (0.2023, 0.1994, 0.201) and data['crop_pct'] == 1.0, data
x = torch.randn(2, 3, 32, 32)
logits = model(x)
assert torch.equal(create('resnet20_asr_se')(x), logits)

five = create(num_classes=5)
assert five.fc.weight.shape == (5, 64) and torch.equal(five.conv1.weight, model.conv1.weight)
gray = create(in_chans=1)
torch.testing.assert_close(gray.conv1.weight, model.conv1.weight.sum(1, keepdim=True), rtol=2e-3, atol=0)  # in float16
features = create(features_only=True)
torch.testing.assert_close(features(x)[-1], model.forward_features(x))
for form in (False, True):
    fast = create().reparameterize(fold_bn=form)
    assert not timm_asr.has_asr(fast)
    assert (fast(x) - logits).abs().max() < 1e-5 * logits.abs().max()
plain = timm.create_model('resnet20')
plain.load_state_dict(timm_asr.fold_asr(create()).state_dict())
torch.testing.assert_close(plain.eval()(x), logits, rtol=1e-5, atol=1e-5)
"""


@pytest.mark.slow
def test_the_wheel_holds_them_and_they_load_without_a_network(tmp_path):
    tree = tmp_path / 'tree'
    shutil.copytree(ROOT / 'timm_asr', tree / 'timm_asr', ignore=shutil.ignore_patterns('__pycache__'))
    for name in ('pyproject.toml', 'README.md', 'LICENSE'):
        shutil.copy(ROOT / name, tree)
    _run_folder(tmp_path / 'run')
    ship_weights.ship(tmp_path / 'run', 'cifar10', folder=tree / 'timm_asr' / 'weights', labels=CLASSES)
    isolation = [] if importlib.util.find_spec('setuptools') is None else ['--no-build-isolation']
    built = subprocess.run(
        [sys.executable, '-m', 'pip', 'wheel', '-q', '--no-deps', *isolation, '-w', tmp_path, tree],
        capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    wheel, = tmp_path.glob('*.whl')
    assert wheel.stat().st_size < 20e6
    with zipfile.ZipFile(wheel) as archive:
        held = {Path(name).name for name in archive.namelist() if name.startswith('timm_asr/weights/')}
        archive.extractall(tmp_path / 'site')
    expected = {path.name for path in FOLDER.iterdir()} | {
        'resnet20_asr_se.cifar10.safetensors', 'resnet20_asr_se.cifar10.json'}
    assert held == expected
    ran = subprocess.run(
        [sys.executable, '-c', FROM_THE_WHEEL, tmp_path / 'site'], capture_output=True, text=True, cwd=tmp_path,
        env={**os.environ, 'PYTHONPATH': str(tmp_path / 'site'), 'HF_HUB_OFFLINE': '1'})
    assert ran.returncode == 0, ran.stderr
