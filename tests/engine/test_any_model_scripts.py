"""timm_asr.create_model and --asr: any name gets ASR, and what it is saved as knows so."""

import copy
import json
import re

import pytest
import timm
import torch
import yaml
from helpers import asr_layers, randomize, relative_error
from train_helpers import run

import timm_asr
from timm_asr.checkpoints.open import open_source
from timm_asr.engine.build import build_model
from timm_asr.engine.commands import benchmark, validate
from timm_asr.engine.commands.train import parse_args
from timm_asr.errors import BadInput

SMALL = {'num_classes': 3, 'depths': (1, 1, 1, 1)}
COMMON = ['--model', 'test_convnext', '--num-classes', 3, '--img-size', 32, '-b', 6, '--workers', 0, '--lr', 0.01,
          '--no-progress', '--warmup-epochs', 0]


def test_keywords_reach_the_sites_and_stay_with_the_model():
    model = timm_asr.create_model('test_convnext', asr='eca', asr_depth=2, asr_learnable=False, **SMALL)
    assert type(model) is type(timm.create_model('test_convnext', **SMALL))
    sites = asr_layers(model)
    assert [len(asr.vectors) for asr in sites] == [2] * 4
    assert not any(vector.psi.requires_grad for asr in sites for vector in asr.vectors)
    options = {'asr': 'eca', 'asr_depth': 2, 'asr_learnable': False}
    assert model.asr_options == copy.deepcopy(model).asr_options == options
    again = timm_asr.create_model('test_convnext', **model.asr_options, **SMALL)
    again.load_state_dict(model.state_dict(), strict=True)

    model = timm_asr.create_model('resnet18', asr='se', asr_sites='layer4.*.bn2', asr_init=0.3, rd_ratio=0.25)
    assert len(asr_layers(model)) == 2
    assert asr_layers(model)[0].vectors[0].gate.fc1.out_channels == 128
    assert torch.all(asr_layers(model)[0].vectors[0].psi == 0.3)


def test_without_asr_it_is_timms():
    assert not timm_asr.has_asr(timm_asr.create_model('resnet18', device='meta'))
    assert timm_asr.create_model('resnet20_asr_se', asr_depth=2, device='meta').layer1[0].bn2.vectors[1] is not None


@pytest.mark.parametrize(('error', 'sentence', 'name', 'kwargs'), [
    (ValueError, "'resnet50_asr_se' has ASR already, by its name; .*the plain 'resnet50'",
     'resnet50_asr_se', {'asr': 'se'}),
    (TypeError, "asr_depth goes with ASR; name its gate, e.g. asr='se'", 'resnet18', {'asr_depth': 2}),
    (TypeError, 'asr_sites goes with ASR', 'resnet20_asr_se', {'asr_sites': ['bn1']}),
    (TypeError, 'asr_gain goes with ASR', 'resnet18', {'asr_gain': 2}),
    (TypeError, 'preserve goes with ASR', 'resnet18', {'preserve': True})])
def test_what_cannot_be_made_is_said(error, sentence, name, kwargs):
    with pytest.raises(error, match=sentence):
        timm_asr.create_model(name, device='meta', **kwargs)


def test_pretrained_weights_keep_their_function(tmp_path):
    trained = randomize(timm_asr.create_model('test_convnext', asr='se', **SMALL)).eval()
    folder = timm_asr.save_fused(trained, tmp_path / 'folder')
    x = torch.randn(2, 3, 32, 32)
    expected = trained(x)
    name = f'local-dir:{folder}'
    model = timm_asr.create_model(name, pretrained=True, asr='srm').eval()
    assert len(asr_layers(model)) == 4
    assert relative_error(expected, model(x)) < 1e-5
    from_file = timm_asr.create_model(
        'test_convnext', asr='srm', checkpoint_path=str(folder / 'model.safetensors'), **SMALL).eval()
    assert relative_error(expected, from_file(x)) < 1e-5
    changed = timm_asr.create_model(name, pretrained=True, asr='srm', preserve=False).eval()
    assert relative_error(expected, changed(x)) > 1e-3
    # once more, from fine-tuned to stock timm
    timm_asr.save_fused(randomize(model), tmp_path / 'again')
    again = timm.create_model(f'local-dir:{tmp_path / "again"}', pretrained=True).eval()
    assert relative_error(model(x), again(x)) < 1e-5


def test_train_goes_on_from_a_trainable_folder_by_the_words_that_it_says(tmp_path):
    model = randomize(timm_asr.create_model('test_convnext', asr='se', num_classes=3))
    folder = timm_asr.save_fused(model, tmp_path / 'folder', keep_trainable=True) / 'trainable'
    with pytest.raises(BadInput, match='has ASR, which is not in the name') as caught:
        build_model(parse_args(['--model', f'local-dir:{folder}', '--pretrained']))
    said = str(caught.value).split('goes on with it: ')[1]
    again = build_model(parse_args([*said.split(), '--num-classes', '3']))
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in again.state_dict().items())


@pytest.mark.parametrize('name', ['resnet18', 'test_vit', 'test_efficientnet'])
def test_features_only(name):
    ours = randomize(timm_asr.create_model(name, asr='se', features_only=True)).eval()
    assert asr_layers(ours)
    x = torch.randn(1, *timm.get_pretrained_cfg(name).input_size)
    expected = ours(x)
    stock = timm.create_model(name, features_only=True).eval()
    stock.load_state_dict(timm_asr.fold_asr(ours).state_dict(), strict=True)
    assert all(relative_error(a, b) < 1e-5 for a, b in zip(expected, stock(x), strict=True))


