"""Shared units: what is saved, that nothing is kept between calls, timm's interface, keywords and errors."""

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import timm
import torch
from helpers import images, randomize, relative_error, small
from safetensors.torch import load_file, save_file
from timm.layers import set_reentrant_ckpt
from timm.models._manipulate import group_parameters
from torch import nn
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

import timm_asr
from timm_asr.gates.shared import PlainStage, SharedStage

UNITS = ('se', 'eca', 'cbam', 'srm', 'spa', 'lstm', 'lstm_light')
SMALL = {'layers': (2, 1, 3), 'channels': (8, 8, 16), 'num_classes': 5, 'dtype': torch.float64}


def dia(unit='lstm', backbone='resnet20', **kwargs):
    return randomize(timm.create_model(f'{backbone}_dia_{unit}', **{**SMALL, **kwargs}))


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters()}


def same(a, b, tolerance=1e-10):
    return all((a[key] - b[key]).abs().max() <= tolerance * max(a[key].abs().max().item(), 1e-3) for key in a)


@pytest.mark.parametrize('unit', UNITS)
def test_a_unit_is_saved_once(unit, tmp_path):
    model = dia(unit)
    state = model.state_dict()
    assert sum('.unit.' in key for key in state) == 3 * len(model.layer1.unit.state_dict())
    assert all(key.split('.')[1] == '0' for key in state if '.unit.' in key)
    assert len({t.data_ptr() for t in state.values() if t.numel() > 1}) == sum(t.numel() > 1 for t in state.values())
    assert len(list(model.parameters())) == len(list(model.named_parameters(remove_duplicate=False)))
    save_file(state, tmp_path / 'model.safetensors')  # refuses tensors that share memory
    other = timm.create_model(f'resnet20_dia_{unit}', **SMALL)
    other.load_state_dict(load_file(tmp_path / 'model.safetensors'), strict=True)
    x = images(model)
    assert torch.equal(model.eval()(x), other.eval()(x))


def test_backbone_keys_are_those_of_the_plain_network():
    plain = timm.create_model('resnet20', **SMALL)
    missing, unexpected = dia().load_state_dict(plain.state_dict(), strict=False)
    assert not unexpected
    assert len(missing) == 24  # eight tensors a cell
    assert all('.unit.' in key for key in missing)


@pytest.mark.parametrize('unit', ['srm', 'cbam'])
def test_norms_are_each_blocks_own(unit):
    model = dia(unit)
    owns = [block.own for stage in (model.layer1, model.layer2, model.layer3) for block in stage]
    assert len({id(own[0]) for own in owns}) == 6
    assert not [m for m in model.layer1.unit.modules() if isinstance(m, nn.BatchNorm2d)]
    means = [own[0].running_mean.clone() for own in owns]
    model.train()(images(model, 3))
    after = [own[0].running_mean for own in owns]
    assert all((a != b).any() for a, b in zip(means, after, strict=True))
    assert all(own[0].num_batches_tracked == 1 for own in owns)
    shared = dia(unit, dia_shared_norm=True)
    assert [m for m in shared.layer1.unit.modules() if isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d))]
    assert not [m for block in shared.layer1 for m in block.own.modules() if isinstance(m, nn.BatchNorm2d)]


@pytest.mark.parametrize('unit', UNITS)
def test_nothing_is_kept_between_calls(unit):
    model = dia(unit).eval()
    x = images(model, 4)
    first = model(x)
    assert torch.equal(first, model(x))
    for batch in (1, 3, 2, 4):
        assert relative_error(first[:batch], model(x[:batch])) < 1e-12
    assert relative_error(model(images(model, size=12)), model(images(model, size=12))) > 0  # other sizes run
    with ThreadPoolExecutor(4) as pool:  # as DataParallel calls it, but on one set of weights
        for one, y in zip(x, pool.map(lambda one: model(one[None]), x), strict=True):
            assert relative_error(model(one[None]), y) < 1e-12


