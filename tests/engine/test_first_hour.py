"""What a new user does in the first hour: their own folder, plain weights, a checkpoint measured as it was trained."""

import copy
import json
import re

import pytest
import timm
import torch
from helpers import asr_sites
from train_helpers import run

import timm_asr
from timm_asr.engine.commands import benchmark, validate
from timm_asr.engine.commands.train import main, parse_args
from timm_asr.engine.side_by_side import TURNS, Gated, columns_of, measure, structure, table
from timm_asr.errors import BadInput
from timm_asr.gates.se import SE

TRAIN = ['-b', '6', '--epochs', '1', '-j', '0', '--lr', '0.05', '--experiment', 'run', '--no-fuse', '--device', 'cpu']


@pytest.fixture(scope='module')
def trained(images, tmp_path_factory):
    """A checkpoint trained at another size, mean and crop than its model's own; and the row of its summary."""
    output = tmp_path_factory.mktemp('out')
    done = run(['--data-dir', images, '--model', 'resnet20_asr_se', '--img-size', '24', '--crop-pct', '0.8',
                '--mean', '0.3', '0.3', '0.3', '--std', '0.2', '0.2', '0.2', *TRAIN, '--output', output],
               output / 'log')
    assert done.code == 0, done.text
    assert 'The data has 3 classes, so the model gets 3 outputs' in done.text
    return output / 'run' / 'model_best.pth.tar'


def result(capsys):
    return json.loads(capsys.readouterr().out.split('--result\n')[1])


def test_validate_takes_size_mean_and_crop_from_the_checkpoint(trained, images, capsys):
    validate.main([str(images), '--checkpoint', str(trained), '-b', '4', '-j', '0', '--device', 'cpu'])
    row = result(capsys)
    assert (row['img_size'], row['crop_pct']) == (24, 0.8)
    saved = torch.load(trained, weights_only=True)
    assert saved['state_dict']['fc.weight'].shape[0] == 3  # as many as the data has classes
    assert row['top1'] == pytest.approx(saved['metric'], abs=1e-3)
    validate.main([str(images), '--checkpoint', str(trained), '-b', '4', '-j', '0', '--device', 'cpu',
                   '--img-size', '32', '--crop-pct', '1'])
    row = result(capsys)
    assert (row['img_size'], row['crop_pct']) == (32, 1.0)


def test_benchmark_takes_size_and_classes_from_the_checkpoint(trained, capsys):
    benchmark.main(['-m', str(trained), '--versus', 'resnet20', '--bench', 'inference', '-b', '2', '--rounds', '1',
                    '--num-warm-iter', '1', '--num-bench-iter', '1', '--device', 'cpu'])
    rows = result(capsys)
    assert [row['infer_img_size'] for row in rows] == [24, 24]
    plain = sum(p.numel() for p in timm.create_model('resnet20', num_classes=3).parameters())
    assert rows[1]['param_count'] == round(plain / 1e6, 2)


@pytest.mark.parametrize('how', ['--pretrained', '--pretrained-path'])
def test_asr_by_name_on_plain_weights_names_the_command_that_works(how, images, tmp_path):
    path = tmp_path / 'plain.pth'
    torch.save(timm.create_model('resnet20', num_classes=3).state_dict(), path)
    model = 'resnet50_asr_se' if how == '--pretrained' else 'resnet20_asr_se'
    words = [how] if how == '--pretrained' else [how, str(path)]
    with pytest.raises(BadInput) as error:
        main(['--data-dir', str(images), '--model', model, *words, *TRAIN, '--output', str(tmp_path)])
    right = f'--model {model.partition("_")[0]} --asr se {" ".join(words)}'
    assert str(error.value).endswith(right)


def test_a_model_of_a_folder_trains_and_its_checkpoint_is_taken_everywhere(images, tmp_path, capsys):
    folder = timm_asr.save_fused(timm.create_model('test_resnet', num_classes=5), tmp_path / 'folder')
    model = f'local-dir:{folder}'
    done = run(['--data-dir', images, '--model', model, '--pretrained', '--asr', 'se', '--img-size', '32', *TRAIN,
                '--output', tmp_path], tmp_path / 'log')
    assert done.code == 0, done.text
    assert 'The classifier is new, with 3 outputs.' in done.text
    checkpoint = str(tmp_path / 'run' / 'model_best.pth.tar')
    validate.main([str(images), '--checkpoint', checkpoint, '-b', '4', '-j', '0', '--device', 'cpu'])
    assert result(capsys)['img_size'] == 32
    from timm_asr.engine.commands.export import main as export
    exported = str(tmp_path / 'exported')
    assert export([checkpoint, '--output', exported, '--device', 'cpu']) == 0
    assert capsys.readouterr().out.startswith('export   test_resnet --asr se, epoch 0, ')
    assert timm.create_model(f'local-dir:{exported}', pretrained=True).num_classes == 3
    assert benchmark.main(['-m', checkpoint, '--versus', exported, f'{checkpoint}+fold-bn', '--bench', 'inference',
                           '-b', '2', '--rounds', '1', '--num-bench-iter', '1', '--device', 'cpu']) == 0


