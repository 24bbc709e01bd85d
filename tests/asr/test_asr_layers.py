"""Scaling a layer's parameters is scaling its output, value and every gradient; psi and how it starts."""

import copy

import pytest
import timm.layers as tl
import torch
from helpers import randomize, relative_error
from torch import nn

from timm_asr.asr.fold import fold_asr
from timm_asr.asr.scaled import SCALABLE
from timm_asr.asr.vector import ASRVector
from timm_asr.asr.wrapper import ASR
from timm_asr.gates.table import asr_gate, list_gates

C = 16
MAP, TOKENS, ROWS = (4, C, 5, 6), (4, 7, C), (6, C)


def layer_of(kind):
    """A layer of a scalable class with C output channels."""
    name = kind.__name__
    if 'Conv' in name:
        return kind(8 if 'Transpose' in name else C, C, 3)
    if kind is nn.GroupNorm:
        return kind(4, C)
    kwargs = {
        'Linear': {'out_features': C}, 'GroupNormAct': {'num_groups': 4}, 'EvoNorm2dS0': {'groups': 4},
        'EvoNorm2dS0a': {'groups': 4}, 'GroupNorm': {'num_groups': 4}}.get(name, {})
    if 'Instance' in name:
        kwargs['affine'] = True
    if 'Act' in name:
        kwargs |= {'act_layer': nn.SiLU, 'inplace': False}
    return kind(C, **kwargs)


def input_of(kind):
    """The shape of an input: with one, two or three dimensions after the channels, or tokens with the channels last."""
    name = kind.__name__
    channels = 8 if 'Transpose' in name else C
    spatial = next((size for end, size in {'1d': (7,), '2d': (5, 6), '3d': (3, 4, 5)}.items() if end in name), None)
    return (4, channels, *spatial) if spatial else MAP if 'Group' in name else TOKENS


# These compute in float32, and synchronised norms need several processes; their conversion is tested with the models.
LAYERS = {
    f'{kind.__module__.rpartition(".")[2]}.{kind.__name__}': (lambda kind=kind: layer_of(kind), input_of(kind))
    for kind in SCALABLE if not kind.__name__.endswith('Fp32') and 'Sync' not in kind.__name__
} | {
    'rows': (lambda: nn.BatchNorm1d(C), ROWS), 'cumulative': (lambda: nn.BatchNorm2d(C, momentum=None), MAP),
    'untracked': (lambda: nn.BatchNorm2d(C, track_running_stats=False), MAP),
    'tracked': (lambda: nn.InstanceNorm2d(C, affine=True, track_running_stats=True), MAP),
    'LayerNorm without bias': (lambda: nn.LayerNorm(C, bias=False), TOKENS),
    'Linear without bias': (lambda: nn.Linear(C, C, bias=False), ROWS),
    'reflect': (lambda: nn.Conv2d(C, C, 3, padding=1, padding_mode='reflect'), MAP),
    'grouped': (lambda: nn.Conv2d(C, C, 3, padding=1, groups=4, bias=False), MAP),
    'depthwise': (lambda: nn.Conv2d(C, C, 3, padding=1, groups=C), MAP),
    'dilated': (lambda: nn.Conv2d(C, C, 3, padding=2, dilation=2), MAP),
    'same': (lambda: tl.Conv2dSame(C, C, 3, stride=2), MAP),
    'scaled same': (lambda: tl.ScaledStdConv2dSame(C, C, 3, stride=2), MAP),
    'transposed': (lambda: nn.ConvTranspose2d(8, C, 3, stride=2, output_padding=1), (4, 8, 5, 6)),
    'transposed grouped': (lambda: nn.ConvTranspose2d(8, C, 3, groups=4, bias=False), (4, 8, 5, 6))}


def multiplied(layer, x, v):
    """The definition: run the plain layer, multiply its output (before its activation) by v."""
    act = getattr(layer, 'act', nn.Identity())
    layer = copy.copy(layer)
    layer.__dict__['_modules'] = {**layer._modules, **({'act': nn.Identity()} if 'act' in layer._modules else {})}
    y = layer(x)
    return act(y * (v if x.shape[-1] == C else v.view(1, -1, *[1] * (y.ndim - 2))))


@pytest.mark.parametrize('training', [False, True])
@pytest.mark.parametrize('name', LAYERS)
def test_weight_space_is_feature_space(name, training):
    make, shape = LAYERS[name]
    ours = randomize(ASR(make().double(), asr_gate('se'), depth=2)).train(training)
    theirs = copy.deepcopy(ours)
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    z = x.detach().clone().requires_grad_()

    y = ours(x)
    expected = multiplied(theirs.layer, z, theirs.attention_vector())
    assert relative_error(expected, y) < 1e-10
    weights = torch.randn_like(y)
    (y * weights).sum().backward()
    (expected * weights).sum().backward()
    assert relative_error(z.grad, x.grad) < 1e-10
    trained = [p.grad for p in theirs.parameters() if p.grad is not None]
    assert len(trained) >= len(list(theirs.vectors.parameters()))  # a frozen layer or an auxiliary BN has none
    scale = max(g.abs().max() for g in trained)
    for (key, p), q in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        if q.grad is None:
            assert p.grad is None or (p.grad == 0).all(), key
            continue
        assert (p.grad - q.grad).abs().max() < 1e-10 * scale, key
    for (key, p), q in zip(ours.named_buffers(), theirs.buffers(), strict=True):
        assert torch.equal(p, q), key  # running statistics move alike