@pytest.mark.parametrize('unit', ['lstm', 'lstm_light', 'srm'])
def test_two_forwards_before_one_backward(unit):
    model = dia(unit).eval()
    a, b = images(model, 2), images(model, 3)
    (model(a).square().sum() + model(b).square().sum()).backward()
    together = gradients(model)
    model.zero_grad()
    model(a).square().sum().backward()
    model(b).square().sum().backward()
    assert same(together, gradients(model))


@pytest.mark.parametrize('reentrant', [False, True])
@pytest.mark.parametrize('unit', ['lstm', 'cbam', 'srm', 'eca'])
def test_gradient_checkpointing(unit, reentrant):
    original = dia(unit, dia_stages=(1, 3)).train()
    x = images(original, 3).requires_grad_()
    results = []
    for checkpointing in (False, True):
        model = copy.deepcopy(original)
        model.set_grad_checkpointing(checkpointing)
        calls = []
        for block in (model.layer1[1], model.layer2[0]):
            block.register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        set_reentrant_ckpt(reentrant)
        try:
            logits = model(x)
            features = model.forward_intermediates(x, intermediates_only=True)
            (logits.square().sum() + sum(f.square().sum() for f in features)).backward()
        finally:
            set_reentrant_ckpt(False)
        assert len(calls) == (8 if checkpointing else 4)  # each block runs again in the backward pass
        results.append((logits, gradients(model)))
    assert relative_error(results[0][0], results[1][0]) < 1e-12
    assert same(results[0][1], results[1][1])
    model.set_grad_checkpointing(False)
    assert not any(stage.grad_checkpointing for stage in (model.layer1, model.layer2, model.layer3))


@pytest.mark.parametrize(('backbone', 'unit'), [
    *(('resnet83', unit) for unit in UNITS), ('resnet20', 'lstm'), ('wrn52_4', 'lstm'), ('wrn52_4', 'srm')])
def test_timms_interface(backbone, unit):
    model = dia(unit, backbone).eval()
    x = images(model)
    expected = model(x)
    taps = model.forward_intermediates(x, intermediates_only=True)
    features = timm.create_model(f'{backbone}_dia_{unit}', features_only=True, **SMALL)
    features.load_state_dict({k: v for k, v in model.state_dict().items() if k in features.state_dict()})
    for a, b in zip(taps, features.eval()(x), strict=True):
        assert relative_error(a, b) < 1e-12
    assert relative_error(expected, torch.jit.script(copy.deepcopy(model))(x)) < 1e-12
    assert torch.equal(expected, pickle.loads(pickle.dumps(model))(x))
    extractor = create_feature_extractor(model, [get_graph_node_names(model)[1][-1]])
    assert relative_error(expected, next(iter(extractor(x).values()))) < 1e-12
    torch.compiler.reset()
    assert relative_error(expected, torch.compile(model, fullgraph=True, backend='eager')(x)) < 1e-12
    assert timm_asr.plain_architecture(f'{backbone}_dia_{unit}') == f'{backbone}_dia_{unit}'
    assert torch.equal(expected, timm_asr.fold_asr(copy.deepcopy(model))(x))
    attached = timm_asr.attach_asr(copy.deepcopy(model), 'eca').eval()
    weighed = attached(x)
    assert timm_asr.has_asr(attached)
    assert relative_error(weighed, timm_asr.fold_asr(attached)(x)) < 1e-12
    assert not timm_asr.has_asr(attached)
    model.reset_classifier(7)
    assert model(x).shape == (2, 7)


def test_layer_groups_keep_a_unit_with_its_stage():
    model = timm.create_model('resnet20_dia_lstm')
    groups = group_parameters(model, model.group_matcher(), reverse=True)
    assert groups['layer2.0.unit.cells.0.w_ih.0.weight'] == groups['layer2.0.conv1.weight']
    assert len(set(groups.values())) == 11  # stem, nine blocks, classifier


@pytest.mark.parametrize('backbone', ['resnet20', 'resnet50'])
def test_construction_on_a_device_in_a_dtype(backbone):
    for unit in UNITS:
        model = timm.create_model(f'{backbone}_dia_{unit}', device='meta', dtype=torch.bfloat16)
        tensors = [t for t in model.state_dict().values() if t.is_floating_point()]
        assert all(t.device.type == 'meta' and t.dtype == torch.bfloat16 for t in tensors)