def test_side_by_side(monkeypatch):
    """Plain, SE and ASR: which are the same network, who was trained, and where the spread is."""
    args = parse_args(['--model', 'resnet20_asr_se', '--dataset', 'digits', '--model-kwargs', 'layers=(1,1,1)',
                       'channels=(8,8,8)', '--num-classes', '3', '--drop-path', '0.1'])
    model = timm.create_model('resnet20_asr_se', layers=(1, 1, 1), channels=(8, 8, 8), num_classes=3).eval()
    columns = columns_of(args, model, timm_asr.reparameterize(copy.deepcopy(model)))
    assert list(columns) == ['resnet20', 'resnet20_se', 'resnet20_asr_se']
    monkeypatch.setitem(TURNS, 'rounds', 3)
    monkeypatch.setattr('gc.collect', lambda: 0)  # takes a second where many tests have run
    rows = measure(columns, (2, 3, 8, 8), torch.device('cpu'))
    assert rows['resnet20']['infer_folded'] == 'same network'
    assert rows['resnet20_asr_se']['infer_folded'] == 'same network as resnet20'
    assert isinstance(rows['resnet20_se']['infer_folded'], list)
    assert rows['resnet20']['parameters'] == rows['resnet20_asr_se']['parameters_inference']
    lines = table({'side_by_side': rows, 'images': 9, 'top1': 98.0, 'top1_folded': 97.0,
                   'logit_difference': 2e-6}).splitlines()
    assert re.search(r'training step +[\d.e+]+ ms( +[\d.]+ \([\d.]+-[\d.]+\)){2}$', lines[2])
    assert re.search(r'top-1 on 9 images, % +not trained +not trained +98.00$', lines[7])
    assert lines[9:] == ['Folded: top-1 97.00 %, largest logit difference 2.0e-06.']


@pytest.mark.parametrize('name', ['test_vit', 'test_convnext', 'resnet20'])
def test_attention_at_the_sites_of_asr(name):
    """SE beside ASR by keyword: at the same layers, on tokens too, from what they put out."""
    args = parse_args(['--model', name, '--dataset', 'digits', '--asr', 'se', '--num-classes', '3', '--model-kwargs',
                       'rd_ratio=0.5'])
    model = timm_asr.create_model(name, asr='se', num_classes=3, rd_ratio=0.5).eval()
    columns = columns_of(args, model, model)
    assert list(columns) == [name, f'{name}_se', f'{name}_asr_se']
    plain, gated = (columns[key][0] for key in (name, f'{name}_se'))
    widths = [[gate.fc1.weight.shape[0] for gate in network.modules() if isinstance(gate, SE)]
              for network in (gated, model)]
    assert widths[0] == widths[1]
    sites = asr_sites(model)
    if name == 'resnet20':  # which has a name
        assert type(gated) is type(plain)
        return
    assert [key for key, module in gated.named_modules() if isinstance(module, Gated)] == sites
    site = gated.get_submodule(sites[-1])
    seen = []
    site.layer.register_forward_hook(lambda module, args, out: seen.append(out))
    site.register_forward_hook(lambda module, args, out: seen.append(out))
    images = torch.randn(2, *timm.get_pretrained_cfg(name).input_size)
    gated(images)
    before, after = (out.movedim(site.dim, 1).flatten(2) for out in seen)
    v = site.gate.excite(before.mean(2))
    assert torch.allclose(after, before * v[..., None], atol=1e-6)


def test_two_networks_are_the_same_only_if_their_layers_are():
    plain, same, other, se = (structure(timm.create_model(name, num_classes=classes)) for name, classes in (
        ('resnet20', 3), ('resnet20', 3), ('resnet20', 4), ('resnet20_se', 3)))
    assert plain == same
    assert plain not in (other, se)
