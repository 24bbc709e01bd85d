"""Where the constant of a gate goes, by what stands around the gate."""

import copy

import pytest
import timm
import torch
from freeze_helpers import CIFAR, FIVE, build, literally_frozen, loader, logits, make_constant
from helpers import randomize, relative_error
from torch import nn

import timm_asr
from timm_asr.freeze.fold import Place, find_places


def test_hard_sigmoid_at_its_ends():
    """Weights of exactly 0 and 1 pass ReLUs and stay exact."""
    model = build('mobilenetv3_small_100', **FIVE)
    x = torch.randn(4, 3, 64, 64, dtype=torch.float64)
    for name in make_constant(model, x):
        model.get_submodule(name).conv_expand.bias.data.uniform_(-9, 9)
    expected = logits(model, x)
    report = timm_asr.freeze_attention(model, loader(x))
    weights = torch.cat([gate.mean for gate in report.gates])
    assert (weights == 0).any()
    assert (weights == 1).any()
    assert relative_error(expected, logits(model, x)) < 1e-12


def test_negative_weights_do_not_pass_a_relu():
    """SPE's reweighting 'b' has no sigmoid: its weights may be negative, and norms with an activation must be left."""
    gate = timm_asr.get_gate('spe')(6, reweight='b', dtype=torch.float64)
    norm = timm.layers.BatchNormAct2d(6, dtype=torch.float64)
    after = nn.Conv2d(6, 4, 3, padding=1, dtype=torch.float64)
    model = randomize(nn.Sequential(nn.Conv2d(3, 6, 3, dtype=torch.float64), norm, gate, after)).eval()
    x = torch.randn(4, 3, 9, 9, dtype=torch.float64)
    make_constant(model, x)
    gate.rew_bias.data.copy_(torch.linspace(-2, 2, 6))
    expected = logits(model, x)
    report = timm_asr.freeze_attention(model, [x])
    assert report.gates[0].mean.min() < 0
    assert report.gates[0].what == 'folded into 3 (inputs)'
    assert relative_error(expected, logits(model, x)) < 1e-12


def test_what_adds_is_no_gate():
    adds = timm.layers.GlobalContext(8, fuse_scale=False, fuse_add=True, dtype=torch.float64)
    model = randomize(nn.Sequential(nn.BatchNorm2d(8), adds, nn.Conv2d(8, 4, 3)).double()).eval()
    with pytest.raises(ValueError, match='No channel gate'):
        timm_asr.freeze_attention(model, [torch.randn(4, 8, 7, 7, dtype=torch.float64)])


def network(forward, layers):
    """A network of an SE module ``se`` and these layers; what they share stays shared."""
    model = type('Net', (nn.Module,), {'forward': forward})()
    for name, layer in copy.deepcopy({'se': timm.layers.SEModule(8), **layers}).items():
        setattr(model, name, layer)
    return randomize(model.double()).eval()


CONV, TIED = nn.Conv2d(3, 8, 3), nn.Conv2d(3, 8, 3)
TIED.weight = CONV.weight
# (forward, layers, what becomes of the gate)
SURROUNDINGS = {
    'somebody else reads its input': (
        lambda self, x: torch.cat([y := self.a(x), self.se(y)], 1), {'a': CONV}, 'kept as a multiplication'),
    'a sum of branches, one of which has a scale, passes an average': (
        lambda self, x: self.se(self.pool(0.5 * self.a(x) + self.norm(self.b(x)))).flatten(1),
        {'a': CONV, 'b': nn.Conv2d(3, 8, 3, bias=False), 'norm': nn.BatchNorm2d(8), 'pool': nn.AvgPool2d(2)},
        'folded into a, norm'),
    'another convolution uses the weight': (
        lambda self, x: (self.se(self.a(x)) + self.b(x).relu()).flatten(1), {'a': CONV, 'b': TIED},
        'kept as a multiplication'),
    'another branch calls the convolution by another name': (
        lambda self, x: (self.se(self.a(x)) + self.b(2 * x)).flatten(1), {'a': CONV, 'b': CONV},
        'kept as a multiplication'),
    'one gate in two places': (
        lambda self, x: self.se(self.b(self.se(self.a(x)))).flatten(1), {'a': CONV, 'b': nn.Conv2d(8, 8, 3)},
        'left: several places share it'),
    'torch.fx cannot follow the network, but the block': (
        lambda self, x: self.block(x if x.mean() < 1e6 else -x).flatten(1),
        {'block': nn.Sequential(CONV, timm.layers.EcaModule(8), nn.ReLU())}, 'folded into block.0'),
    'its readers are a grouped and a depthwise convolution': (
        lambda self, x: torch.cat([self.b(y := self.se(self.act(self.a(x)))), self.c(y)], 1),
        {'a': CONV, 'act': nn.GELU(), 'b': nn.Conv2d(8, 12, 3, groups=4), 'c': nn.Conv2d(8, 8, 3, groups=8)},
        'folded into b, c (inputs)')}


@pytest.mark.parametrize('case', SURROUNDINGS)
def test_surroundings_of_a_gate(case):
    forward, layers, what = SURROUNDINGS[case]
    model = network(forward, layers)
    x = torch.randn(4, 3, 12, 12, dtype=torch.float64)
    make_constant(model, x)
    expected = logits(model, x)
    report = timm_asr.freeze_attention(model, [x[:2], x[2:]])
    assert [gate.what for gate in report.gates] == [what]
    assert relative_error(expected, logits(model, x)) < 1e-12


def test_a_wrong_place_is_noticed_and_left(monkeypatch):
    model = build('resnet20_se', **CIFAR)
    x = torch.randn(4, 3, 16, 16, dtype=torch.float64)
    right = timm_asr.freeze_attention(copy.deepcopy(model), [x])
    original = copy.deepcopy(model)
    monkeypatch.setattr('timm_asr.freeze.attention.find_places', lambda *args: {
        **find_places(*args), 'layer1.1.se': Place(('layer1.1.bn1',))})
    report = timm_asr.freeze_attention(model, [x])
    assert {g.name: g.what for g in report.gates} == {
        **{g.name: g.what for g in right.gates}, 'layer1.1.se': 'kept as a multiplication'}
    means = {gate.name: gate.mean for gate in report.gates}
    assert relative_error(logits(literally_frozen(original, means), x), logits(model, x)) < 1e-12


def test_a_difference_at_the_output_alone_is_noticed(monkeypatch):
    """A layer that is read elsewhere as well, which no comparison after a gate can show."""
    model = network(*SURROUNDINGS['another branch calls the convolution by another name'][:2])
    x = torch.randn(4, 3, 12, 12, dtype=torch.float64)
    make_constant(model, x)
    expected = logits(model, x)
    monkeypatch.setattr('timm_asr.freeze.attention.find_places', lambda *args: {'se': Place(('a',))})
    report = timm_asr.freeze_attention(model, [x])
    assert report.gates[0].what == 'kept as a multiplication'
    assert relative_error(expected, logits(model, x)) < 1e-12
