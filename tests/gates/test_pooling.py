"""Poolings with gradients of their own: equal to PyTorch's operators, in every mode of differentiation."""

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck, gradgradcheck
from torch.func import grad, vmap

from timm_asr.gates.fused import average_of, average_pool, by_pooling, by_reduction, extremes_of

LAYOUTS = [torch.contiguous_format, torch.channels_last]


def images(layout, *shape):
    x = torch.randn(*(shape or (3, 4, 5, 2)), dtype=torch.float64).contiguous(memory_format=layout)
    return x.requires_grad_()


def averaged(x):
    return x * average_pool(x).tanh()


def average_beside_the_map(x):
    x, u = average_of(x)
    return x * u.tanh()[:, :, None, None]


def literally_averaged(x):
    return x * x.mean((2, 3), keepdim=True).tanh()


def mixed(x):
    x, u = extremes_of(x)
    high, low = u.chunk(2, 1)
    return x * (high * low.tanh()).sigmoid()[:, :, None, None]


def literally_mixed(x):
    return x * (x.amax((2, 3)) * x.amin((2, 3)).tanh()).sigmoid()[:, :, None, None]


PAIRS = [(averaged, literally_averaged), (average_beside_the_map, literally_averaged), (mixed, literally_mixed)]


@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize(('ours', 'literal'), PAIRS)
def test_values_and_gradients(ours, literal, layout):
    x = images(layout)
    y, expected = ours(x), literal(x)
    assert torch.allclose(y, expected, rtol=0, atol=1e-14)
    direction = torch.randn_like(y)
    got, = torch.autograd.grad(y, x, direction, retain_graph=True)
    again, = torch.autograd.grad(y, x, direction)
    want, = torch.autograd.grad(expected, x, direction)
    assert torch.allclose(got, want, rtol=0, atol=1e-13)
    assert torch.equal(got, again)
    assert got.is_contiguous(memory_format=layout)


@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize('ours', [averaged, average_beside_the_map, mixed])
def test_all_derivatives(ours, layout):
    x = images(layout, 2, 2, 3, 2)
    assert gradcheck(ours, (x,), check_forward_ad=True)
    assert gradgradcheck(ours, (x,))


@pytest.mark.parametrize(('ours', 'literal'), PAIRS)
def test_gradients_of_single_samples(ours, literal):
    x = images(torch.contiguous_format).detach()

    def loss(pool):
        return lambda image: pool(image[None]).square().sum()

    assert torch.allclose(vmap(grad(loss(ours)))(x), vmap(grad(loss(literal)))(x), rtol=0, atol=1e-13)


@pytest.mark.parametrize('layout', LAYOUTS)
def test_accelerators_find_the_same_extremes(layout):
    x = images(layout).detach()
    assert all(torch.equal(a, b) for a, b in zip(by_pooling(x), by_reduction(x), strict=True))


@pytest.mark.parametrize('dtype', [torch.float64, torch.float32, torch.bfloat16])
def test_the_gradient_of_the_average_is_no_map(dtype):
    x = images(torch.channels_last).detach().to(dtype).requires_grad_()
    got, = torch.autograd.grad(average_pool(x).sum(), x)
    assert got.stride()[2:] == (0, 0)
    assert torch.allclose(got, torch.tensor(0.1, dtype=dtype))


def test_the_average_of_large_half_precision_values():
    """Their sum, 4.8 million, is no float16 number."""
    x = torch.full((1, 2, 40, 40), 3000.0, dtype=torch.float16, requires_grad=True)
    assert (average_pool(x) == 3000).all()


def test_ties_have_one_gradient():
    """A map of one value: maximum and minimum are at the same place, where both gradients go."""
    x = torch.full((1, 2, 3, 3), 0.7, requires_grad=True)
    y, u = extremes_of(x)
    high, low = u.chunk(2, 1)
    (0 * y).sum().add(2 * high.sum() + 3 * low.sum()).backward()
    assert (x.grad.flatten(2).amax(2) == 5).all()
    assert (x.grad.sum((2, 3)) == 5).all()


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize('ours', [averaged, mixed])
def test_dtypes(ours, dtype):
    x = images(torch.channels_last).detach().to(dtype).requires_grad_()
    ours(x).float().sum().backward()
    assert x.grad.dtype == dtype
    assert torch.isfinite(x.grad).all()


def test_without_gradient_pytorchs_operators_run():
    x = images(torch.channels_last)
    with torch.no_grad():
        assert torch.equal(average_pool(x), F.adaptive_avg_pool2d(x, 1))
        assert extremes_of(x)[0] is x
    assert average_pool(x).grad_fn.name().startswith('Div')
    graph = torch.export.export(torch.nn.Sequential(Pool()), (x,)).graph
    assert any('adaptive_avg_pool2d' in str(node.target) for node in graph.nodes)


class Pool(torch.nn.Module):
    def forward(self, x):
        return average_pool(x)
