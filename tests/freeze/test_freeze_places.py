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


@pytest.mark.parametrize(('fuse_scale', 'fuse_add'), [(False, True), (True, True)])
def test_gates_that_add(fuse_scale, fuse_add):
    gate = timm.layers.GlobalContext(8, fuse_scale=fuse_scale, fuse_add=fuse_add, dtype=torch.float64)
    for first, what in ((nn.BatchNorm2d(8), 'folded into 0'), (nn.GELU(), 'kept as a multiplication')):
        model = randomize(nn.Sequential(first, copy.deepcopy(gate), nn.Conv2d(8, 4, 3)).double()).eval()
        x = torch.randn(4, 8, 7, 7, dtype=torch.float64)
        make_constant(model, x)
        expected = logits(model, x)
        report = timm_asr.freeze_attention(model, [x])
        assert report.gates[0].what.startswith(what)
        assert 'adds' in report.gates[0].what
        assert relative_error(expected, logits(model, x)) < 1e-12


class Read(nn.Module):
    """A gate whose input somebody else reads as well."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.se = timm.layers.SEModule(8)

    def forward(self, x):
        x = self.conv(x)
        return torch.cat([x, self.se(x)], 1)


class Sum(nn.Module):
    """A gate on a sum of branches, one of which has a scale; the gate's output passes an average."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(3, 8, 3, bias=False)
        self.norm, self.se, self.pool = nn.BatchNorm2d(8), timm.layers.SEModule(8), nn.AvgPool2d(2)

    def forward(self, x):
        return self.se(self.pool(0.5 * self.a(x) + self.norm(self.b(x)))).flatten(1)


class Tied(nn.Module):
    """A gate after a convolution whose weight another one uses."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(3, 8, 3)
        self.b.weight = self.a.weight
        self.se = timm.layers.SEModule(8)

    def forward(self, x):
        return (self.se(self.a(x)) + self.b(x).relu()).flatten(1)


class Twice(nn.Module):
    """One gate in two places."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.se = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), timm.layers.SEModule(8)

    def forward(self, x):
        return self.se(self.b(self.se(self.a(x)))).flatten(1)


class Shared(nn.Module):
    """A gate after a convolution that another branch calls by another name."""

    def __init__(self):
        super().__init__()
        self.a = self.b = nn.Conv2d(3, 8, 3)
        self.se = timm.layers.SEModule(8)

    def forward(self, x):
        return (self.se(self.a(x)) + self.b(2 * x)).flatten(1)


class Untraceable(nn.Module):
    """torch.fx cannot follow the branch; its block it can."""

    def __init__(self):
        super().__init__()
        self.block = nn.Sequential(nn.Conv2d(3, 8, 3), timm.layers.EcaModule(8), nn.ReLU())

    def forward(self, x):
        return self.block(x if x.mean() < 1e6 else -x).flatten(1)


class Grouped(nn.Module):
    """A gate whose readers are a grouped and a depthwise convolution."""

    def __init__(self):
        super().__init__()
        self.a, self.act, self.se = nn.Conv2d(3, 8, 3), nn.GELU(), timm.layers.SEModule(8)
        self.b, self.c = nn.Conv2d(8, 12, 3, groups=4), nn.Conv2d(8, 8, 3, groups=8)

    def forward(self, x):
        x = self.se(self.act(self.a(x)))
        return torch.cat([self.b(x), self.c(x)], 1)


@pytest.mark.parametrize(('kind', 'what'), [
    (Read, 'kept as a multiplication'),
    (Sum, 'folded into a, norm'),
    (Tied, 'kept as a multiplication'),
    (Shared, 'kept as a multiplication'),
    (Twice, 'left: several places share it'),
    (Untraceable, 'folded into block.0'),
    (Grouped, 'folded into b, c (inputs)'),
])
def test_surroundings_of_a_gate(kind, what):
    model = randomize(kind().double()).eval()
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
        **find_places(*args), 'layer1.1.se': Place('layer1.1.se', ('layer1.1.bn1',))})
    report = timm_asr.freeze_attention(model, [x])
    assert {g.name: g.what for g in report.gates} == {
        **{g.name: g.what for g in right.gates}, 'layer1.1.se': 'kept as a multiplication'}
    means = {gate.name: gate.mean for gate in report.gates}
    assert relative_error(logits(literally_frozen(original, means), x), logits(model, x)) < 1e-12


def test_a_difference_at_the_output_alone_is_noticed(monkeypatch):
    """A layer that is read elsewhere as well, which no comparison after a gate can show."""
    model = randomize(Shared().double()).eval()
    x = torch.randn(4, 3, 12, 12, dtype=torch.float64)
    make_constant(model, x)
    expected = logits(model, x)
    monkeypatch.setattr('timm_asr.freeze.attention.find_places', lambda *args: {'se': Place('se', ('a',))})
    report = timm_asr.freeze_attention(model, [x])
    assert report.gates[0].what == 'kept as a multiplication'
    assert relative_error(expected, logits(model, x)) < 1e-12
