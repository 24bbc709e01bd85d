"""The inference form of models with attention: the same function, what is left of it, saved, loaded, refused."""

import copy
import pickle
from functools import partial

import pytest
import torch
from helpers import images, kinds, randomize, relative_error, small
from safetensors.torch import load_file, save_file
from timm.layers import BatchNormAct2d
from timm.models import create_feature_extractor
from timm.models.resnet import Bottleneck
from torch import nn

import timm_asr
from timm_asr.gates.dia_lstm import InferenceLSTM, SharedLSTM
from timm_asr.gates.forms import ChannelSigmoid, Excitation, LinearSigmoid, PairSigmoid, PointwiseConv2d
from timm_asr.gates.gate import ChannelGate
from timm_asr.gates.ras import RAS
from timm_asr.gates.se import SE
from timm_asr.gates.spe import SPE
from timm_asr.inference.block import InferenceBlock, InferenceStage

GATED = [name for name in kinds() if '_asr_' not in name and '_' in name]
# Options of the papers' ablations, each with the name that it goes with.
OPTIONS = [
    *(('resnet83_spe', {'spe_reweight': kind}) for kind in ('a', 'b', 'c', 'd', 'e', 'f', 'g', 'none')),
    ('resnet83_spe', {'spe_mix': 0.3}),
    *(('resnet83_ras', {'ras_depth': depth}) for depth in (1, 3, 4)),
    ('resnet83_ras', {'ras_share': True, 'ras_depth': 3}), ('resnet83_ras', {'ras_connect': 'relu'}),
    ('resnet83_ras_se', {'ras_depth': 4}), ('resnet83_ras_spa', {'ras_depth': 3}),
    ('resnet20_ras_se', {'ras_connect': 'tanh'}), ('resnet20_ras_spa', {'ras_connect': 'relu'}),
    ('resnet83_dia_lstm', {'dia_cells': 3}), ('resnet83_dia_lstm', {'dia_cell': 'standard'}),
    ('resnet20_dia_lstm', {'dia_cell': 'standard', 'dia_act': 'relu'}), ('resnet83_dia_lstm', {'dia_act': 'tanh'}),
    ('resnet83_dia_lstm', {'rd_ratio': 1.0}), ('resnet83_dia_lstm', {'dia_stages': (2,)}),
    ('resnet83_dia_lstm', {'no_norm': True}), ('resnet83_dia_se', {'no_skip': True}),
    ('resnet83_dia_srm', {'dia_shared_norm': True}), ('resnet83', {'dia': 'spe'}), ('resnet83', {'dia': 'ie'}),
    ('resnet83_se', {'se_bias': False}), ('resnet83_se', {'drop_path_rate': 0.5}),
    ('resnet50_ie', {'channels': (64, 64, 128, 256)}),  # wide enough that no gate gets a matrix of its own
]


def built(name, **kwargs):
    return randomize(small(name, **kwargs)).eval()


@pytest.mark.parametrize('name', GATED)
def test_single_precision(name):
    model = built(name, dtype=torch.float32)
    x = images(model, 3)
    with torch.no_grad():
        expected = model(x)
        for fold_bn in (False, True):
            form = copy.deepcopy(model).reparameterize(fold_bn=fold_bn)
            assert relative_error(expected, form(x)) < 1e-5
            form = form.to(memory_format=torch.channels_last)
            last = x.contiguous(memory_format=torch.channels_last)
            assert relative_error(expected, form(last)) < 1e-5
            assert relative_error(expected[:1], form(last[:1])) < 1e-5  # matrix products in place of convolutions


@pytest.mark.parametrize(('name', 'kwargs'), OPTIONS)
def test_options_in_double_precision(name, kwargs):
    model = built(name, **kwargs)
    x = images(model, 3)
    with torch.no_grad():
        expected = model(x)
        form = copy.deepcopy(model).reparameterize()
        assert relative_error(expected, form(x)) < 1e-12
        assert relative_error(expected, form.reparameterize(fold_bn=True)(x)) < 1e-12
        assert relative_error(expected, model.reparameterize(fold_bn=True)(x)) < 1e-12
        assert model.reparameterize() is model


