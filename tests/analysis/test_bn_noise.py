"""Noise in BatchNorms: the paper's formula, gradients, exact folding under it, and nothing left afterwards."""

import pytest
import timm
import torch
from freeze_helpers import CIFAR
from helpers import randomize, relative_error
from torch import nn

import timm_asr
from timm_asr.analysis import Noise, bn_noise, parse_noise


@pytest.mark.parametrize('training', [True, False])
@pytest.mark.parametrize('affine', [True, False])
def test_the_formula(training, affine):
    bn = randomize(nn.BatchNorm2d(6, affine=affine).double()).train(training)
    x = torch.randn(4, 6, 5, 5, dtype=torch.float64, requires_grad=True)
    axes = (0, 2, 3)
    mean, var = (x.mean(axes), x.var(axes, correction=0)) if training else (bn.running_mean, bn.running_var)
    gamma, beta = (bn.weight, bn.bias) if affine else (torch.ones(6), torch.zeros(6))
    shape = (1, 6, 1, 1)
    hat = (x - mean.view(shape)) / (var.view(shape) + bn.eps).sqrt()
    expected = (hat * 0.7 - 0.4) * gamma.view(shape) + beta.view(shape)
    with bn_noise(0.7, -0.4):
        found = bn(x)
    assert torch.allclose(found, expected, atol=1e-12)
    weights = torch.randn_like(x)
    wanted = [x, *bn.parameters()]
    for a, b in zip(*(torch.autograd.grad((y * weights).sum(), wanted) for y in (expected, found)), strict=True):
        assert torch.allclose(a, b, atol=1e-11)


def test_drawn_for_each_channel_and_pass():
    bn = nn.BatchNorm2d(2000).eval()
    x = torch.randn(3, 2000, 2, 2)
    with bn_noise(Noise(1.0, 0.5), Noise(0.2, 0.1)):
        torch.manual_seed(0)
        first, second = bn(x).detach(), bn(x).detach()
        torch.manual_seed(0)
        again = bn(x)
    assert torch.equal(first, again)
    assert not torch.allclose(first, second, atol=0.1)
    factors = (first[0, :, 0, 0] - first[1, :, 0, 0]) / (x[0, :, 0, 0] - x[1, :, 0, 0]) * (1 + bn.eps) ** 0.5
    terms = first[0, :, 0, 0] - factors * x[0, :, 0, 0] / (1 + bn.eps) ** 0.5
    assert torch.tensor([factors.median(), factors.std(), terms.median(), terms.std()]).allclose(
        torch.tensor([1, 0.5, 0.2, 0.1]), atol=0.05)


@pytest.mark.parametrize(('name', 'kwargs'), [
    ('resnet20_se_asr_se', CIFAR), ('mobilenetv3_small_100', {'num_classes': 5, 'asr': 'se'}),
    ('repvgg_a0_asr_se', {'num_classes': 5})])
def test_folded_asr_is_the_same_function_under_noise(name, kwargs):
    model = randomize(timm_asr.create_model(name, dtype=torch.float64, **kwargs)).eval()
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    with torch.no_grad():
        clean = model(x)
        with bn_noise(0.8, 0.5):
            noisy = model(x)
        assert relative_error(clean, noisy) > 1e-3
        with bn_noise(0.8, 0.5):
            timm_asr.fold_asr(model)
            assert relative_error(noisy, model(x)) < 1e-12
        assert relative_error(clean, model(x)) < 1e-12


def test_nothing_is_left():
    model = timm.create_model('resnet20', **CIFAR).eval()
    x = torch.randn(8, 3, 16, 16)
    before, expected = {key: value.clone() for key, value in model.state_dict().items()}, model(x)
    with pytest.raises(ZeroDivisionError), bn_noise(0.5, Noise(0.2, 1)):  # noqa: PT012
        assert not torch.allclose(model(x), expected)
        raise ZeroDivisionError
    assert torch.equal(model(x), expected)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_how_it_is_written():
    assert parse_noise('0.8, 0.5') == (Noise(0.8), Noise(0.5))
    assert parse_noise('N1_0.1,-2') == (Noise(1, 0.1), Noise(-2))
    for text in ('0.8', '1,2,3', 'N1,0', 'N1_-0.1,0', 'a,b', 'nan,0', '0.8_0.1,0'):
        with pytest.raises(ValueError, match='is no noise: write two numbers'):
            parse_noise(text)
