"""Export of checkpoints and folders: what config.json says of them, and the command."""

import json
import shutil
import subprocess
from unittest.mock import Mock

import pytest
import timm
import torch
import yaml
from export_helpers import SECRET, command, digits_model, nudged, our_checkpoint, timm_checkpoint
from helpers import images, randomize, relative_error
from safetensors.torch import save_file
from train_helpers import make_images

import timm_asr
from timm_asr.checkpoints import provenance
from timm_asr.checkpoints.open import open_source
from timm_asr.checkpoints.provenance import base_name, file_sha256, git_commit, public_arguments
from timm_asr.checkpoints.read import read_config
from timm_asr.engine import exporting
from timm_asr.errors import BadInput


@pytest.fixture(scope='module')
def model():
    return digits_model()


@pytest.fixture
def checkpoint(model, tmp_path):
    (tmp_path / 'run').mkdir()
    return our_checkpoint(tmp_path / 'run' / 'last.pth.tar', model, nudged(model))


def read_provenance(folder):
    return read_config(folder)['timm_asr']


def reload(folder):
    return timm.create_model(f'local-dir:{folder}', pretrained=True).eval()


def test_a_checkpoint_of_this_package(model, checkpoint, tmp_path):
    x = images(model)
    for use_ema, wanted in ((False, model), (True, nudged(model))):
        folder = timm_asr.save_fused(checkpoint, tmp_path / str(use_ema), use_ema=use_ema)
        assert relative_error(wanted(x), reload(folder)(x)) < 1e-5
        assert read_provenance(folder)['weights'] == ('ema' if use_ema else 'raw')
    loaded = reload(folder)
    data = timm.data.resolve_model_data_config(loaded)
    assert (data['input_size'], data['mean'], data['std']) == ((1, 32, 32), [0.3053], [0.376])
    assert (data['crop_pct'], data['interpolation']) == (1.0, 'bilinear')
    assert loaded.pretrained_cfg['label_names'] == [f'digit {i}' for i in range(10)]
    given = reload(timm_asr.save_fused(checkpoint, tmp_path / 'given', check=False, label_names='abcdefghij',
                                       data_config={**data, 'crop_pct': 0.5})).pretrained_cfg
    assert (given['crop_pct'], given['label_names'][0]) == (0.5, 'a')


def test_provenance(checkpoint, tmp_path):
    folder = timm_asr.save_fused(checkpoint, tmp_path / 'out')
    told = read_provenance(folder)
    assert told['weights_sha256'] == file_sha256(folder / 'model.safetensors')
    assert told['source'] == {'file': 'last.pth.tar', 'sha256': file_sha256(checkpoint)}
    assert [told[key] for key in ('package_version', 'timm_version', 'torch_version', 'git_commit')] == [
        '0.0.1', '1.0.30', '2.9', 'c0ffee']  # those of the training
    assert told['exported_with']['timm_version'] == timm.__version__
    assert (told['model'], told['recipe'], told['seed'], told['dataset'], told['epoch']) == (
        'resnet20_asr_se', 'digits', 42, 'digits', 7)
    assert told['metrics'] == {'before': {'top1': 91.5}, 'after': None}
    assert told['arguments']['lr'] == 0.1
    assert told['files'] == {name: file_sha256(folder / name) for name in told['files']}
    assert {*told['files'], 'config.json'} == {path.name for path in folder.iterdir()}
    # timm would refuse an unknown key inside pretrained_cfg.
    assert 'timm_asr' not in json.loads((folder / 'config.json').read_text())['pretrained_cfg']


def test_neither_paths_nor_secrets_leak(checkpoint, tmp_path):
    (checkpoint.parent / 'summary.csv').write_text('epoch\n0\n')
    folder = timm_asr.save_fused(checkpoint, tmp_path / 'out')
    assert sorted(p.name for p in folder.iterdir()) == [
        'args.yaml', 'config.json', 'model.safetensors', 'modeling_timm_asr.py', 'summary.csv']
    for path in folder.iterdir():
        content = path.read_bytes()
        assert str(tmp_path).encode() not in content
        assert SECRET.encode() not in content
    assert 'data_dir' not in yaml.safe_load((folder / 'args.yaml').read_text())


