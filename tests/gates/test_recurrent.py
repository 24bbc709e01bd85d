"""RAS: steps, connections, the gates it can repeat, and what is refused."""

import pytest
import timm
import torch
from helpers import relative_error
from torch import nn

import timm_asr  # noqa: F401 - registers the models
from timm_asr.gates.ras import RAS, Rational, RecurrentECA, RecurrentSE, RecurrentSPA
from timm_asr.gates.srm import ChannelAffine
from timm_asr.gates.table import asr_gate

C = 8
KINDS = (RAS, RecurrentSE, RecurrentECA, RecurrentSPA)


@pytest.mark.parametrize('kind', KINDS)
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
    gate = asr_gate('ras', ras_depth=3)(C)
    assert [type(m) for m in gate.connections] == [ChannelAffine, ChannelAffine]
    model = timm.create_model('resnet20_asr_ras', layers=(1, 1, 1), ras_depth=4)
    assert len(model.layer1[0].bn2.vectors[0].gate.connections) == 3


@pytest.mark.parametrize(('name', 'kwargs', 'error', 'sentence'), [
    ('resnet20_ras', {'ras_depth': 5}, ValueError, 'A recurrent gate is applied 1 to 4 times, not 5'),
    ('resnet20_ras', {'ras_connect': 'no'}, ValueError, "Unknown connection 'no' of a recurrent gate; it takes 'bn'"),
    ('resnet20_ras', {'rd_ratio': 0.5}, TypeError, "'ras' has no hidden layer"),
    ('resnet20_se', {'ras_depth': 2}, TypeError, "The gate 'se' takes no ras_depth"),
    ('resnet20', {'ras_depth': 2}, TypeError, 'ras_depth is for models with a gate or with ASR'),
    ('resnet20', {'asr': 'ras_se'}, ValueError, "ASR cannot use the gate 'ras_se': fed with a constant"),
])
def test_errors(name, kwargs, error, sentence):
    with pytest.raises(error, match=sentence):
        timm.create_model(name, **kwargs)
