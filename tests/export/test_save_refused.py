"""save_fused keeps nothing that could not be loaded back."""

import json

import pytest
import timm
import torch
from export_helpers import our_checkpoint
from torch import nn

from timm_asr import attach_asr, freeze_attention, reparameterize, save_fused
from timm_asr.errors import BadInput
from timm_asr.export import save as save_module

SMALL = {'input_size': (3, 48, 48)}


@pytest.mark.parametrize(('make', 'sentence'), [
    (lambda: nn.Linear(3, 3), 'This Linear cannot be saved by name: save_fused takes whole models'),
    (lambda: 3, 'A int cannot be exported: give a model, or the path'),
    (lambda: timm.create_model('resnet20_asr_se', features_only=True), 'cannot be saved by name'),
    (lambda: timm.create_model('resnet20', pretrained_cfg={'architecture': 'mine'}), "knows no architecture 'mine'"),
    (lambda: reparameterize(timm.create_model('repvgg_a0_asr_se').eval()),
     r"'repvgg_a0_asr_se' is in its inference form \(reparameterize\(\) made its RepVggBlock\)"),
    (lambda: timm.utils.reparameterize_model(timm.create_model('mobileone_s0').eval()), 'made its MobileOneBlock'),
    (lambda: reparameterize(timm.create_model('resnet20_asr_se').eval(), fold_bn=True),
     'does not load back .*Missing key.*"bn1.weight".*; it is not kept. If the model was built with further arguments'),
    (lambda: reparameterize(timm.create_model('resnet20_se').eval()), "'resnet20_se' is in its inference form"),
    (lambda: reparameterize(timm.create_model('resnet20_dia_lstm').eval()), 'inference form'),
    (lambda: nn.init.constant_((m := timm.create_model('resnet20_asr_se')).fc.bias, float('nan')) is None or m,
     'logits of the model are not finite')])
def test_what_could_not_be_loaded_back_is_refused(tmp_path, make, sentence):
    with pytest.raises(ValueError, match=sentence) as caught:
        save_fused(make(), tmp_path / 'folder')
    assert '\n' not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_file_of_ones_own_is_not_replaced(tmp_path):
    path = our_checkpoint(tmp_path / 'last.pth.tar', timm.create_model('resnet20_asr_se', in_chans=1))
    (tmp_path / 'folder').mkdir()
    (tmp_path / 'folder' / 'args.yaml').write_text('mine')
    with pytest.raises(BadInput, match='folder has a args.yaml already; choose another folder, or replace'):
        save_fused(path, tmp_path / 'folder')
    assert (tmp_path / 'folder' / 'args.yaml').read_text() == 'mine'


@pytest.mark.parametrize('make', [
    lambda: timm.create_model('resnet20'), lambda: attach_asr(timm.create_model('resnet18'), 'se')])
def test_a_trainable_form_that_could_not_be_made_again_is_refused(tmp_path, make):
    with pytest.raises(ValueError, match=r"This 'resnet\d+' has no ASR that could be made again"):
        save_fused(make(), tmp_path / 'folder', keep_trainable=True)
    assert not list(tmp_path.iterdir())


def test_an_architecture_that_nobody_else_has_is_refused(tmp_path, monkeypatch):
    model = timm.create_model('resnet20')
    entrypoint = timm.models.model_entrypoint('resnet20')
    monkeypatch.setattr(entrypoint, '__module__', 'my_models')
    with pytest.raises(ValueError, match="'resnet20' is registered by 'my_models' and not by timm or timm_asr"):
        save_fused(model, tmp_path / 'folder')


def changed(function):
    """``function`` with one of the tensors that it gets or returns changed a little."""
    def wrapper(value, **kwargs):
        if isinstance(value, nn.Module):
            result = function(value, **kwargs)
            result.fc.weight.data *= 1.001
            return result
        return function({**value, 'fc.weight': value['fc.weight'] * 1.001}, **kwargs)
    return wrapper


@pytest.mark.parametrize(('what', 'sentence'), [
    ('fold_asr', 'The folded model is not the same function: its logits differ by'),
    ('save', r'What was written does not load back \(its logits differ by .*\); it is not kept')])