def test_arguments_go_out_by_name_and_then_by_value():
    kept = {'model': 'resnet50', 'dataset': 'torch/cifar10', 'aa': 'rand-m9-mstd0.5', 'lr': 0.1, 'mean': [0.5, 0.4],
            'amp': True, 'sched': 'cosine', 'model_kwargs': {'depth': 2, 'asr_sites': ['layer3.*.bn2']}, 'seed': 0,
            'bn_noise': 'N1_0.1,N0_0.1'}
    assert public_arguments(kept) == {key: kept[key] for key in sorted(kept)}
    assert public_arguments({'model': 'hf-hub:me/net', 'dataset': 'hfds/me/images'}) == {
        'dataset': 'hfds/me/images', 'model': 'hf-hub:me/net'}
    tokens = [f'{start}{"a1B2" * 9}' for start in ('hf_', 'ghp_', 'sk-', 'glpat-', 'AKIA', 'xoxb-', 'api_', '', 'eyJ')]
    tokens += ['https://me:secret@host/x', 'a=/home/me/x', 'Bearer abc', '/home/me', '~/x', 'C:\\me', '../x']
    for name in ('opt', 'sched', 'aa', 'interpolation'):
        assert [public_arguments({name: token}) for token in tokens] == [{}] * len(tokens)
    assert public_arguments({'opt_kwargs': {'a': tokens[0], 'b': ['/home/x', 1], 'c': [None, 1]}}) == {
        'opt_kwargs': {'c': [None, 1]}}
    unknown = ('data_dir', 'wandb_tags', 'output', 'hub_token', 'device_modules', 'pretrained_path', 'resume', 'new')
    assert public_arguments(dict.fromkeys(unknown, 'word')) == {}
    for folder in ('/home/me/x', 'hfds//home/me/x', 'wds/home/me/x', 'file:///home/me/x', 'a=b:/home/me/x'):
        assert public_arguments({'dataset': folder}) == {'dataset': 'x'}
    assert public_arguments({'model': 'local-dir:/home/me/x'}) == {'model': 'x'}
    assert base_name('a/b/') == 'b'


@pytest.mark.skipif(shutil.which('git') is None, reason='git is not installed')
def test_git_commit_of_the_checkout(tmp_path, monkeypatch):
    def git(*words):
        line = ['git', '-c', 'user.name=me', '-c', 'user.email=me@here', *words]
        return subprocess.check_output(line, cwd=tmp_path, text=True).strip()

    monkeypatch.setattr(provenance, '__file__', str(tmp_path / 'provenance.py'))
    (tmp_path / '__init__.py').touch()
    git('init', '-q')
    git('commit', '-q', '--allow-empty', '-m', 'of a project with an environment inside')
    assert git_commit.__wrapped__() is None
    git('add', '.')
    git('commit', '-q', '-m', 'of this package')
    git('tag', '-a', '-m', 'a release', 'v1')
    assert git_commit.__wrapped__() == git('rev-parse', 'HEAD')
    (tmp_path / '__init__.py').write_text('# changed')
    assert git_commit.__wrapped__() == f'{git("rev-parse", "HEAD")}-dirty'


def test_a_checkpoint_of_timms_script(tmp_path):
    model = randomize(timm.create_model('resnet18_asr_se', num_classes=3)).eval()
    path = timm_checkpoint(tmp_path / 'model_best.pth.tar', model, nudged(model))
    x = torch.randn(2, 3, 48, 48)
    for use_ema, wanted in ((False, model), (True, nudged(model))):
        folder = timm_asr.save_fused(path, tmp_path / str(use_ema), use_ema=use_ema)
        loaded = reload(folder)
        assert type(loaded) is timm.models.ResNet
        assert relative_error(wanted(x), loaded(x)) < 1e-5
    data = timm.data.resolve_model_data_config(loaded)
    assert (data['input_size'], data['mean'], data['crop_pct'], data['interpolation']) == (
        (3, 48, 48), [0.4] * 3, 0.8, 'bilinear')
    told = read_provenance(folder)
    assert (told['seed'], told['dataset'], told['git_commit'], told['arguments']['lr']) == (
        3, tmp_path.name, None, 0.01)


def test_a_checkpoint_of_a_stock_name_with_asr(tmp_path):
    model = randomize(timm_asr.create_model(
        'resnet18', asr='ie', asr_sites='layer4.*.bn2', num_classes=10, in_chans=1)).eval()
    path = our_checkpoint(
        tmp_path / 'last.pth.tar', model, arch='resnet18', data_config={'crop_pct': 0.8},
        argv=['--model', 'resnet18', '--asr', 'ie', '--eval-metric', 'loss'])
    folder = timm_asr.save_fused(path, tmp_path / 'a', keep_trainable=True)
    loaded = reload(folder)
    assert type(loaded) is timm.models.ResNet
    assert loaded.pretrained_cfg['crop_pct'] == 0.8  # as it was in the run, whatever options and timm would say now
    x = images(model, size=32)
    assert relative_error(model(x), loaded(x)) < 1e-5
    told = read_provenance(folder / 'trainable')
    assert (told['model'], told['asr']['asr'], told['needs'], told['metrics']) == ('resnet18', 'ie', ['timm_asr'], None)
    trainable = timm_asr.load_trainable(folder).eval()
    assert timm_asr.has_asr(trainable)
    assert relative_error(model(x), trainable(x)) < 1e-5
    with pytest.raises(RuntimeError, match='psi'):
        reload(folder / 'trainable')  # stock timm does not take it for something else
    again = timm_asr.save_fused(folder / 'trainable', tmp_path / 'b')
    assert read_provenance(again)['weights_sha256'] == read_provenance(folder)['weights_sha256']


