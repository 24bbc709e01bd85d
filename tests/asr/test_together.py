"""All vectors of a network at once: the same function and gradients as site by site, never a stale value, few calls."""

import copy
import pickle
import threading
import weakref

import pytest
import timm
import torch
from helpers import KEYWORD_KINDS, asr_layers, clone, images, kinds, randomize, relative_error, same_gradients, small
from torch import nn
from torch.func import functional_call, grad
from torch.utils.checkpoint import checkpoint

import timm_asr
from timm_asr.asr import together
from timm_asr.gates import passes

ASR_KINDS = [name for name in kinds() if '_asr_' in name] + KEYWORD_KINDS
COMPUTED = []


@pytest.fixture(autouse=True)
def computed(monkeypatch):
    """The number of sites that were computed together, pass by pass; after each test nothing is left behind."""
    def spy(network):
        found = real(network)
        COMPUTED.append(len(found))
        return found

    real = together._scaled_by_site
    monkeypatch.setattr(together, '_scaled_by_site', spy)
    COMPUTED.clear()
    yield COMPUTED
    assert not passes._running.stack


def gradients(model, x):
    model.zero_grad(set_to_none=True)
    y = model(x)
    y.square().sum().backward()
    return y.detach(), {key: p.grad for key, p in model.named_parameters() if p.grad is not None}


def apart(model):
    """A copy whose sites each compute their own vectors."""
    model = clone(model)
    together.apart(model)
    return model


def same(model, x, other=None, limit=1e-11):
    expected, wanted = gradients(other or apart(model), x)
    y, found = gradients(model, x)
    assert relative_error(expected, y) < limit
    assert wanted.keys() == found.keys()
    scale = max(g.abs().max() for g in wanted.values())
    for key, g in wanted.items():
        assert (found[key] - g).abs().max() < 10 * limit * scale, key


@pytest.mark.parametrize('name', ASR_KINDS)
def test_both_ways_compute_the_same(name, computed):
    model = randomize(small(name)).eval()
    same(model, images(model))
    assert max(computed) >= 2


@pytest.mark.parametrize('kwargs', [
    {'asr_depth': 4}, {'asr_gain': 2.0}, {'asr_learnable': False}, {'asr_constant': True}, {'rd_ratio': 0.5}])
def test_with_every_keyword(kwargs, computed):
    model = randomize(small('resnet83_asr_se', layers=(2, 2, 2), **kwargs)).train()
    same(model, images(model, 4))
    assert computed == [6]


def test_different_sites_in_one_network(computed):
    model = timm.create_model('resnet50', layers=(2, 2, 1, 1), num_classes=3, dtype=torch.float64)
    timm_asr.attach_asr(model, 'se', sites=['layer1.*.bn3', 'layer2.*.conv1', 'layer3.*.bn3'])
    timm_asr.attach_asr(model, 'srm', sites=['layer1.*.bn2', 'layer2.*.bn2'], preserve=False)
    timm_asr.attach_asr(model, 'ie', sites=['layer2.*.bn3'], depth=2, preserve=False)
    model = randomize(model).eval()
    same(model, x := torch.randn(2, 3, 32, 32, dtype=torch.float64))
    assert computed == [8]  # the one of layer3 and the convolutions, whose shapes differ, stay alone
    assert relative_error(model(x), timm_asr.fold_asr(clone(model))(x)) < 1e-12


@pytest.fixture
def model():
    return randomize(small('resnet20_asr_se', layers=(3, 2, 2))).eval()


def test_a_part_that_runs_alone(model, computed):
    x = images(model)
    h, expected = model.act1(model.bn1(model.conv1(x))), model(x)
    assert len(computed) == 1
    h = model.layer3(model.layer2(model.layer1(h)))
    assert relative_error(expected, model.forward_head(h)) < 1e-12
    assert relative_error(expected, model.forward_head(model.forward_features(x))) < 1e-12
    net = randomize(small('resnet20_asr_se', features_only=True)).eval()
    assert relative_error(net(x)[-1], timm_asr.fold_asr(net)(x)[-1]) < 1e-12


def test_sites_that_a_network_is_pruned_of(model, computed):
    model(x := images(model))
    model.layer1 = model.layer1[:1]
    assert relative_error(model(x), timm_asr.fold_asr(clone(model))(x)) < 1e-12
    assert computed[:2] == [7, 4]  # of three alike one is left, and stays alone


def test_psi_between_two_passes(model):
    x = images(model)
    for change in (lambda p: p.add_(1), lambda p: p.mul_(-1), lambda p: p.set_(torch.rand_like(p))):
        with torch.no_grad():
            for asr in asr_layers(model):
                change(asr.vectors[0].psi)
        same(model, x)


def test_two_passes_before_a_backward_pass(model):
    x, z, other = images(model), images(model), apart(model)
    for net in (model, other):
        (net(x).square().sum() + net(z).sum()).backward()
    same_gradients(other, model)


