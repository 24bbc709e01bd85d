"""SEM, deeper SE, other poolings, IEBN: against plain re-statements in float64; RAS; how gates start."""

import copy

import pytest
import timm
import torch
from helpers import images, randomize, relative_error, small
from torch import nn

from timm_asr.gates.gate import ChannelGate
from timm_asr.gates.ie import IE, IEBN2d
from timm_asr.gates.ras import RAS, Rational, RecurrentECA, RecurrentSE, RecurrentSPA
from timm_asr.gates.se import SE
from timm_asr.gates.sem import SEM
from timm_asr.gates.spe import SPE
from timm_asr.gates.srm import ChannelAffine
from timm_asr.gates.table import asr_gate

C = 16
POOLS = {
    'average': lambda x: x.mean((2, 3)),
    'max': lambda x: x.amax((2, 3)),
    'min': lambda x: x.amin((2, 3)),
    0.3: lambda x: 0.3 * x.amax((2, 3)) + 0.7 * x.amin((2, 3)),
}


def features():
    return torch.randn(3, C, 5, 4, dtype=torch.float64)


def mlp(u, fc1, fc2):
    h = (u @ fc1.weight.flatten(1).T + fc1.bias).clamp(min=0)
    return h @ fc2.weight.flatten(1).T + fc2.bias


def weigh(x, v):
    return x * v[:, :, None, None]


