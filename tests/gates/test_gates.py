"""Every gate against a plain re-statement of its formula, in float64, with random parameters and statistics."""

import copy

import pytest
import timm
import torch
from helpers import randomize, relative_error
from torch import nn
from torch.nn.utils import prune

from timm_asr import reparameterize
from timm_asr.gates.cbam import CBAM
from timm_asr.gates.se import SE
from timm_asr.gates.sem import SEM
from timm_asr.gates.sge import SGE
from timm_asr.gates.spa import SPA
from timm_asr.gates.srm import SRM
from timm_asr.gates.table import GATES, asr_gate, list_gates, list_units, takers

C = 32


def features(batch=3, channels=C, height=9, width=7):
    return torch.randn(batch, channels, height, width, dtype=torch.float64)


def gate_of(kind, channels=C, **kwargs):
    return randomize(kind(channels, dtype=torch.float64, **kwargs))


def test_sge_is_its_formula():
    """The others are compared as they stand in networks, gradients too: tests/inference/test_exact_attention.py."""
    g, x = gate_of(SGE), features()
    out = []
    for i, group in enumerate(x.chunk(g.groups, 1)):
        c = (group * group.mean((2, 3), keepdim=True)).sum(1)
        c = c - c.mean((1, 2), keepdim=True)
        c = c / ((c**2).mean((1, 2), keepdim=True).sqrt() + g.eps)
        out.append(group * torch.sigmoid(c * g.weight[i] + g.bias[i]).unsqueeze(1))
    assert relative_error(torch.cat(out, 1), g(x)) < 1e-12


@pytest.mark.parametrize('name', GATES)
def test_pool_excite_scale_make_the_forward(name):
    gate, x = gate_of(GATES[name]).eval(), features()
    v = gate.excite(gate.pool(x))
    assert torch.equal(gate.scale(x, v), gate(x))
    assert ((v >= 0) & (v <= 1)).all()


@pytest.mark.parametrize('name', GATES)
def test_device_and_dtype(name):
    gate = GATES[name](C, device='meta', dtype=torch.bfloat16)
    tensors = [*gate.parameters(), *(b for b in gate.buffers() if b.is_floating_point())]
    assert tensors
    assert all(t.device.type == 'meta' and t.dtype == torch.bfloat16 for t in tensors)


@pytest.mark.parametrize('name', GATES)
def test_as_attn_layer_of_timm_blocks(name):
    gate, x = GATES[name], torch.randn(2, C, 8, 8)
    for block in (
            timm.models.resnet.BasicBlock(C, C, attn_layer=gate),
            timm.models.nfnet.NormFreeBlock(C, C, act_layer=torch.nn.ReLU, attn_layer=gate),
            timm.models.byobnet.BottleneckBlock(C, C, layers=timm.models.byobnet.LayerFn(attn=gate))):
        assert any(isinstance(m, gate) for m in block.modules())
        assert block(x).shape == x.shape


@pytest.mark.parametrize('name', GATES)
@pytest.mark.parametrize('size', [(1, 1), (2, 3), (5, 1)])
def test_small_maps_give_finite_values_and_gradients(name, size):
    gate, x = gate_of(GATES[name]).train(), features(2, C, *size).requires_grad_()
    gate(x).square().sum().backward()
    assert torch.isfinite(x.grad).all()
    assert all(torch.isfinite(p.grad).all() for p in gate.parameters())


@pytest.mark.parametrize('name', ['sge', 'sem'])
def test_gradients(name):
    """The others': tests/inference/test_exact_attention.py."""
    gate, x = gate_of(GATES[name], 16).eval(), features(2, 16, 5, 4).requires_grad_()
    assert torch.autograd.gradcheck(gate, (x,), eps=1e-6, atol=1e-7)


@pytest.mark.parametrize('name', ['se', 'eca'])
def test_timm_checkpoints_fit(name):
    timm_module = {'se': timm.layers.SEModule, 'eca': timm.layers.EcaModule}[name](256).double()
    ours = GATES[name](256, dtype=torch.float64)
    ours.load_state_dict(timm_module.state_dict())
    x = features(2, 256)
    assert relative_error(timm_module(x), ours(x)) < 1e-12


@pytest.mark.parametrize('name', ['se', 'spa', 'sem', 'ras_se', 'cbam', 'dia_se', 'dia_lstm', 'dia_lstm_light'])
def test_what_is_done_to_the_layers_of_a_gate_counts(name):
    """Pruning works by hooks, LoRA and fake quantisation by other layers."""
    model = randomize(timm.create_model(f'resnet20_{name}', layers=(2, 1, 1), dtype=torch.float64)).eval()
    layers = [(key, m) for key, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    pruned, zeroed = copy.deepcopy(model), copy.deepcopy(model)
    for key, layer in layers:
        zero = torch.rand_like(layer.weight) < 0.3
        prune.custom_from_mask(pruned.get_submodule(key), 'weight', ~zero)
        zeroed.get_submodule(key).weight.data[zero] = 0
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    for _ in range(2):  # the second is a step whose weights are made anew
        assert relative_error(zeroed(x), pruned(x)) < 1e-12
        pruned(x).sum().backward()
    with torch.no_grad():
        assert relative_error(zeroed(x), reparameterize(pruned, fold_bn=True)(x)) < 1e-12
    model.requires_grad_(False)
    for key, layer in layers:
        model.set_submodule(key, nn.Sequential(layer))
        # As wrappers have it; quantized linear layers have a method of that name.
        model.get_submodule(key).weight = layer.weight if isinstance(layer, nn.Conv2d) else layer.parameters
        layer.register_forward_hook(lambda module, args, output: 2 * output)
        zeroed.get_submodule(key).load_state_dict({k: 2 * v for k, v in layer.state_dict().items()})
    assert relative_error(zeroed(x), model(x)) < 1e-12


def test_hooks_on_the_parts_of_a_gate_run_in_training_too():
    gate, calls = SE(C), []
    gate.act = nn.ReLU()
    gate.act.register_forward_hook(lambda *_: calls.append('act'))
    gate.fc1.register_full_backward_hook(lambda *_: calls.append('fc1'))
    gate(torch.randn(2, C, 3, 3, requires_grad=True)).sum().backward()
    assert calls == ['act', 'fc1']


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


@pytest.mark.parametrize('name', list_gates(foldable=False))
def test_spatial_gates_are_refused_by_asr(name):
    with pytest.raises(ValueError, match=f"ASR cannot use the gate '{name}'.*use one of se, eca"):
        asr_gate(name)


@pytest.mark.parametrize('ratio', [0, -0.25, float('nan'), float('inf')])
@pytest.mark.parametrize(('place', 'name'), [
    (place, name) for place, names in (('gate', GATES), ('asr', list_gates(foldable=True)), ('dia', list_units()))
    for name in names if name in takers('rd_ratio')])
def test_a_hidden_width_is_positive(place, name, ratio):
    with pytest.raises(ValueError, match=f'^rd_ratio is {ratio}; the hidden width over channels is positive, such as'):
        timm.create_model('resnet20', rd_ratio=ratio, **{place: name})


@pytest.mark.parametrize('kind', [SE, CBAM, SPA, SEM])
def test_a_hidden_layer_has_a_value(kind):
    assert kind is not SE or SE(64, rd_ratio=0.25).fc1.out_channels == 16
    assert sum(p.numel() for p in kind(4, rd_ratio=1e-9).parameters()) > 0
    with pytest.raises(ValueError, match='The hidden layer of a gate would have 0 values; it takes at least one.'):
        kind(64, rd_channels=0)