def test_what_is_left_of_each_gate():
    for name, kind in (
            ('resnet83_se', Excitation), ('resnet83_spa', Excitation), ('resnet83_eca', LinearSigmoid),
            ('resnet83_ie', LinearSigmoid), ('resnet83_ras', LinearSigmoid), ('resnet83_spe', PairSigmoid),
            ('resnet83_srm', PairSigmoid), ('resnet20_ras', ChannelSigmoid)):
        block = built(name).reparameterize().layer1[0]
        assert type(block) is InferenceBlock
        assert type(block.gate) is kind
        assert not [m for m in block.modules() if isinstance(m, ChannelGate)]
    se = built('resnet83_se').reparameterize().layer1[0]
    assert se.gate.weight1.shape == (4, 16)  # reads the 16 channels before the last convolution, not the 64 after
    for depth in (1, 2, 4):  # whatever the steps
        gate = built('resnet20_ras', ras_depth=depth).reparameterize().layer3[0].gate
        assert {key: tuple(v.shape) for key, v in gate.state_dict().items()} == {'weight': (64,), 'bias': (64,)}


def test_what_is_left_of_a_shared_unit():
    stage = built('resnet83_dia_lstm').reparameterize().layer1
    assert type(stage) is InferenceStage
    assert type(stage.unit) is InferenceLSTM
    assert [tuple(block.squeeze.weight.shape) for block in stage.blocks] == [(16, 16), (16, 16)]
    cell = stage.unit.cells[0]
    assert cell.weight.shape == (4 * 64, 2 * 16)  # input and hidden state side by side
    wide = built('wrn52_4_dia_lstm').reparameterize()
    assert not [m for m in wide.modules() if isinstance(m, SharedLSTM)]
    shared = built('resnet83_dia_se').reparameterize().layer1
    assert shared.unit.gate.weight1 is None
    assert sum(p.shape == (64, 4) for p in shared.parameters()) == 1  # one second layer for all blocks


@pytest.mark.parametrize('name', ['resnet20_cbam', 'resnet83_sge', 'resnet20_asr_se'])
def test_what_has_no_other_form_keeps_its_classes_and_keys(name):
    model = built(name)
    expected = timm_asr.fold_asr(copy.deepcopy(model))
    model.reparameterize()
    assert list(model.state_dict()) == list(expected.state_dict())
    assert [type(m) for m in model.modules()] == [type(m) for m in expected.modules()]


def test_a_gate_or_a_block_alone():
    x = torch.randn(2, 32, 8, 8, dtype=torch.float64)
    for gate in (RAS(32, steps=3, dtype=torch.float64), SPE(32, dtype=torch.float64)):
        gate = randomize(gate).eval()
        expected = gate(x)
        form = timm_asr.reparameterize(gate)
        assert form is not gate
        assert relative_error(expected, form(x)) < 1e-12
        assert timm_asr.reparameterize(form) is form
    block = randomize(Bottleneck(32, 8, attn_layer=SE, dtype=torch.float64)).eval()
    expected = block(x)
    assert relative_error(expected, timm_asr.reparameterize(block, fold_bn=True)(x)) < 1e-12


@pytest.mark.parametrize('name', ['resnet20_se', 'resnet83_dia_lstm'])
@pytest.mark.parametrize('active', [False, True])
def test_the_activation_of_a_last_norm_stays(name, active):
    model = built(name, norm_layer=partial(BatchNormAct2d, apply_act=active))
    x = images(model)
    with torch.no_grad():
        expected = model(x)
        form = copy.deepcopy(model).reparameterize()
        assert any(isinstance(m, InferenceBlock | InferenceStage) for m in form.modules()) is not active
        assert relative_error(expected, form(x)) < 1e-12
        assert relative_error(expected, model.reparameterize(fold_bn=True)(x)) < 1e-12


class Heads(nn.Module):
    """Two parts with one block in both, which torch.fx cannot trace as a whole."""

    def __init__(self):
        super().__init__()
        tower = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
        self.a, self.b = nn.Sequential(tower), nn.Sequential(tower, nn.ReLU())

    def forward(self, x):
        return self.a(x) if x.sum() > 0 else self.b(x)