@pytest.mark.parametrize('kwargs', [{'use_reentrant': True}, {'use_reentrant': False}])
@pytest.mark.parametrize('name', ['resnet20_asr_se', 'resnet56_acnet_asr_se', 'resnet20+scalar'])
def test_stages_that_are_recomputed_for_the_backward_pass(name, kwargs, computed):
    model = randomize(small(name)).eval()
    other, x = apart(model), images(model).requires_grad_()
    for stage in (model.layer1, model.layer2, model.layer3):
        stage.forward = lambda x, run=stage.forward: checkpoint(run, x, **kwargs)
    same(model, x, other)
    assert computed == [2]
    model.layer1.forward(x.new_ones(2, 16, 8, 8).requires_grad_()).sum().backward()  # a part of it, alone


def test_functional_call_and_its_gradients(model, computed):
    x, state = images(model), randomize(clone(model), seed=3).state_dict()
    fresh = apart(model)
    fresh.load_state_dict(state)
    assert relative_error(fresh(x), functional_call(model, state, (x,))) < 1e-12
    parameters = {key: p.detach() for key, p in fresh.named_parameters()}
    found = grad(lambda own: functional_call(model, own, (x,)).square().sum())(parameters)
    _, wanted = gradients(fresh.load_state_dict({**model.state_dict(), **parameters}) and fresh, x)
    for key, g in wanted.items():
        assert relative_error(g, found[key]) < 1e-9, key
    stacked = {key: torch.stack([p, 1.1 * p]) for key, p in parameters.items()}
    several = torch.vmap(lambda own: functional_call(model, own, (x,)))(stacked)
    assert relative_error(functional_call(model, parameters, (x,)), several[0]) < 1e-10
    part = functional_call(model.layer1, {k.removeprefix('layer1.'): t for k, t in state.items() if 'layer1' in k},
                           (z := torch.randn(2, 16, 8, 8, dtype=torch.float64),))
    fresh.load_state_dict(state)
    assert relative_error(fresh.layer1(z), part) < 1e-12


def replica_of(module):
    """What DataParallel makes of a module on each device."""
    replica = module._replicate_for_data_parallel()
    for name, child in module._modules.items():
        replica._modules[name] = None if child is None else replica_of(child)
    for name, p in module._parameters.items():
        setattr(replica, name, None if p is None else p * 1.0)
    replica._buffers = dict(module._buffers)
    return replica


@pytest.mark.parametrize('name', ['resnet20_asr_se', 'repvgg_a0_cifar_asr_se', 'vit_tiny_asr_se'])
def test_replicas_of_data_parallel(name):
    model = randomize(small(name)).eval()
    x = images(model)
    expected, wanted = gradients(model, x)
    y = replica_of(model)(x)
    assert relative_error(expected, y) < 1e-12
    model.zero_grad()
    y.square().sum().backward()
    for key, p in model.named_parameters():
        assert relative_error(wanted[key], p.grad) < 1e-9, key