@pytest.fixture(scope='module')
def trained(images, tmp_path_factory):
    """The folder of a run of one epoch, and what it printed."""
    root = tmp_path_factory.mktemp('asr')
    result = run([*COMMON, '--data-dir', images, '--asr', 'se', '--model-kwargs', 'asr_depth=2', '--epochs', 1,
                  '--output', root / 'out'], root / 'log')
    assert result.code == 0, result.text
    folder, = (root / 'out').iterdir()
    return folder, result.text


def test_a_run_is_named_and_folded(trained):
    folder, text = trained
    assert folder.name.endswith('-test_convnext_asr_se-32')
    metrics = json.loads((folder / 'metrics.json').read_text())
    assert (metrics['model'], metrics['asr'], metrics['plain']) == ('test_convnext', 'se', 'test_convnext')
    plain = timm.create_model('test_convnext', num_classes=3)
    assert metrics['parameters'] > metrics['parameters_folded'] == metrics['parameters_plain'] == sum(
        p.numel() for p in plain.parameters())
    # The table shows plain, SE (at the sites of ASR, since no such network has a name) and ASR, as for names.
    assert re.search(r'^ +test_convnext +test_convnext_se +test_convnext_asr_se$', text, re.MULTILINE)
    rows = metrics['side_by_side']
    assert rows['test_convnext_se']['parameters'] > rows['test_convnext']['parameters'] == metrics['parameters_plain']
    assert rows['test_convnext_asr_se']['infer_folded'] == 'same network as test_convnext'
    assert 'top5' not in text  # of three classes
    model = timm.create_model(f'local-dir:{folder}', pretrained=True)
    assert list(model.state_dict()) == list(plain.state_dict())


def test_the_checkpoint_knows_its_asr(trained, images, capsys):
    checkpoint = trained[0] / 'last.pth.tar'
    model = open_source(checkpoint).model
    assert model.asr_options['asr'] == 'se'
    assert [len(asr.vectors) for asr in asr_layers(model)] == [2] * len(asr_layers(model))
    rows = []
    for words in ([], ['--reparam']):
        validate.main([str(images), '--checkpoint', str(checkpoint), '-b', '4', '-j', '0', '--device', 'cpu', *words])
        rows.append(json.loads(capsys.readouterr().out.split('--result\n')[1]))
    assert rows[0]['top1'] == rows[1]['top1']
    assert rows[0]['param_count'] >= rows[1]['param_count']
    with pytest.raises(BadInput, match='is a trainable ASR checkpoint|keys'):
        open_source(checkpoint, name='test_convnext', asr='eca')


def test_a_run_goes_on_with_its_own_asr_alone(trained, images, tmp_path):
    folder, _ = trained
    words = [*COMMON, '--data-dir', images, '--no-fuse', '--output', tmp_path]
    last = folder / 'last.pth.tar'
    for more, said in ((['--asr', 'eca'], 'with --asr eca'), ([], 'without --asr')):
        result = run([*words, '--resume', last, '--epochs', 2, '--experiment', 'on', *more], tmp_path / 'log')
        assert (result.code, f'it was trained with --asr se, not {said}' in result.text) == (2, True)
    # a plain run of the same model does not go on from a run with ASR
    result = run([*words, '--output', folder.parent, '--resume', 'auto', '--epochs', 1], tmp_path / 'log')
    assert result.code == 0, result.text
    assert 'Going on' not in result.text
    result = run([*words, '--asr', 'se', '--model-kwargs', 'asr_depth=2', '--resume', last, '--experiment', 'more',
                  '--epochs', 1, '--lr', '0.0123'], tmp_path / 'log')
    assert 'whose optimizer goes on; --no-resume-opt takes 0.0123' in result.text
    told = yaml.safe_load((tmp_path / 'more' / 'args.yaml').read_text())
    assert told['lr'] != 0.0123
    assert 'resume' not in told


def test_refusals_of_the_script(trained, images, tmp_path):
    folder, _ = trained
    for words, sentence in (
            (['--asr', 'sa'], "test_convnext_asr_sa cannot be made with these options: Unknown gate 'sa'"),
            (['--asr', 'se', '--initial-checkpoint', folder / 'model.safetensors'],
             'has no ASR vectors; --pretrained-path'),
            (['--pretrained-path', folder / 'last.pth.tar'], 'has ASR vectors, for which test_convnext has no place')):
        result = run([*COMMON, '--data-dir', images, '--epochs', 1, '--output', tmp_path, *words], tmp_path / 'log')
        assert result.code == 2
        assert sentence in result.text
        assert len(result.text.strip().splitlines()) <= 2
    # and the way that the last sentence names works
    result = run([*COMMON, '--data-dir', images, '--epochs', 1, '--output', tmp_path, '--no-fuse', '--asr', 'se',
                  '--pretrained-path', folder / 'model.safetensors'], tmp_path / 'log')
    assert result.code == 0, result.text


def test_benchmark_against_the_plain_model(capsys):
    benchmark.main(['--model', 'test_convnext', '--asr', 'se', '--versus', 'test_convnext',
                    'test_convnext+asr-ie+reparam', '--img-size', '32', '-b', '2', '--num-warm-iter', '1',
                    '--num-bench-iter', '2', '--rounds', '2', '--bench', 'inference', '--device', 'cpu'])
    rows = json.loads(capsys.readouterr().out.split('--result\n')[1])
    assert [row['model'] for row in rows] == [
        'test_convnext+asr-se', 'test_convnext', 'test_convnext+asr-ie+reparam']
    assert rows[0]['param_count'] > rows[1]['param_count'] == rows[2]['param_count']