def test_stages_without_a_unit():
    model = dia(dia_stages=3)
    assert [type(getattr(model, f'layer{n}')) for n in (1, 2, 3)] == [PlainStage, PlainStage, SharedStage]
    assert not any('.unit.' in key for key in model.state_dict() if not key.startswith('layer3'))
    everywhere = dia(dia_stages=(1, 2, 3))
    assert set(everywhere.state_dict()) == set(dia().state_dict())


def test_cells():
    assert [type(c).__name__ for c in dia(dia_cells=3).layer1.unit.cells] == [
        'SqueezedLSTMCell', 'StandardLSTMCell', 'StandardLSTMCell']
    assert dia(dia_cell='standard').layer1.unit.cells[0].act == 'tanh'
    assert dia(dia_cells=2).layer1.unit.cells[1].act == 'sigmoid'
    light = timm.create_model('resnet20_dia_lstm_light').layer1.unit.cells[0]
    for weight in (light.weight_ih, light.weight_hh):  # at 0 the bottleneck would have no gradient
        assert 0.5 < weight.abs().max() <= 0.5**0.5


@pytest.mark.parametrize('backbone', ['resnet20', 'resnet83', 'wrn52_4'])
def test_a_dropped_path_leaves_the_shortcut(backbone):
    block = dia(backbone=backbone, drop_path_rate=0.5).train().layer3[-1]
    block.drop_path.drop_prob = 1.0
    a, z = torch.randn(2, 2, 8, 4, 4, dtype=torch.float64)
    assert torch.equal(block.merge(a, z, shortcut := torch.rand_like(a)), shortcut)


@pytest.mark.parametrize(('name', 'kwargs', 'error', 'sentence'), [
    ('resnet20', {'dia': 'lstn'}, ValueError,
     "Unknown shared unit 'lstn', did you mean 'lstm'; known shared units: se, eca"),
    ('resnet20', {'dia_cells': 2}, TypeError, r'dia_cells is for models with a shared unit; this one has none'),
    ('resnet20_dia_lstm', {'dia_cells': 4}, ValueError, '4 stacked cells are out of range'),
    ('resnet20_dia_lstm', {'dia_act': 'gelu'}, ValueError, "one of sigmoid, tanh, relu, not 'gelu'"),
    ('resnet20_dia_lstm', {'dia_cell': 'gru'}, ValueError, "Unknown cell 'gru'; cells: squeezed"),
    ('resnet20_dia_lstm', {'dia_stages': (1, 4)}, ValueError, 'this network has the stages 1 to 3'),
    ('resnet20_dia_lstm', {'dia_stages': ()}, ValueError, 'this network has the stages 1 to 3'),
    ('resnet20_dia_lstm', {'rd_ratio': 0.5, 'dia_cell': 'standard'}, TypeError, 'A standard cell squeezes nothing'),
    ('resnet20_dia_lstm', {'ras_depth': 2}, TypeError, "'lstm' takes no ras_depth"),
    ('resnet20_dia_lstm', {'dia_shared_norm': True}, TypeError, "a BatchNorm, srm and cbam; 'lstm' has none"),
    ('resnet20_dia_lstm_light', {'dia_cell': 'standard'}, TypeError, "'lstm_light' takes no dia_cell; lstm does"),
    ('resnet20_dia_se', {'no_such_argument': 1}, TypeError, 'no_such_argument'),
    ('vit_tiny_asr_se', {'dia': 'lstm'}, TypeError, 'dia'),
])
def test_errors(name, kwargs, error, sentence):
    with pytest.raises(error, match=sentence):
        timm.create_model(name, device='meta', **kwargs)


def test_a_traced_graph_names_no_parameter_that_it_does_not_use():
    """Quantization by torch.fx fuses linear layers, and looked for weights of those that it had replaced."""
    graph = torch.fx.symbolic_trace(small('resnet20_dia_lstm').eval()).graph
    assert not [node.target for node in graph.nodes if node.op == 'get_attr' and not node.users]
