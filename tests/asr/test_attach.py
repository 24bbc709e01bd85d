"""attach_asr: known and named sites, fine-tuning from pretrained weights, and clear errors that change nothing."""

import copy

import pytest
import timm
import torch
from helpers import asr_sites, randomize, relative_error
from timm.models.byobnet import RepVggBlock
from torch import nn

import timm_asr
from timm_asr import attach_asr, fold_asr, has_asr
from timm_asr.gates.se import SE
from timm_asr.gates.sge import SGE


def resnet(**kwargs):
    return timm.create_model('resnet18', num_classes=3, dtype=torch.float64, **kwargs)


def test_named_sites_and_patterns():
    model = attach_asr(resnet(), 'ie', sites=['layer4.*.bn1', 'bn1'])
    assert asr_sites(model) == ['bn1', 'layer4.0.bn1', 'layer4.1.bn1']
    assert asr_sites(attach_asr(resnet(), 'ie', sites='layer1.0.conv2')) == ['layer1.0.conv2']
    body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Sequential(nn.BatchNorm2d(8)))
    assert asr_sites(attach_asr(body, SE, sites=['1.0'])) == ['1.0']


def test_a_shared_layer_is_one_site():
    bn = nn.BatchNorm2d(8).double()
    model = nn.Sequential(bn, nn.ReLU(), bn)
    attach_asr(model, 'se', sites=['0'])
    assert model[2] is model[0]
    x = torch.randn(2, 8, 4, 4, dtype=torch.float64)
    model.eval()
    expected = model(x)
    fold_asr(model)
    assert model[0] is model[2] is bn
    assert relative_error(expected, model(x)) < 1e-12


class Wrong(SE):
    def excite(self, u):
        return super().excite(u)[:, ::2]


@pytest.mark.parametrize(('error', 'sentence', 'kwargs'), [
    (ValueError, "Unknown gate 'sa', did you mean 'spa'; known gates: se, eca", {'gate': 'sa'}),
    (ValueError, "ASR cannot use the gate 'cbam'.*use one of se, eca, ie, srm, spa", {'gate': 'cbam'}),
    (ValueError, "No module of this ResNet is called 'layer1.0.bn9', did you mean 'layer1.0.bn", {
        'sites': ['layer1.0.bn2', 'layer1.0.bn9']}),
    (TypeError, "ASR does not fit the site 'act1': A ReLU cannot be scaled", {'sites': ['bn1', 'act1']}),
    (ValueError, "does not fit the site 'layer1.0.bn2'.*weights of shape .32,. where the layer has 64", {
        'gate': Wrong}),
    (TypeError, "does not fit the site 'layer1.0.bn2': A SGE is no gate whose weights are constants", {'gate': SGE}),
    (TypeError, "'ie' has no hidden layer and takes no rd_ratio", {'gate': 'ie', 'rd_ratio': 0.5}),
    (TypeError, 'rd_ratio goes with a gate given by name', {'gate': SE, 'rd_ratio': 0.5})])
def test_errors_name_the_cause_and_leave_the_model_alone(error, sentence, kwargs):
    model = resnet()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(error, match=sentence):
        attach_asr(model, **kwargs)
    assert not has_asr(model)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize('name', ['resnet18', 'repvgg_a0', 'vit_tiny_patch16_224'])
def test_a_fresh_model_keeps_its_weights(name):
    """RepVGG's norms start with weights that differ, transformers have no running statistics."""
    model = timm.create_model(name, num_classes=3)
    before = [p.detach().clone() for p in model.parameters()]
    attach_asr(model, 'se')
    after = [p for key, p in model.named_parameters() if '.vectors.' not in key]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


class Tilted(SE):
    """A gate with a private setting, another at each site."""

    made = 0

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        Tilted.made += 1
        self._tilt = Tilted.made

    def squash(self, z):
        return (z + self._tilt).sigmoid()


def test_gates_with_other_private_settings_are_not_alike():
    model = randomize(attach_asr(resnet(), Tilted)).eval()
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    assert relative_error(model(x), fold_asr(copy.deepcopy(model))(x)) < 1e-12


def test_attaching_twice_is_refused():
    model = attach_asr(resnet(), depth=2)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=r"'layer1.0.bn2' has ASR already; .* such as depth=2"):
        attach_asr(model)
    assert list(before) == list(model.state_dict())


def test_other_asr_after_folding_is_the_one_that_is_said():
    model = fold_asr(timm_asr.create_model('resnet18', asr='se', num_classes=3))
    assert model.asr_options == {'asr': 'se'}
    assert not hasattr(attach_asr(model, 'ie'), 'asr_options')


def test_what_a_model_caches_in_eval_mode_hides_no_site():
    """LeViT keeps its position biases, of which the graph of the last pass is a part."""
    model = timm.create_model('levit_128s').eval()
    model(torch.zeros(1, 3, 224, 224))
    assert len(asr_sites(attach_asr(model))) == 20


def test_a_model_without_known_sites_says_what_was_looked_for():
    with pytest.raises(ValueError, match='The model itself is the site'):
        attach_asr(RepVggBlock(8, 8))
    with pytest.raises(ValueError, match=r'No place for ASR is known in a Sequential: it has no pretrained_cfg.*'
                                         r'known class .*BasicBlock.*sites='):
        attach_asr(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)))
