"""The shares of all SPE gates at once: the gates get what they would compute themselves, and never a stale value."""

import copy

import pytest
import torch
from helpers import randomize, relative_error, small
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from timm_asr.gates import passes, spe


@pytest.fixture
def computed(monkeypatch):
    """The shapes of the parameters that shares were made of."""
    shapes, run = [], spe.shares

    def shares(p, eps):
        shapes.append(tuple(p.shape))
        return run(p, eps)

    monkeypatch.setattr(spe, 'shares', shares)
    return shapes


@pytest.fixture
def model():
    return randomize(small('resnet20_spe')).eval()


def gradients(model, x, run=None):
    model.zero_grad()
    y = (run or model)(x)
    y.square().sum().backward()
    return y, [p.grad.clone() for p in model.parameters()]


def alone(model):
    """A copy whose gates compute their own shares."""
    other = copy.deepcopy(model)
    other.mixes = False
    return other


def same(model, x, run=None):
    expected, wanted = gradients(alone(model), x)
    y, found = gradients(model, x, run)
    assert relative_error(expected, y) < 1e-12
    for a, b in zip(wanted, found, strict=True):
        assert relative_error(a, b) < 1e-9
    assert not passes._running.stack


def images():
    return torch.randn(2, 3, 16, 16, dtype=torch.float64)


def test_once_for_the_network(model, computed):
    gradients(model, images())
    assert computed == [(4, 2)]
    del computed[:]
    same(model, images())
    assert len(computed) == 4 + 1


@pytest.mark.parametrize('reentrant', [True, False])
def test_checkpoints(model, reentrant):
    other = copy.deepcopy(model)
    for stage in (other.layer1, other.layer2):
        stage.forward = lambda x, run=stage.forward: checkpoint(run, x, use_reentrant=reentrant)
    x = images().requires_grad_()
    expected, wanted = gradients(alone(model), x)
    y, found = gradients(other, x)
    assert relative_error(expected, y) < 1e-12
    assert all(relative_error(a, b) < 1e-9 for a, b in zip(wanted, found, strict=True))


def test_never_stale(model):
    x = images()
    model(x)
    first, second = model(x).square().sum(), model(2 * x).square().sum()
    (first + second).backward()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1)
    same(model, x)
    with torch.inference_mode():
        model(x)
    same(model, x)
    assert torch.equal(model.layer1(h := torch.randn(2, 16, 8, 8, dtype=torch.float64)), alone(model).layer1(h))
    handle = model.layer2.register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        model(x)
    handle.remove()
    same(model, x)

    def changes(*_):
        with torch.no_grad():
            model.layer2[0].se.mix.add_(1)

    handle = model.layer1.register_forward_hook(changes)
    y = model(x)
    handle.remove()
    assert relative_error(y, model(x)) < 1e-12


def test_other_parameters(model):
    x, other = images(), randomize(copy.deepcopy(model), seed=5)
    assert relative_error(other(x), functional_call(model, other.state_dict(), (x,))) < 1e-12


def test_with_asr_in_the_same_network():
    same(randomize(small('resnet20_spe', asr='se')).eval(), images())
