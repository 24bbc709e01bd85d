"""Vectors without a gate, constant vectors, and the gain: what v is, what learns, and that all of it folds."""

import pytest
import timm
import torch
from helpers import asr_layers, images, randomize, relative_error, small

import timm_asr
from timm_asr.asr.ungated import UNGATED, vector_maker
from timm_asr.asr.vector import ASRVector

C = 16


def vector(name, **options):
    return ASRVector(vector_maker(name), C, **options)


@pytest.mark.parametrize('gain', [1.0, 2.0])
@pytest.mark.parametrize(('name', 'size', 'function'), [
    ('free', C, torch.sigmoid), ('scale', C, lambda psi: psi), ('scalar', 1, lambda psi: psi.expand(C))])
def test_v_is_a_function_of_psi_alone(name, size, function, gain):
    v = randomize(vector(name, gain=gain).double())
    assert [p.shape for p in v.parameters()] == [(size,)]
    assert torch.equal(v(), gain * function(v.psi))
    assert v().shape == (C,)


@pytest.mark.parametrize('gain', [1.0, 2.0])
@pytest.mark.parametrize(('name', 'default'), [('free', 0.5), ('scale', None), ('scalar', None)])
def test_init_is_where_v_starts(name, default, gain):
    expected = 1.0 if default is None else default * gain
    assert torch.allclose(vector(name, gain=gain)(), torch.full((C,), expected))
    assert torch.allclose(vector(name, gain=gain, init=0.27)(), torch.full((C,), 0.27))
    assert torch.allclose(vector(name, gain=gain, init='C_0.27')(), torch.full((C,), 0.27))
    assert vector(name, init='N_0.1').psi.abs().max() < 1


def test_scale_is_unbounded_and_free_is_not():
    assert (vector('scale', init=-3)() == -3).all()
    assert (vector('scalar', init=0)() == 0).all()  # SkipInit
    for start in (0, 1, 1.5):
        with pytest.raises(ValueError, match="the sigmoid of 'free' starts between 0 and 1"):
            vector('free', init=start)


def test_a_gain_multiplies_every_vector():
    for depth in (1, 3):
        once, twice = (small('resnet20_asr_se', asr_gain=g, asr_depth=depth) for g in (1.0, 2.0))
        twice.load_state_dict(randomize(once).state_dict())
        for a, b in zip(asr_layers(once), asr_layers(twice), strict=True):
            assert relative_error(a.attention_vector() * 2**depth, b.attention_vector()) < 1e-12
    x = images(twice.eval())
    assert relative_error(twice(x), timm_asr.fold_asr(twice)(x)) < 1e-12
    for gain in (0, -1, float('inf'), float('nan')):
        with pytest.raises(ValueError, match='it takes a positive number, such as 2'):
            vector('scale', gain=gain)


@pytest.mark.parametrize('asr', ['se', *UNGATED])
def test_a_constant_vector_never_moves(asr):
    model = small('resnet20', asr=asr, asr_constant=True).train()
    before = [a.attention_vector().clone() for a in asr_layers(model)]
    optimizer = torch.optim.SGD(model.parameters(), 0.1, weight_decay=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        model(images(model)).square().sum().backward()
        optimizer.step()
    assert all(torch.equal(a.attention_vector(), v) for a, v in zip(asr_layers(model), before, strict=True))
    assert not any(p.requires_grad for a in asr_layers(model) for p in a.vectors.parameters())
    assert all(p.grad is not None for key, p in model.named_parameters() if '.vectors.' not in key)
    assert all(p.requires_grad for p in timm_asr.fold_asr(model).parameters())


@pytest.mark.parametrize('asr', UNGATED)
@pytest.mark.parametrize('name', ['resnet18', 'vit_tiny_patch16_224', 'test_convnext'])
def test_on_timms_models(name, asr):
    kwargs = {'depth': 2, 'img_size': 32} if name.startswith('vit') else {}
    stock = randomize(timm.create_model(name, num_classes=3, dtype=torch.float64, **kwargs)).eval()
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    expected = stock(x)
    model = timm_asr.attach_asr(stock, asr, depth=2, init=0.4, preserve=True)
    assert relative_error(expected, model(x)) < 1e-10
    randomize(model)
    model.train()(x).square().sum().backward()
    assert all(a.vectors[1].psi.grad.abs().sum() > 0 for a in asr_layers(model))
    expected = model.eval()(x)
    scripted = torch.jit.script(model)(x) if name != 'test_convnext' else expected
    assert relative_error(expected, scripted) < 1e-12
    assert relative_error(expected, timm_asr.fold_asr(model)(x)) < 1e-12


def test_what_is_not_understood_is_refused():
    with pytest.raises(ValueError, match="Unknown gate 'fre'.*Without a gate: free, scale, scalar"):
        timm_asr.create_model('resnet18', asr='fre')
    with pytest.raises(TypeError, match="asr='free' is a vector without a gate and takes no rd_ratio"):
        timm_asr.create_model('resnet18', asr='free', rd_ratio=0.5)
    with pytest.raises(TypeError, match="asr='scale' is a vector without a gate and takes no se_bias"):
        timm.create_model('resnet20', asr='scale', se_bias=False)
