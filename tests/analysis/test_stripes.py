"""Stripes: gates that are constant, random and half-half by construction, real ones by hand."""

import json

import pytest
import timm
import torch
from freeze_helpers import CIFAR, build
from timm.layers.cbam import CbamModule
from torch import nn

from timm_asr.analysis import measure_stripes, stripe_differences


class Made(nn.Module):
    """A gate whose weights do not look at the image: constant, drawn for each image, or each for half the channels."""

    def __init__(self, kind, channels=64):
        super().__init__()
        self.kind, self.level = kind, nn.Parameter(torch.linspace(0.1, 0.9, channels))

    def forward(self, x):
        fixed, drawn = self.level.expand(len(x), -1), torch.rand(x.shape[:2])
        half = torch.arange(x.shape[1]) % 2 == 0
        v = {'constant': fixed, 'same': 0 * fixed + 0.3, 'random': drawn, 'half': torch.where(half, fixed, drawn)}
        return x * v[self.kind].clone()[:, :, None, None]


@pytest.mark.parametrize(('kind', 'score'), [('constant', 1), ('same', 1), ('random', 0.01), ('half', None)])
def test_gates_by_construction(kind, score):
    model = nn.Sequential(nn.Conv2d(3, 64, 3), Made(kind), nn.ReLU())
    report = measure_stripes(model, [torch.randn(50, 3, 8, 8) for _ in range(8)])
    (gate,) = report.gates
    assert (gate.name, gate.kind, report.images) == ('1', 'Made', 400)
    if kind == 'half':
        # Means: half the channels spread evenly over 0.1 to 0.9, the others near 0.5; only these vary, by 1/12.
        between, within = 0.5 * 0.8 ** 2 / 12, 0.5 / 12
        score = between / (between + within)
    assert report.score == pytest.approx(score, abs=0.02)
    assert (gate.weights.std < 1e-6).sum() == {'constant': 64, 'same': 64, 'random': 0, 'half': 32}[kind]


def test_statistics_by_hand():
    model = build('resnet20_se', **CIFAR).train()
    x = torch.randn(10, 3, 16, 16, dtype=torch.float64)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    report = measure_stripes(model, list(x.split(3)), samples=9, keep=4)
    assert model.training
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    seen = {}
    for gate in report.gates:
        model.get_submodule(gate.name).register_forward_hook(
            lambda m, i, o, name=gate.name: seen.update({name: (i[0].mean((2, 3)), m.excite(m.pool(i[0])))}))
    with torch.no_grad():
        model.eval()(x[:9])
    assert list(seen) == ['layer1.0.se', 'layer1.1.se', 'layer2.0.se', 'layer3.0.se']
    for gate in report.gates:
        for part, kept, values in zip((gate.pooled, gate.weights), gate.kept, seen[gate.name], strict=True):
            assert torch.allclose(part.mean, values.mean(0), atol=1e-12)
            assert torch.allclose(part.std, values.std(0, correction=0), atol=1e-9)
            assert torch.allclose(kept, values[:4].float())
            between, within = values.mean(0).var(correction=0), values.var(0, correction=0).mean()
            assert part.stripe_score == pytest.approx((between / (between + within)).item())
    scores = [gate.weights.stripe_score for gate in report.gates]
    assert report.score == pytest.approx(sum(scores) / 4)
    assert f'Stripe score over 9 images: {report.score:.3f}' in str(report)
    assert len(json.loads(json.dumps(report.as_dict()))['gates'][3]['pooled_std_of_channels']) == 16


@pytest.mark.parametrize(('name', 'kind', 'count'), [
    ('resnet20_eca', 'ECA', 9), ('resnet20_cbam', 'CBAM', 9), ('resnet20_spe', 'SPE', 9), ('resnet20_ras', 'RAS', 9),
    ('resnet20_dia_lstm', 'Identity', 9), ('resnet20_dia_srm', 'Sequential', 9), ('resnet20_dia_cbam', 'SharedCBAM', 3),
    ('cbam_timm', 'ChannelAttn', 1), ('seresnet50', 'SEModule', 16), ('ese_vovnet19b_dw', 'EffectiveSEModule', 4),
    ('efficientnet_b0', 'SqueezeExcite', 16), ('ecaresnet26t', 'EcaModule', 8)])
def test_gates_of_many_networks(name, kind, count):
    if name == 'cbam_timm':
        model = nn.Sequential(nn.Conv2d(3, 32, 3), CbamModule(32))
    else:
        model = timm.create_model(name, num_classes=5)
    x = torch.randn(3, 3, *((64, 64) if count not in (9, 3) else (16, 16)))
    report = measure_stripes(model, [x], keep=2)
    assert [gate.kind for gate in report.gates] == [kind] * count
    assert all(gate.kept[1].shape == (2, len(gate.weights.mean)) for gate in report.gates)
    if name not in ('resnet20_dia_lstm', 'resnet20_cbam'):
        return
    block, seen = model.layer2[1], []
    if name == 'resnet20_cbam':  # weighs positions afterwards
        block.se.register_forward_hook(lambda m, i, o: seen.append((i[0].mean((2, 3)), m.excite(m.pool(i[0])))))
    else:
        merge = block.merge
        block.merge = lambda a, z, shortcut: (seen.append((a.mean((2, 3)), block.own(z))), merge(a, z, shortcut))[1]
    with torch.no_grad():
        model.eval()(x)
    gate = next(gate for gate in report.gates if gate.name.startswith('layer2.1.'))
    for kept, values in zip(gate.kept, seen[0], strict=True):
        assert torch.allclose(kept, values.flatten(1)[:2], atol=1e-6)


def test_differences_over_epochs():
    models = [build('resnet20_se', **CIFAR) for _ in range(3)]
    x = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    found = stripe_differences(iter(models), x)
    assert {name: tuple(value.shape) for name, value in found.items()} == {
        'layer1.0.se': (2, 2, 8), 'layer1.1.se': (2, 2, 8), 'layer2.0.se': (2, 2, 8), 'layer3.0.se': (2, 2, 16)}
    weights = [measure_stripes(model, [x]).gates[3].kept[1] for model in models]
    assert torch.allclose(found['layer3.0.se'][1], (weights[2] - weights[1]).abs())
    with pytest.raises(ValueError, match='two times of its training'):
        stripe_differences(models[:1], x)


@pytest.mark.parametrize(('name', 'loader', 'error', 'sentence'), [
    ('resnet20', [torch.randn(2, 3, 16, 16)], ValueError, 'No module of this ASRCifarResNet weighs channels'),
    ('resnet20_sge', [torch.randn(2, 3, 16, 16)], ValueError, 'weighs channels by what it sees'),
    ('resnet20_se', [], ValueError, 'The loader gives no images.'),
    ('resnet20_se', [torch.full((2, 3, 16, 16), torch.nan)], ValueError, 'not finite'),
    ('resnet20_se', iter([]), TypeError, 'read several times')])
def test_errors(name, loader, error, sentence):
    with pytest.raises(error, match=sentence):
        measure_stripes(timm.create_model(name), loader)