def test_the_command_says_what_it_does(model, checkpoint, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(exporting, 'export_program', program := Mock(return_value=checkpoint))
    folder = tmp_path / 'out'
    status, out, err = command(capsys, 'export', checkpoint, '--output', folder, '--keep-trainable', '-j', 0,
                               '--torch-export', tmp_path / 'a.pt2', '--fold-bn', '--any-size')
    assert (status, err) == (0, '')
    assert program.call_args.kwargs['fold_bn'] is program.call_args.kwargs['any_size'] is True
    steps = [line.split()[0] for line in out.splitlines() if line[0] != ' ']
    assert steps == ['export', 'compare', 'fold', 'check', 'check', 'written', 'written']
    assert 'epoch 7, raw weights (averaged ones are there too: --use-ema), from last.pth.tar' in out
    assert 'loads by timm and timm_asr; logits differ' in out
    size = f'{(folder / "model.safetensors").stat().st_size:,}'
    assert f'{size}  model.safetensors  sha256 {file_sha256(folder / "model.safetensors")}' in out
    assert {p.name for p in folder.iterdir()} == {
        'args.yaml', 'config.json', 'metrics.json', 'model.safetensors', 'modeling_timm_asr.py', 'trainable'}
    metrics = json.loads((folder / 'metrics.json').read_text())  # on the embedded digits, which the run was trained on
    assert (metrics['images'], metrics['dataset'], metrics['epoch']) == (359, 'digits', 7)
    told = read_provenance(folder)['metrics']
    assert told['before'] == {'top1': metrics['top1'], 'top5': metrics['top5']}
    assert told['after'] == {'top1': metrics['top1_folded'], 'top5': metrics['top5_folded']}
    # A second time needs --force, and takes nothing of the first along.
    status, out, err = command(capsys, 'export', checkpoint, '--output', folder, '--use-ema')
    assert status == 2
    assert f'{folder} has a model.safetensors already; choose another folder, or replace what is there (--force' in err
    assert 'compare' not in out  # before any work
    with pytest.raises(BadInput, match='its trainable form would be lost'):
        timm_asr.save_fused(folder / 'trainable', folder, overwrite=True)
    # Figures are of the images that they were measured on.
    for words in (['--crop-pct', 0.8], ['--interpolation', 'nearest']):
        other = tmp_path / words[0]
        assert command(capsys, 'export', folder, '--output', other, *words)[0] == 0
        assert not (other / 'metrics.json').exists()
        assert read_provenance(other)['metrics'] is None
    assert command(capsys, 'export', checkpoint, '--output', folder, '--use-ema', '--force', '-j', 0)[0] == 0
    assert not (folder / 'trainable').exists()


def test_a_folder_and_a_bare_state_dict(model, tmp_path, capsys):
    save_file(model.state_dict(), tmp_path / 'weights.safetensors')
    (tmp_path / 'names.txt').write_text('\n'.join('abcdefghij'))
    (tmp_path / 'summary.csv').write_text('patient,diagnosis\n')  # what lies beside bare weights is not theirs
    (tmp_path / 'metrics.json').write_text('{')
    first, second = tmp_path / 'first', tmp_path / 'second'
    status, _, err = command(
        capsys, 'export', tmp_path / 'weights.safetensors', '-o', first, '--model', 'resnet20_asr_se', '--in-chans', 1,
        '--model-kwargs', 'layers=(1,1,1)', '--mean', 0.5, '--crop-pct', 0.9, '--labels', tmp_path / 'names.txt')
    assert (status, err) == (0, '')
    assert not (first / 'summary.csv').exists()
    assert read_provenance(first)['source']['sha256'] == file_sha256(tmp_path / 'weights.safetensors')
    assert timm.data.resolve_model_data_config(reload(first))['crop_pct'] == 0.9
    for source in (first, first / 'model.safetensors', f'local-dir:{first}'):
        status, _, err = command(capsys, 'export', source, '--output', first, '--force')
        assert status == 2
        assert 'is the folder that is read, and its trainable form would be lost; name another one' in err
    with pytest.raises(BadInput, match='first holds resnet20 or resnet20_asr_se, not resnet56; leave --model out'):
        open_source(first, name='resnet56')
    assert command(capsys, 'export', first, '--output', second)[0] == 0
    a, b = (json.loads((f / 'config.json').read_text()) for f in (first, second))
    assert a == b
    assert list(b['label_names']) == list('abcdefghij')
    assert file_sha256(first / 'model.safetensors') == file_sha256(second / 'model.safetensors')


def test_figures_are_of_the_size_that_the_folder_states(tmp_path, capsys):
    make_images(tmp_path / 'images', 2, 1, 1)
    name = 'mobilenetv4_conv_small_035'  # trained on 224 pixels and tested on 256
    torch.save(timm.create_model(name, num_classes=2).state_dict(), tmp_path / 'a.pth')
    status, _, err = command(capsys, 'export', tmp_path / 'a.pth', '--model', name, '--data-dir', tmp_path / 'images',
                             '-o', tmp_path / 'out', '-j', 0)
    assert (status, err) == (0, '')
    cfg = json.loads((tmp_path / 'out' / 'config.json').read_text())['pretrained_cfg']
    assert (cfg['input_size'], cfg['crop_pct']) == ([3, 256, 256], 0.95)


def test_published_weights_are_a_source(tmp_path):
    folder = timm_asr.save_fused('resnet20_asr_se.cifar10', tmp_path / 'a')
    assert read_provenance(folder)['source'] == {'file': 'resnet20_asr_se.cifar10', 'sha256': None}
    with pytest.raises(BadInput, match='published weights, which have no averaged ones'):
        timm_asr.save_fused('resnet20_asr_se.cifar10', tmp_path / 'b', use_ema=True)


@pytest.mark.parametrize(('argv', 'sentence'), [
    ('{c}', 'nothing to write: give --output FOLDER, --onnx FILE or --torch-export FILE'),
    ('{c} --output {t}/x --data-dir {t}/nowhere', 'no data at {t}/nowhere'),
    ('{c} --output {t}/x --labels {t}/nowhere', '{t}/nowhere cannot be read (No such file or directory)'),
    ('{c} --output {t}/x --labels {t}/text.pth', '1 label names were given for 10 classes'),
    ('{c} --output {t}/x --int8 {t}/y.onnx', '--int8 goes with --onnx'),
    ('{c} --onnx {t}/x.onnx --int8 {t}/x.onnx', '--onnx, --int8 and --torch-export write a file each'),
    ('{c} --onnx {t}/x.onnx --int8 {t}/y.onnx --samples 0', '--samples takes one image or more'),
    ('{c} --onnx {t}/x.onnx --keep-trainable', '--keep-trainable goes with --output'),
    ('{c} --torch-export {t}/text.pth', '{t}/text.pth is there already; choose another name, or replace it (--force)'),
    ('{c} --output {t}/x --mean 0.1 0.2', '--mean and --std take one value, or one for each input channel')])
def test_one_sentence_for_what_is_wrong(argv, sentence, checkpoint, tmp_path, capsys):
    (tmp_path / 'text.pth').write_text('not a checkpoint')
    before = sorted(p.name for p in tmp_path.iterdir())
    words = [word.format(c=checkpoint, t=tmp_path) for word in argv.split()]
    status, _, err = command(capsys, 'export', *words, '-j', '0')
    assert status in (1, 2)
    assert err.startswith('timm-asr export: error: ')
    assert sentence.format(t=tmp_path) in err
    assert err.count('\n') == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == before


def test_figures_and_plots_of_the_best_checkpoint_go_along(model, tmp_path):
    best = our_checkpoint(tmp_path / 'model_best.pth.tar', model, nudged(model))
    other = our_checkpoint(tmp_path / 'last.pth.tar', nudged(model), epoch=8)
    plot = b'\x89PNG\r\n\x1a\nplot'
    (tmp_path / 'attention.png').write_bytes(plot)
    (tmp_path / 'metrics.json').write_text(json.dumps({
        'model': 'resnet20_asr_se', 'epoch': 7, 'weights': 'raw', 'top1': 91.5, 'top1_fused': 91.5, 'images': 359}))
    folder = timm_asr.save_fused(best, tmp_path / 'a')
    assert (folder / 'attention.png').read_bytes() == plot
    assert read_provenance(folder)['metrics']['after'] == {'top1': 91.5}
    for source, use_ema, beside in ((other, False, []), (best, True, ['attention.png'])):  # of its averaged weights
        folder = timm_asr.save_fused(source, tmp_path / str(use_ema), use_ema=use_ema)
        assert [p.name for p in folder.iterdir() if p.name in ('attention.png', 'metrics.json')] == beside
        assert read_provenance(folder)['metrics']['after'] is None