@pytest.mark.parametrize('name', LAYERS)
def test_folding_keeps_the_function(name):
    make, shape = LAYERS[name]
    asr = randomize(ASR(make().double(), asr_gate('srm'), depth=3)).eval()
    x = torch.randn(shape, dtype=torch.float64)
    expected, layer = asr(x), asr.layer
    folded = fold_asr(asr)
    assert folded is layer
    assert relative_error(expected, folded(x)) < 1e-12
    assert fold_asr(folded) is folded
    assert asr.fuse() is layer  # again, as a module met twice is
    assert relative_error(expected, folded(x)) < 1e-12


@pytest.mark.parametrize(('layer', 'sentence'), [
    (lambda: nn.BatchNorm2d(C, affine=False), 'has no weight to scale'),
    (lambda: nn.LayerNorm((C, 4)), r'over the shape \(16, 4\) has no channel weights'),
    (lambda: tl.StdConv2d(C, C, 3), 'A StdConv2d cannot be scaled')])
def test_what_cannot_be_scaled_is_refused(layer, sentence):
    with pytest.raises(TypeError, match=sentence):
        ASR(layer(), asr_gate('se'))


def test_a_layer_that_turns_unscalable_fails_loudly():
    asr = ASR(nn.BatchNorm2d(C), asr_gate('se'))
    asr.layer = nn.LocalResponseNorm(2)
    with pytest.raises(TypeError, match='A LocalResponseNorm cannot be scaled'):
        asr(torch.randn(MAP))


def test_psi_is_flat_and_starts_at_one_tenth():
    for name in list_gates(foldable=True):
        vector = ASRVector(asr_gate(name), C)
        assert vector.psi.shape == ((2 if name == 'srm' else 1) * C,)
        assert (vector.psi == 0.1).all()


def test_initial_values():
    assert (ASRVector(asr_gate('ie'), C, init=0.3).psi == 0.3).all()
    assert (ASRVector(asr_gate('ie'), C, init='C_0.5').psi == 0.5).all()
    normal = ASRVector(asr_gate('ie'), 4096, init='N_0.3').psi
    assert abs(normal.mean()) < 0.03
    assert abs(normal.std() - 0.3) < 0.03
    assert not ASRVector(asr_gate('ie'), C, learnable=False).psi.requires_grad
    with pytest.raises(ValueError, match="asr_init is 'M_0.3'; it takes a number"):
        ASRVector(asr_gate('ie'), C, init='M_0.3')
    with pytest.raises(ValueError, match='asr_init=0.0 leaves hidden units of SPA at zero'):  # nothing could wake them
        ASRVector(asr_gate('spa'), C, init=0.0)


@pytest.mark.parametrize('init', [0.1, 0.5, 'N_0.3'])
@pytest.mark.parametrize('channels', [16, 32, 64])
@pytest.mark.parametrize('name', list_gates(foldable=True))
def test_no_gate_starts_dead(name, channels, init):
    for seed in range(12):
        torch.manual_seed(seed)
        vector = ASRVector(asr_gate(name), channels, init)
        if name in ('ie', 'spe', 'spem', 'ras'):  # their scale starts at zero: psi moves from the second step on
            optimizer = torch.optim.SGD(vector.parameters(), lr=0.1)
            (vector() * torch.randn(channels)).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        (vector() * torch.randn(channels)).sum().backward()
        for key, p in vector.named_parameters():
            assert torch.isfinite(p.grad).all(), (seed, key)
            if key in ('psi', 'gate.fc1.weight'):
                rows = p.grad.flatten(1).abs().amax(1) if p.ndim > 1 else p.grad.abs().amax()[None]
                assert (rows > 0).all(), (seed, key)


def test_flipped_rows_keep_their_size():
    torch.manual_seed(1)
    plain = asr_gate('se')(64)
    torch.manual_seed(1)
    revived = ASRVector(asr_gate('se'), 64).gate
    assert torch.equal(plain.fc1.weight.abs(), revived.fc1.weight.abs())
    assert torch.equal(plain.fc1.bias.abs(), revived.fc1.bias.abs())


def test_depth_multiplies_the_vectors():
    asr = randomize(ASR(nn.BatchNorm2d(C).double(), asr_gate('se'), depth=4))
    product = torch.ones(C, dtype=torch.float64)
    for vector in asr.vectors:
        product = product * vector()
    assert relative_error(product, asr.attention_vector()) < 1e-12
    for depth in (0, 5):
        with pytest.raises(ValueError, match=f'asr_depth={depth} does not fit: a site takes 1 to 4 vectors'):
            ASR(nn.BatchNorm2d(C), asr_gate('se'), depth=depth)


def test_autocast_leaves_the_vector_in_full_precision():
    asr = randomize(ASR(nn.Linear(C, C), asr_gate('se')))
    x = torch.randn(ROWS)
    with torch.autocast('cpu', torch.bfloat16):
        before = asr(x)
    v = asr.attention_vector()
    with torch.autocast('cpu', torch.bfloat16):
        after = fold_asr(asr)(x)
    assert v.dtype == torch.float32
    assert torch.equal(before, after)


def test_scripting_is_refused_where_an_activation_follows_the_scale():
    with pytest.raises(TypeError, match='ASR on a BatchNormAct2d cannot be scripted'):
        torch.jit.script(ASR(tl.BatchNormAct2d(C), asr_gate('se')))