def test_sem_is_its_formula():
    gate, x = randomize(SEM(C, dtype=torch.float64)), features()
    u = x.mean((2, 3))
    s = torch.sigmoid(u @ gate.switch.weight.T + gate.switch.bias)
    k = gate.conv.weight.shape[-1]
    padded = nn.functional.pad(u, (k // 2, k // 2))
    z2 = sum(gate.conv.weight[0, 0, i] * padded[:, i:i + C] for i in range(k))
    logits = (mlp(u, gate.fc1, gate.fc2), z2, u * gate.weight + gate.bias)
    v = torch.stack([torch.sigmoid(s[:, n:n + 1] * z) for n, z in enumerate(logits)]).prod(0)
    assert relative_error(weigh(x, v), gate(x)) < 1e-12


@pytest.mark.parametrize('pooling', POOLS)
@pytest.mark.parametrize('depth', [1, 3])
def test_se_deeper_and_with_other_poolings(pooling, depth):
    gate, x = randomize(SE(C, pooling=pooling, depth=depth, dtype=torch.float64)), features()
    u = POOLS[pooling](x)
    for fc1, fc2 in [(gate.fc1, gate.fc2), *((deeper.fc1, deeper.fc2) for deeper in gate.deeper)]:
        u = mlp(u, fc1, fc2)
    assert relative_error(weigh(x, torch.sigmoid(u)), gate(x)) < 1e-12


@pytest.mark.parametrize('mix', ['max', 'min', 'average', 0.3])
def test_spe_with_other_poolings(mix):
    gate, x = randomize(SPE(C, mix=mix, dtype=torch.float64)), features()
    v = torch.sigmoid(gate.exc_weight * POOLS[mix](x) + gate.exc_bias)
    again = torch.sigmoid(gate.rew_weight * (x.amax((2, 3)) + x.amin((2, 3))) + gate.rew_bias)
    assert relative_error(weigh(x, v * again), gate(x)) < 1e-12
    assert torch.equal(gate.scale(x, gate.excite(gate.pool(x))), gate(x))


@pytest.mark.parametrize(('name', 'kwargs'), [
    ('resnet83_se', {'se_depth': 3}), ('resnet83_se', {'se_pool': 'max'}), ('resnet20_se', {'se_pool': 0.3}),
    ('resnet83_ras_se', {'se_depth': 2, 'ras_depth': 3}), ('resnet20_ras_se', {'se_pool': 'min'}),
    ('resnet83', {'dia': 'se', 'se_depth': 2}), ('resnet83', {'dia': 'se', 'se_pool': 'max'}),
    ('resnet83_spe', {'spe_mix': 'max'}), ('resnet83_spe', {'spe_mix': 'average'}), ('resnet83_sem', {}),
    ('resnet20', {'dia': 'sem'}), ('resnet20_asr_sem', {}), ('resnet20', {'norm_layer': 'iebn'})])
def test_the_inference_form_is_the_same_function(name, kwargs):
    model = randomize(small(name, **kwargs)).eval()
    x = images(model)
    with torch.no_grad():
        expected = model(x)
        assert relative_error(expected, torch.jit.script(copy.deepcopy(model))(x)) < 1e-12
        for fold_bn in (False, True):
            assert relative_error(expected, copy.deepcopy(model).reparameterize(fold_bn=fold_bn)(x)) < 1e-12


@pytest.mark.parametrize('training', [False, True])
def test_iebn_is_its_formula(training):
    norm, x = randomize(IEBN2d(C, dtype=torch.float64)).train(training), features()
    v = torch.sigmoid(norm.gate_weight * x.mean((2, 3)) + norm.gate_bias)
    if training:
        mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0)
    else:
        mean, var = norm.norm.running_mean, norm.norm.running_var
    hat = (x - mean[:, None, None]) / (var[:, None, None] + 1e-5).sqrt()
    expected = weigh(hat * norm.weight[:, None, None], v) + norm.bias[:, None, None]
    assert relative_error(expected, norm(x)) < 1e-12


def test_iebn_stays_when_norms_are_synchronised():
    stock = timm.create_model('resnet18', norm_layer=IEBN2d, num_classes=3)
    assert sum(isinstance(m, IEBN2d) for m in nn.SyncBatchNorm.convert_sync_batchnorm(stock).modules()) > 5


@pytest.mark.parametrize('name', ['resnet20_se', 'resnet20_cbam', 'resnet18_se', 'repvgg_a0_cifar_se', 'resnet20_spa'])
def test_gates_keep_their_own_initialisation(name):
    """PyTorch's: uniform in +-1 / sqrt(inputs), whatever the network does to its convolutions."""
    model = timm.create_model(name)
    layers = [m for gate in model.modules() if isinstance(gate, ChannelGate) for m in gate.modules()
              if isinstance(m, nn.Conv2d | nn.Linear)]
    assert layers
    for layer in layers:
        inputs = layer.weight[0].numel()
        assert layer.weight.abs().max() <= inputs**-0.5
        if layer.weight.numel() > 100:
            assert abs(layer.weight.std() * (3 * inputs) ** 0.5 - 1) < 0.2


def test_scales_start_at_zero_and_shifts_at_minus_one():
    ie, sem, iebn = IE(C), SEM(C), IEBN2d(C)
    assert all(weight.eq(0).all() for weight in (ie.weight, sem.weight, iebn.gate_weight))
    assert all(bias.eq(-1).all() for bias in (ie.bias, sem.bias, iebn.gate_bias))


def test_a_forward_pass_writes_to_nothing():
    for name, kwargs in (('resnet20_sem', {}), ('resnet20_spe', {}), ('resnet20', {'dia': 'lstm'}),
                         ('resnet20', {'norm_layer': 'iebn'})):
        for model in (small(name, **kwargs).eval(), small(name, **kwargs).eval().reparameterize(fold_bn=True)):
            versions = {key: t._version for key, t in model.state_dict(keep_vars=True).items()}
            attributes = {key: dict(vars(m)) for key, m in model.named_modules()}
            model(images(model))
            assert {key: t._version for key, t in model.state_dict(keep_vars=True).items()} == versions
            assert {key: dict(vars(m)) for key, m in model.named_modules()} == attributes


@pytest.mark.parametrize('kind', [RAS, RecurrentSE, RecurrentECA, RecurrentSPA])
@pytest.mark.parametrize('steps', [1, 2, 3, 4])
@pytest.mark.parametrize('share', [False, True])
def test_norms(kind, steps, share):
    gate = kind(C, steps=steps, share=share)
    norms = [m for m in gate.connections if isinstance(m, nn.BatchNorm1d)]
    assert len(norms) == (min(1, steps - 1) if share else steps - 1)
    x = torch.randn(4, C, 5, 5)
    gate.train()(x).square().sum().backward()
    assert all(p.grad is not None for p in gate.parameters())
    if norms:
        assert norms[0].num_batches_tracked == (steps - 1 if share else 1)


@pytest.mark.parametrize(
    'connect', ['rational', 'relu', 'sigmoid', 'tanh', 'gelu', 'silu', 'leaky_relu', 'elu', 'identity'])
def test_other_connections(connect):
    model = timm.create_model('resnet20_ras', ras_connect=connect, ras_depth=3, layers=(1, 1, 1))
    assert not [m for m in model.layer1[0].se.modules() if isinstance(m, nn.BatchNorm1d)]
    model(torch.randn(1, 3, 16, 16)).sum().backward()  # no batch statistics: but the backbone's, over positions
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())


