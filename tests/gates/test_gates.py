"""Every gate against a plain re-statement of its formula, in float64, with random parameters and statistics."""

import pytest
import timm
import torch
import torch.nn.functional as F
from helpers import randomize, relative_error

from timm_asr.gates.cbam import CBAM
from timm_asr.gates.eca import ECA
from timm_asr.gates.ie import IE
from timm_asr.gates.se import SE
from timm_asr.gates.sem import SEM
from timm_asr.gates.sge import SGE
from timm_asr.gates.spa import SPA
from timm_asr.gates.srm import SRM
from timm_asr.gates.table import GATES, asr_gate, get_gate, list_gates, list_units, takers

C = 32


def features(batch=3, channels=C, height=9, width=7):
    return torch.randn(batch, channels, height, width, dtype=torch.float64)


def gate_of(kind, channels=C, **kwargs):
    return randomize(kind(channels, dtype=torch.float64, **kwargs))


def se(g, x):
    u = x.mean((2, 3))
    h = (u @ g.fc1.weight[:, :, 0, 0].T + g.fc1.bias).clamp(min=0)
    return x * torch.sigmoid(h @ g.fc2.weight[:, :, 0, 0].T + g.fc2.bias)[:, :, None, None]


def eca(g, x):
    u, w = x.mean((2, 3)), g.conv.weight.flatten()
    k = len(w)
    padded = F.pad(u, (k // 2, k // 2))
    z = sum(w[i] * padded[:, i:i + x.shape[1]] for i in range(k))
    return x * torch.sigmoid(z)[:, :, None, None]


def ie(g, x):
    return x * torch.sigmoid(x.mean((2, 3)) * g.weight + g.bias)[:, :, None, None]


def srm(g, x):
    mean = x.mean((2, 3))
    std = (((x - mean[:, :, None, None]) ** 2).mean((2, 3)) + g.eps).sqrt()
    z = mean * g.cfc[:, 0] + std * g.cfc[:, 1]
    if g.training:
        m, v = z.mean(0), z.var(0, unbiased=False)
    else:
        m, v = g.bn.running_mean, g.bn.running_var
    return x * torch.sigmoid((z - m) / (v + g.bn.eps).sqrt() * g.bn.weight + g.bn.bias)[:, :, None, None]


def spa(g, x):
    def grid(n):  # torch's adaptive bins: from floor(i H / n) to ceil((i + 1) H / n)
        rows = [(i * x.shape[2] // n, -(-(i + 1) * x.shape[2] // n)) for i in range(n)]
        cols = [(i * x.shape[3] // n, -(-(i + 1) * x.shape[3] // n)) for i in range(n)]
        cells = [x[:, :, a:b, c:d].mean((2, 3)) for a, b in rows for c, d in cols]
        return torch.stack(cells, 2).flatten(1)

    u = torch.cat([grid(4), grid(2), grid(1)], 1)
    return x * torch.sigmoid((u @ g.fc1.weight.T).clamp(min=0) @ g.fc2.weight.T)[:, :, None, None]


def cbam(g, x):
    def mlp(u):
        return (u @ g.channel.fc1.weight[:, :, 0, 0].T).clamp(min=0) @ g.channel.fc2.weight[:, :, 0, 0].T

    x = x * torch.sigmoid(mlp(x.mean((2, 3))) + mlp(x.amax((2, 3))))[:, :, None, None]
    m = torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)
    m = F.conv2d(m, g.spatial.conv.conv.weight, padding=3)
    bn = g.spatial.conv.bn
    if g.training:
        mean, var = m.mean(), m.var(unbiased=False)
    else:
        mean, var = bn.running_mean, bn.running_var
    return x * torch.sigmoid((m - mean) / (var + bn.eps).sqrt() * bn.weight + bn.bias)


def sge(g, x):
    out = []
    for i, group in enumerate(x.chunk(g.groups, 1)):
        c = (group * group.mean((2, 3), keepdim=True)).sum(1)
        c = c - c.mean((1, 2), keepdim=True)
        c = c / ((c**2).mean((1, 2), keepdim=True).sqrt() + g.eps)
        out.append(group * torch.sigmoid(c * g.weight[i] + g.bias[i]).unsqueeze(1))
    return torch.cat(out, 1)


FORMULAS = {'se': se, 'eca': eca, 'ie': ie, 'srm': srm, 'spa': spa, 'cbam': cbam, 'sge': sge}


@pytest.mark.parametrize('training', [False, True])
@pytest.mark.parametrize('name', FORMULAS)
def test_gate_is_its_formula(name, training):
    gate, x = gate_of(GATES[name]).train(training), features()
    expected = FORMULAS[name](gate, x)
    assert relative_error(expected, gate(x)) < 1e-12
    assert relative_error(x, expected) > 1e-2  # it does something


@pytest.mark.parametrize('name', GATES)
def test_pool_excite_scale_make_the_forward(name):
    gate, x = gate_of(GATES[name]).eval(), features()
    v = gate.excite(gate.pool(x))
    assert torch.equal(gate.scale(x, v), gate(x))
    low, high = gate.bounds
    assert ((v >= low) & (v <= high)).all()


@pytest.mark.parametrize(('kind', 'channels', 'count'), [
    (SE, 256, 2 * 256 * 16 + 256 + 16),
    (SE, 64, 2 * 64 * 4 + 64 + 4),
    (ECA, 64, 3),
    (ECA, 256, 5),
    (IE, 64, 128),
    (SRM, 64, 4 * 64),
    (SPA, 64, 21 * 64 * 4 + 4 * 64),
    (CBAM, 64, 2 * 64 * 4 + 98 + 2),
    (SGE, 256, 128),
])
def test_parameter_count(kind, channels, count):
    assert sum(p.numel() for p in kind(channels).parameters()) == count


@pytest.mark.parametrize('name', GATES)
def test_device_and_dtype(name):
    gate = GATES[name](C, device='meta', dtype=torch.bfloat16)
    tensors = [*gate.parameters(), *(b for b in gate.buffers() if b.is_floating_point())]
    assert tensors
    assert all(t.device.type == 'meta' and t.dtype == torch.bfloat16 for t in tensors)


@pytest.mark.parametrize('name', GATES)
@pytest.mark.parametrize(('backbone', 'kwargs'), [
    ('resnet18', lambda g: {'block_args': {'attn_layer': g}}),
    ('test_byobnet', None),
    ('test_nfnet', lambda g: {'attn_layer': g}),
])
def test_as_attn_layer_of_timm_blocks(name, backbone, kwargs):
    if kwargs is None:
        block = timm.models.byobnet.BottleneckBlock(
            C, C, layers=timm.models.byobnet.LayerFn(attn=GATES[name]))
        assert block(torch.randn(2, C, 8, 8)).shape == (2, C, 8, 8)
        assert any(isinstance(m, GATES[name]) for m in block.modules())
        return
    model = timm.create_model(backbone, num_classes=3, **kwargs(GATES[name]))
    assert any(isinstance(m, GATES[name]) for m in model.modules())
    assert model(torch.randn(2, 3, 64, 64)).shape == (2, 3)


@pytest.mark.parametrize('name', GATES)
@pytest.mark.parametrize('size', [(1, 1), (2, 3), (5, 1)])
def test_small_maps_give_finite_values_and_gradients(name, size):
    gate, x = gate_of(GATES[name]).train(), features(2, C, *size).requires_grad_()
    gate(x).square().sum().backward()
    assert torch.isfinite(x.grad).all()
    assert all(torch.isfinite(p.grad).all() for p in gate.parameters())


@pytest.mark.parametrize('name', GATES)
def test_gradients(name):
    gate, x = gate_of(GATES[name], 16).eval(), features(2, 16, 5, 4).requires_grad_()
    assert torch.autograd.gradcheck(gate, (x,), eps=1e-6, atol=1e-7)


@pytest.mark.parametrize('name', ['se', 'eca'])
def test_timm_checkpoints_fit(name):
    timm_module = {'se': timm.layers.SEModule, 'eca': timm.layers.EcaModule}[name](256).double()
    ours = GATES[name](256, dtype=torch.float64)
    ours.load_state_dict(timm_module.state_dict())
    x = features(2, 256)
    assert relative_error(timm_module(x), ours(x)) < 1e-12


def test_srm_with_fixed_statistics_is_affine():
    gate = gate_of(SRM, fixed_stats=True).train()
    u = torch.randn(1, 2 * C, dtype=torch.float64)
    z = (u.view(1, C, 2) * gate.cfc).sum(2)
    assert relative_error(torch.sigmoid(z * gate.bn.weight + gate.bn.bias), gate.excite(u)) < 1e-12


def test_one_pixel_is_described_as_it_is_pooled():
    for name in list_gates(foldable=True):
        gate = asr_gate(name)(C, dtype=torch.float64)
        psi = torch.randn(gate.psi_ratio * C, dtype=torch.float64)
        if name == 'srm':  # a pixel has no deviation, so psi carries one
            assert torch.equal(gate.describe(psi), psi[None])
        else:
            assert torch.equal(gate.describe(psi), gate.pool(psi.view(1, C, 1, 1)))


def test_unknown_gate_is_named_with_the_nearest():
    with pytest.raises(ValueError, match=r"Unknown gate 'srmm', did you mean 'srm'; known gates: se, eca"):
        get_gate('srmm')


@pytest.mark.parametrize('name', list_gates(foldable=False))
def test_spatial_gates_are_refused_by_asr(name):
    with pytest.raises(ValueError, match=f"ASR cannot use the gate '{name}'.*use one of se, eca"):
        asr_gate(name)


def test_rd_ratio_needs_a_hidden_layer():
    assert asr_gate('se', 0.25)(64).fc1.out_channels == 16
    with pytest.raises(TypeError, match="'eca' has no hidden layer"):
        asr_gate('eca', 0.25)


@pytest.mark.parametrize('ratio', [0, -0.25, float('nan'), float('inf')])
@pytest.mark.parametrize(('place', 'name'), [
    *(('gate', name) for name in GATES if name in takers('rd_ratio')),
    *(('asr', name) for name in list_gates(foldable=True) if name in takers('rd_ratio')),
    *(('dia', name) for name in list_units() if name in takers('rd_ratio'))])
def test_a_hidden_width_is_positive(place, name, ratio):
    with pytest.raises(ValueError, match=f'^rd_ratio is {ratio}; the hidden width over channels is positive, such as'):
        timm.create_model('resnet20', rd_ratio=ratio, **{place: name})


@pytest.mark.parametrize('kind', [SE, CBAM, SPA, SEM])
def test_a_hidden_layer_has_a_value(kind):
    assert sum(p.numel() for p in kind(4, rd_ratio=1e-9).parameters()) > 0
    with pytest.raises(ValueError, match='The hidden layer of a gate would have 0 values; it takes at least one.'):
        kind(64, rd_channels=0)