def test_norms_of_a_block_that_two_parts_share_are_folded_once():
    model = randomize(Heads()).double().eval()
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    expected = [model(x), model(-x)]
    timm_asr.reparameterize(model, fold_bn=True)
    assert not [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert all(relative_error(a, b) < 1e-12 for a, b in zip(expected, (model(x), model(-x)), strict=True))


def test_a_block_that_stands_twice_is_one_block_afterwards():
    block = randomize(Bottleneck(32, 8, attn_layer=SE, dtype=torch.float64))
    model = nn.Sequential(block, block).eval()
    x = torch.randn(2, 32, 8, 8, dtype=torch.float64)
    expected = model(x)
    timm_asr.reparameterize(model)
    assert model[0] is model[1]
    assert relative_error(expected, model(x)) < 1e-12


def test_the_inference_form_has_no_training_mode():
    model = built('resnet83_dia_lstm', drop_path_rate=0.5).reparameterize(fold_bn=True)
    x = images(model)
    with torch.no_grad():
        expected = model(x)
        assert relative_error(expected, model.train()(x)) == 0


@pytest.mark.parametrize('name', ['resnet83_se', 'resnet20_spe', 'resnet83_dia_lstm', 'resnet20_dia_se',
                                  'wrn52_4_dia_lstm', 'resnet18_ras', 'vit_tiny_asr_se',
                                  'repvgg_a0_cifar_se_asr_se', 'resnet56_acnet_asr_se'])
@pytest.mark.parametrize('fold_bn', [False, True])
def test_saved_and_loaded(name, fold_bn, tmp_path):
    model = built(name)
    x = images(model)
    with torch.no_grad():
        expected = model(x)
        model.reparameterize(fold_bn=fold_bn)
        save_file(model.state_dict(), tmp_path / 'model.safetensors')  # refuses tensors that share memory
        other = small(name).eval().reparameterize(fold_bn=fold_bn)
        other.load_state_dict(load_file(tmp_path / 'model.safetensors'), strict=True)
        assert relative_error(expected, other(x)) < 1e-12
        assert torch.equal(model(x), other(x))
        assert torch.equal(model(x), pickle.loads(pickle.dumps(model))(x))
        assert torch.equal(model(x), copy.deepcopy(model)(x))
    if 'repvgg' not in name:  # whose branches timm cannot merge without their values
        empty = small(name, device='meta').eval().reparameterize(fold_bn=fold_bn)
        assert list(empty.state_dict()) == list(model.state_dict())


def test_intermediate_features_are_not_written_over():
    for name in ('resnet20_se', 'resnet83_dia_lstm'):  # whose first block adds to the stem's output itself
        model = built(name, layers=(1, 1, 1))
        x = images(model)
        with torch.no_grad():
            expected = model.forward_intermediates(x, intermediates_only=True)
            model.reparameterize(fold_bn=True)
            for a, b in zip(expected, model.forward_intermediates(x, intermediates_only=True), strict=True):
                assert relative_error(a, b) < 1e-12


def test_gradients_of_the_input_are_those_of_the_model():
    for name in ('resnet83_se', 'resnet20_spe', 'resnet83_dia_lstm'):
        model = built(name)
        x = images(model).requires_grad_()
        expected, = torch.autograd.grad(model(x).square().sum(), x)
        found, = torch.autograd.grad(model.reparameterize(fold_bn=True)(x).square().sum(), x)
        assert relative_error(expected, found) < 1e-10


@pytest.mark.parametrize('name', [
    'resnet83_se', 'resnet83_spe', 'resnet83_spa', 'resnet83_dia_lstm', 'resnet20_dia_lstm_light'])
def test_compiled_traced_scripted_and_in_features(name):
    model = built(name).reparameterize(fold_bn=True)
    x = images(model)
    with torch.no_grad():
        expected = model(x)
        for other in (
                torch.compile(model, backend='eager', fullgraph=True), torch.jit.script(model),
                torch.jit.trace(model, x)):
            assert relative_error(expected, other(x)) < 1e-12
        features = create_feature_extractor(model, {'layer2': 'f'})(x)['f']
        assert relative_error(model.forward_intermediates(x, intermediates_only=True)[2], features) < 1e-12


def test_mixed_precision_and_low_precision():
    model = built('resnet83_dia_lstm', dtype=torch.float32)
    x = images(model)
    with torch.no_grad():
        expected = model(x)
        with torch.autocast('cpu', torch.bfloat16):  # what is computed beforehand is not rounded
            model.reparameterize(fold_bn=True)
            assert relative_error(expected, model(x).float()) < 3e-2
        assert relative_error(expected, model(x)) < 1e-5
        assert relative_error(expected, model.bfloat16()(x.bfloat16()).float()) < 5e-2


def test_pointwise_convolution_is_the_convolution():
    conv = nn.Conv2d(6, 10, 1, dtype=torch.float64)
    layer = PointwiseConv2d.of(conv)
    assert layer.weight is conv.weight
    assert list(layer.state_dict()) == list(conv.state_dict())
    for batch, side in ((1, 5), (3, 4), (2, 300)):
        x = torch.randn(batch, 6, side, side, dtype=torch.float64)
        for memory_format in (torch.contiguous_format, torch.channels_last):
            y = layer(x.contiguous(memory_format=memory_format))
            assert relative_error(conv(x), y) < 1e-14
        assert y.is_contiguous(memory_format=torch.channels_last)
    for kwargs in ({'groups': 2}, {'stride': 2}, {'padding': 1}, {'kernel_size': 3}):
        assert not PointwiseConv2d.fits(nn.Conv2d(6, 6, **{'kernel_size': 1, **kwargs}))