def test_rational_is_its_formula_and_starts_as_leaky_relu():
    act = Rational(dtype=torch.float64)
    x = torch.linspace(-3, 3, 301, dtype=torch.float64)
    a, b = act.numerator, act.denominator
    p = sum(a[n] * x**n for n in range(6))
    q = 1 + sum(b[n] * x ** (n + 1) for n in range(4)).abs()
    assert relative_error(p / q, act(x)) < 1e-12
    assert (act(x) - nn.functional.leaky_relu(x)).abs().max() < 0.05
    assert torch.isfinite(act(torch.tensor([-1e3, 1e3], dtype=torch.float64))).all()


def test_under_asr_norms_are_affine_maps():
    assert [type(m) for m in asr_gate('ras', ras_depth=3)(C).connections] == [ChannelAffine, ChannelAffine]
    model = timm.create_model('resnet20_asr_ras', layers=(1, 1, 1), ras_depth=4)
    assert len(model.layer1[0].bn2.vectors[0].gate.connections) == 3


@pytest.mark.parametrize(('name', 'kwargs', 'error', 'sentence'), [
    ('resnet20_se', {'se_pool': 'median'}, ValueError, "se_pool is 'median'; it takes 'average', 'max', 'min'"),
    ('resnet20_se', {'se_depth': 0}, ValueError, 'se_depth is 0; SE is 1 to 4 deep'),
    ('resnet20_asr_se', {'se_depth': 2}, TypeError, "Under ASR the gate 'se' has no depth to choose"),
    ('resnet20_asr_spe', {'spe_mix': 0.3}, TypeError, "Under ASR the gate 'spe' has no mix to choose"),
    ('resnet20_spe', {'spe_mix': 1.5}, ValueError, "spe_mix is 1.5; it takes 'average', 'max', 'min', or a number"),
    ('resnet20_spe', {'spe_reweight': 'h'}, ValueError, "SPE's reweight is 'h'; it takes one of shared, a, b"),
    *(('resnet20_spe', {'spe_eta': eta}, ValueError, f"SPE's eta is {eta}") for eta in (-1.0, float('nan'))),
    ('resnet20_eca', {'se_depth': 2}, TypeError, "The gate 'eca' takes no se_depth; se, ras_se do"),
    ('resnet20_ras', {'ras_depth': 5}, ValueError, 'A recurrent gate is applied 1 to 4 times, not 5'),
    ('resnet20_ras', {'ras_connect': 'no'}, ValueError, "Unknown connection 'no' of a recurrent gate; it takes 'bn'"),
    ('resnet20', {'asr': 'ras_se'}, ValueError, "ASR cannot use the gate 'ras_se': fed with a constant"),
])
def test_errors(name, kwargs, error, sentence):
    with pytest.raises(error, match=sentence):
        timm.create_model(name, **kwargs)