@pytest.mark.parametrize('copied', [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_in_the_middle(model, copied, computed):
    expected = model(x := images(model))
    y = model(x)
    other = copied(model)
    y.sum().backward()
    assert torch.equal(expected, other(x))
    with torch.no_grad():
        other.layer1[0].bn2.vectors[0].psi.add_(1)
    assert torch.equal(expected, model(x))
    same(other, x)
    assert min(computed) == len(asr_layers(model))


def test_inference_mode_between_training_steps(model):
    x = images(model)
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    for _ in range(2):
        with torch.inference_mode():
            assert model(x).is_inference()
        same(model, x)
        optimizer.step()
        with torch.no_grad():
            assert not model(x).requires_grad
        assert relative_error(model(x), apart(model)(x)) < 1e-12


def test_gradients_switched_on_within_a_pass_without(model):
    run = model.layer1.forward

    def with_gradients(x):
        with torch.enable_grad():
            y = run(x)
            y.sum().backward()
        return y.detach()

    model.layer1.forward = with_gradients
    with torch.no_grad():
        model(images(model))
    assert all(asr.vectors[0].psi.grad is not None for asr in asr_layers(model.layer1))


@pytest.mark.parametrize('name', ['repvgg_a0_cifar_asr_se', 'resnet20_asr_se', 'vit_tiny_asr_se'])
def test_an_interrupted_pass_is_forgotten(name):
    model = randomize(small(name)).eval()
    x, seen, last = images(model), [], asr_layers(model)[-1]
    handle = last.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
    expected = model(x)
    handle.remove()
    before = {key: (t, t.detach().clone()) for key, t in model.state_dict(keep_vars=True).items()}

    def interrupt(*_):
        raise KeyboardInterrupt

    handle = asr_layers(model)[0].register_forward_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        model(x)
    handle.remove()
    assert all(t is before[key][0] and torch.equal(t, before[key][1])
               for key, t in model.state_dict(keep_vars=True).items())
    with torch.no_grad():
        for asr in asr_layers(model):
            asr.vectors[0].psi.add_(1)
    assert torch.equal(asr_layers(apart(model))[-1](seen[0]), last(seen[0]))
    same(model, x)
    assert relative_error(expected, model(x)) > 1e-6


def test_networks_within_networks(computed):
    inner = timm_asr.attach_asr(timm.create_model('resnet18', num_classes=0, dtype=torch.float64), 'se')
    outer = nn.Sequential(inner, nn.Linear(512, 3, dtype=torch.float64))
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    same(randomize(outer).eval(), x)
    assert computed == [8]
    outer[0].bn1 = timm_asr.asr.wrapper.ASR(outer[0].bn1, timm_asr.asr.ungated.UNGATED['free'])  # by hand
    together.together(outer)
    same(outer.eval(), x)
    assert computed == [8, 8]


@pytest.mark.parametrize('change', [
    lambda m: m.float(), lambda m: timm.layers.convert_sync_batchnorm(m).eval(),
    lambda m: timm_asr.attach_asr(m, 'eca', sites=['bn1']), lambda m: setattr(m.layer1[1], 'bn2', nn.Identity()) or m,
    lambda m: setattr(m.layer2[0], 'bn2', m.layer2[0].bn2.fold()) or m,
    lambda m: m.to(memory_format=torch.channels_last), lambda m: setattr(asr_layers(m)[1].vectors[0], 'gain', 2.0) or m,
    lambda m: asr_layers(m)[1].vectors[0].gate.fc1.register_forward_hook(lambda *a: 2 * a[2]) and m])
def test_a_network_that_has_become_another_one(model, change):
    model(images(model))
    model = change(model)
    same(model, images(model), limit=1e-11 if model.conv1.weight.dtype == torch.float64 else 1e-3)


def test_half_precision(model):
    for dtype in (torch.float16, torch.bfloat16):
        net = clone(model).to(dtype)
        x = images(net)
        assert relative_error(apart(net)(x).float(), net(x).float()) < 3e-2
        assert net(x).dtype == dtype


class Counting(timm_asr.get_gate('se')):
    """A gate that only its own site can compute."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.register_buffer('seen', torch.zeros(()))


def test_linear_layers_without_bias_and_nothing_of_their_weights_kept(computed):
    body = nn.Sequential(*(nn.Linear(16, 16, bias=i == 2) for i in range(4))).double()
    model = randomize(timm_asr.attach_asr(body, 'se', sites=['0', '1', '3', '2']))
    same(model, x := torch.randn(4, 16, dtype=torch.float64))
    assert computed == [3]
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        model(x)
    own = {p.data_ptr() for p in model.parameters()}
    scaled = {t.untyped_storage().data_ptr() for t in kept if t.shape[-2:] == (16, 16) and t.data_ptr() not in own}
    assert len(scaled) == 2  # the weights that the layers run with: those of three in one tensor, that of one alone
    own = {key: p.detach() for key, p in model.named_parameters()}
    _, slope = torch.func.jvp(lambda own: functional_call(model, own, (x,)).square().sum(), (own,), (own,))
    assert relative_error(sum((p.grad * p).sum() for p in model.parameters()).detach(), slope) < 1e-12


def test_the_joined_parameters_are_not_kept_for_the_backward_pass(model, monkeypatch):
    joined, join = [], together._Joined.join

    def spy(self):
        joined.append(weakref.ref(flat := join(self)))
        return flat

    monkeypatch.setattr(together._Joined, 'join', spy)
    y = model(images(model))
    assert [flat() for flat in joined] == [None]
    y.sum().backward()
    assert [flat() for flat in joined] == [None, None]
    y = model(images(model))
    with torch.no_grad():
        model.layer1[0].bn2.vectors[0].psi.add_(1)
    with pytest.raises(RuntimeError, match='changed in place between forward and backward'):
        y.sum().backward()


def test_a_gate_that_keeps_state_stays_alone(computed):
    model = timm_asr.attach_asr(timm.create_model('resnet18', num_classes=3), Counting)
    model(torch.randn(2, 3, 64, 64))
    assert computed == [0]


def test_folding_leaves_no_trace(model):
    before = {key for key, value in vars(timm.create_model('resnet20')).items() if not isinstance(value, nn.Module)}
    timm_asr.fold_asr(model)
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())
    assert {key for key, value in vars(model).items() if not isinstance(value, nn.Module)} <= before


def test_threads_have_passes_of_their_own(model):
    x, found = images(model), []
    expected = model(x)

    def from_another_thread(*_):
        thread = threading.Thread(target=lambda: found.append(model.layer3(torch.ones(1, 32, 4, 4).double())))
        thread.start()
        thread.join()

    model.layer1.register_forward_hook(from_another_thread)
    assert torch.equal(expected, model(x))
    assert torch.equal(found[0], apart(model).layer3(torch.ones(1, 32, 4, 4).double()))
