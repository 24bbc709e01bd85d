"""docs/add_a_gate.md: at most 40 lines in one file and one row, and the gate does everything that a gate can do."""

import copy

import pytest
import timm
import torch
from helpers import images, randomize, relative_error, small
from pages import parts

import timm_asr
from timm_asr.gates.gate import ChannelGate
from timm_asr.gates.table import GATES, get_gate, list_gates, list_units

BLOCKS = [part.text for part in parts('docs/add_a_gate.md') if part.kind == 'python' and 'sys.exit' not in part.text]


@pytest.fixture
def gate():
    before = dict(GATES)
    space = {'__name__': 'guide'}
    for block in BLOCKS:
        exec(block, space)
    yield space['Tanh']
    GATES.clear()
    GATES.update(before)


@pytest.mark.parametrize('name', [name for name in list_gates() if get_gate(name).scale is ChannelGate.scale])
def test_a_gate_that_does_not_multiply(name, gate):
    class Adds(get_gate(name)):
        def scale(self, x, v):
            return x + v[..., None, None]

    GATES['adds'] = Adds
    adds, x = randomize(Adds(16)).double(), torch.randn(2, 16, 3, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: (x.cos() + adds(x.sin())).square(), x)
    network = built(gate='adds')
    x = images(network)
    assert relative_error(network(x), copy.deepcopy(network).reparameterize()(x)) < 1e-12


@pytest.mark.parametrize('method', ['pool', 'logits', 'squash', 'excite'])
@pytest.mark.parametrize('name', list_gates())
def test_a_gate_that_computes_other_weights_keeps_them_at_inference(name, method, gate):
    kind = get_gate(name)
    GATES['other'] = type('Other', (kind,), {method: lambda self, x: getattr(kind, method)(self, x).sin()})
    for kwargs in ({'gate': 'other'}, {'dia': 'other'})[:1 + kind.shareable]:
        network = built(layers=(2, 1, 1), **kwargs)
        x = images(network)
        assert relative_error(network(x), copy.deepcopy(network).reparameterize()(x)) < 1e-12


def built(**kwargs):
    return randomize(small('resnet20', **kwargs)).eval()


def test_its_size(gate):
    assert len(BLOCKS[0].strip().splitlines()) <= 40
    assert BLOCKS[1].strip().splitlines()[-1] == "GATES['tanh'] = Tanh"
    assert 'tanh' in list_gates(foldable=True)
    assert 'tanh' in list_units()
    assert 'ras_tanh' in list_gates(foldable=False)


def test_it_is_its_formula_and_its_weights_leave_zero_to_one(gate):
    g = randomize(gate(8, dtype=torch.float64))
    x = 3 * torch.randn(4, 8, 5, 5, dtype=torch.float64)
    v = 1 + torch.tanh(g.weight * x.mean((2, 3)) + g.bias)
    assert relative_error(x * v[:, :, None, None], g(x)) < 1e-12
    assert v.max() > 1
    assert torch.equal(gate(8)(x.float()), x.float())


@pytest.mark.parametrize('kwargs', [
    {'gate': 'tanh'}, {'gate': 'tanh', 'tanh_bias': False}, {'gate': 'ras_tanh', 'ras_depth': 3}, {'dia': 'tanh'},
    {'asr': 'tanh', 'asr_depth': 2}, {'gate': 'tanh', 'asr': 'tanh'}])
def test_in_blocks_under_asr_shared_and_recurrent_with_its_inference_form(gate, kwargs):
    model = built(**kwargs)
    x = images(model)
    with torch.no_grad():
        expected = model(x)
        for fold_bn in (False, True):
            form = copy.deepcopy(model).reparameterize(fold_bn=fold_bn)
            assert relative_error(expected, form(x)) < 1e-12
        assert relative_error(expected, timm_asr.fold_asr(copy.deepcopy(model))(x)) < 1e-12
    model.train()(x).square().sum().backward()
    gates = [m for m in model.modules() if isinstance(m, ChannelGate)]
    assert gates
    assert all((p.grad != 0).any() for m in gates for p in m.parameters())


def test_frozen(gate):
    model = built(gate='tanh')
    x = images(model, 4)
    report = timm_asr.freeze_attention(model, [x], progress=False)
    assert report.architecture == 'resnet20'
    assert not [m for m in model.modules() if isinstance(m, ChannelGate)]


@pytest.mark.parametrize('kwargs', [{'asr': 'tanh'}, {'gate': 'tanh'}])
def test_exported(gate, kwargs, tmp_path):
    model = randomize(timm.create_model('resnet20', layers=(1, 1, 1), **kwargs)).eval()
    x = images(model)
    timm_asr.save_fused(model, tmp_path / 'folder', check=False)
    loaded = timm.create_model(f'local-dir:{tmp_path}/folder', pretrained=True).eval()
    assert relative_error(model(x), loaded(x)) < 1e-5
