"""The commands that look at models without training any: models and sites."""

import pytest
import timm
import torch
from helpers import asr_sites

import timm_asr
from timm_asr.engine.commands import models, sites
from timm_asr.errors import BadInput
from timm_asr.models.counts import count_parameters, model_rows


def test_the_table_of_models(capsys):
    assert models.main(['resnet20_*asr_se']) == 0
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.split() == ['name', 'input', 'parameters', 'folded', 'MACs']
    assert [row.split()[0] for row in rows] == ['resnet20_asr_se', 'resnet20_se_asr_se']
    trained = timm.create_model('resnet20_asr_se')
    plain = timm.create_model('resnet20')
    assert rows[0].split()[1:4] == ['3x32x32', f'{count_parameters(trained):,}', f'{count_parameters(plain):,}']
    # 3x3 convolutions of He's ResNet-20: 40.6 M, and the projections of two shortcuts, 0.3 M
    assert rows[0].split()[4:] == ['41', 'M']


def test_rows_hold_the_registry():
    row, = model_rows('resnet164_dia_lstm')
    assert row['title'] == 'ResNet-164 for 32x32 images, one lstm shared by the blocks of each stage'
    assert row['parameters'] == row['folded'] == count_parameters(timm.create_model('resnet164_dia_lstm'))
    asr, plain = (next(model_rows(name)) for name in ('resnet164_asr_se', 'resnet164'))
    assert asr['macs'] == plain['macs'] > 0
    assert asr['folded'] == plain['parameters'] < asr['parameters']


def test_names_alone(capsys):
    for pattern in ([], ['wrn52_4_dia']):
        assert models.main([*pattern, '--names']) == 0
        names = capsys.readouterr().out.split()
        assert 'wrn52_4_dia_lstm' in names
        assert (len(names) > 700) == (pattern == [])
    with pytest.raises(BadInput, match="no model of this package matches 'alexnet'"):
        models.main(['alexnet'])


@pytest.mark.parametrize('name', ['resnet20', 'repvgg_a0_asr_se', 'convnext_tiny', 'resnet18_asr_ie'])
def test_sites(name, capsys):
    assert sites.main([name]) == 0
    *rows, last = capsys.readouterr().out.splitlines()
    model = timm.create_model(name)
    asr = model if timm_asr.has_asr(model) else timm_asr.attach_asr(model)
    expected = [(key, type(asr.get_submodule(key).layer).__name__) for key in asr_sites(asr)]
    assert [tuple(row.split()[:2]) for row in rows] == expected
    assert last == f'{len(expected)} sites in {name}.'


def test_sites_of_a_checkpoint_and_of_an_exported_folder(tmp_path, capsys):
    model = timm.create_model('resnet20_asr_se', num_classes=3).eval()
    torch.save({'arch': 'resnet20_asr_se', 'state_dict': model.state_dict()}, tmp_path / 'a.pth')
    torch.save(model.state_dict(), tmp_path / 'b.pth')
    timm_asr.save_fused(model, tmp_path / 'folder')
    rows = []
    for words in (['resnet20_asr_se'], [tmp_path / 'a.pth'], [tmp_path / 'b.pth', '--model', 'resnet20_asr_se'],
                  [tmp_path / 'folder']):
        assert sites.main([*map(str, words)]) == 0
        rows.append(capsys.readouterr().out.splitlines()[:-1])
    assert rows[0] == rows[1] == rows[2] == rows[3]
    assert len(rows[0]) == 9


def test_sites_that_are_named_and_those_that_are_not_there(capsys):
    assert sites.main(['resnet20', '--sites', 'layer3.*.bn1']) == 0
    assert capsys.readouterr().out.splitlines()[0].split() == ['layer3.0.bn1', 'BatchNorm2d', '64', 'channels']
    assert sites.main(['resnet20', '--model-kwargs', 'layers=(1,1,2)']) == 0
    assert capsys.readouterr().out.endswith('4 sites in resnet20.\n')
    for words, said in ((['resnet20', '--sites', 'bn9'], "No module of this .* is called 'bn9'"),
                        (['resnet5'], "unknown model 'resnet5'; the nearest names are"),
                        (['resnet20', '--sites', 'act1'], 'A ReLU cannot be scaled by its parameters')):
        with pytest.raises(BadInput, match=said):
            sites.main(words)