def test_what_is_not_the_same_function_is_not_kept(tmp_path, monkeypatch, what, sentence):
    monkeypatch.setattr(save_module, what, changed(getattr(save_module, what)))
    model = timm.create_model('resnet18_asr_se', num_classes=5)
    with pytest.raises(ValueError, match=sentence):
        save_fused(model, tmp_path / 'folder', data_config=SMALL)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(('change', 'sentence'), [
    (lambda c: c.update(architecture='resnet34'), 'Missing key'),
    (lambda c: c['pretrained_cfg'].update(mean=[0, 0, 0]), 'mean of the images is'),
    (lambda c: c['pretrained_cfg'].update(timm_asr={}), "unexpected keyword argument 'timm_asr'"),
    (lambda c: c.update(num_classes=4), 'size mismatch for fc'),
    (lambda c: c.update(label_names=['a', 'b', 'c', 'd', 'f']), 'the list of classes is')])
def test_the_configuration_is_read_back(tmp_path, monkeypatch, change, sentence):
    write = save_module.save_config_for_hf

    def wrong(model, path, **kwargs):
        write(model, path, **kwargs)
        with open(path) as file:
            config = json.load(file)
        change(config)
        with open(path, 'w') as file:
            json.dump(config, file)
    monkeypatch.setattr(save_module, 'save_config_for_hf', wrong)
    model = timm.create_model('resnet18_asr_se', num_classes=5)
    with pytest.raises(ValueError, match=f'(?s)does not load back .*{sentence}'):
        save_fused(model, tmp_path / 'folder', label_names='abcde', data_config=SMALL)
    assert not list(tmp_path.iterdir())
    save_fused(model, tmp_path / 'folder', label_names='abcde', data_config=SMALL, check=False)
    assert (tmp_path / 'folder').is_dir()  # nobody looked


def test_a_folder_that_cannot_be_written(tmp_path, monkeypatch):
    model = timm.create_model('resnet20_asr_se')
    (tmp_path / 'file').write_text('')
    with pytest.raises(BadInput, match='file is a file, and a folder is to be written there'):
        save_fused(model, tmp_path / 'file')
    with pytest.raises(BadInput, match=r'cannot be written \(Not a directory\)'):
        save_fused(model, tmp_path / 'file' / 'folder')

    def full(path, content):
        raise OSError(28, 'No space left on device')
    monkeypatch.setattr(save_module, 'write_whole', full)
    with pytest.raises(BadInput, match=r'folder cannot be written \(No space left on device\)'):
        save_fused(model, tmp_path / 'folder')
    assert [p.name for p in tmp_path.iterdir()] == ['file']


class LightningModule(nn.Module):
    """What Lightning's class is to save_fused: a class of that name with a model inside."""


def test_the_model_inside_a_lightning_module_is_found_or_named(tmp_path):
    model = timm.create_model('resnet20_asr_se', num_classes=3)
    module = LightningModule()
    module.net, module.criterion = model, nn.CrossEntropyLoss()
    folder = save_fused(module, tmp_path / 'a')
    assert json.loads((folder / 'config.json').read_text())['num_classes'] == 3
    module.teacher = timm.create_model('resnet20', num_classes=3)
    with pytest.raises(ValueError, match=r'cannot be saved by name; .*: pass model.net or model.teacher\.'):
        save_fused(module, tmp_path / 'b')
    with pytest.raises(ValueError, match=r'This Sequential cannot be saved by name; .*: pass model.0\.'):
        save_fused(nn.Sequential(model, nn.Softmax(1)), tmp_path / 'c')


def test_a_frozen_network_without_a_name_is_told_where_to_go(tmp_path):
    model = timm.create_model('resnet20_se', num_classes=3).eval()
    freeze_attention(model, [torch.randn(4, 3, 32, 32)], threshold=0.0)
    with pytest.raises(ValueError, match=r"a 'resnet20_se' before .* timm_asr.export_onnx\(model, FILE\) or timm_asr"):
        save_fused(model, tmp_path / 'a')
