"""Nothing of a model is changed that should not be: by looking for sites, by a forward pass, by what is refused."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import timm
import torch
from helpers import KEYWORD_KINDS, clone, images, kinds, randomize, relative_error, small
from torch import nn
from torch.nn.utils import parametrizations, prune, weight_norm

from timm_asr import attach_asr, create_model, fold_asr, has_asr
from timm_asr.asr.sites import known_sites

THREADED = ['repvgg_a0_asr_se', 'resnet56_acnet_asr_se', 'test_convnext', 'fastvit_t8']


def state(model):
    """Every tensor by name: the object, what is in it, and whether it learns."""
    named = (*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False))
    return {name: (id(t), t.requires_grad, t.clone()) for name, t in named}


def unchanged(model, before):
    after = state(model)
    assert list(before) == list(after)
    for name, (identity, learns, value) in after.items():
        assert (identity, learns) == before[name][:2], name
        assert value.is_meta == before[name][2].is_meta, name
        assert value.is_meta or torch.equal(value, before[name][2]), name
    assert has_asr(model) or not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize(('name', 'change', 'sites'), [
    ('coat_lite_tiny', None, True), ('resnet18', lambda m: m.layer1.set_submodule('1', m.layer1[0]), True),
    ('resnet18', lambda m: setattr(m.layer2[1], 'bn1', m.layer2[1].bn2), True), ('seresnet33ts', None, True),
    ('test_convnext', lambda m: setattr(m, 'head', m.stem), False),
    ('test_convnext', lambda m: setattr(m.stages[1], 'blocks', m.stages[0].blocks), False)])
def test_looking_for_sites_changes_nothing(name, change, sites):
    model = timm.create_model(name, num_classes=3)
    if change:
        change(model)
    before = state(model)
    modes = [m.training for m in model.modules()]
    if sites:
        assert known_sites(model)
    else:
        with pytest.raises(ValueError, match='could not be followed'):
            attach_asr(model)
    unchanged(model, before)
    assert modes == [m.training for m in model.modules()]


def run_threads(call, count=4, times=3):
    """What ``call(i)`` gives in several threads at once."""
    barrier = threading.Barrier(count)

    def work(i):
        barrier.wait()
        return [call(i) for _ in range(times)]

    with ThreadPoolExecutor(count) as pool:
        return [answer for found in pool.map(work, range(count)) for answer in found]


def threaded_model(name):
    if '_asr_' in name or '+' in name:
        return randomize(small(name))
    kwargs = {'layers': (1, 1, 1, 1)} if name.startswith('fastvit') else {}
    return randomize(create_model(name, asr='se', num_classes=5, **kwargs)).double()


@pytest.mark.parametrize('name', [
    *THREADED, *[name for name in kinds() + KEYWORD_KINDS if '_asr_' in name or '+' in name][::4]])
def test_threads_do_not_disturb_each_other(name):
    model = threaded_model(name).eval()
    x = images(model, 2)
    before, expected = state(model), model(x)
    with torch.no_grad():
        answers = run_threads(lambda _: model(x))
    assert all(torch.equal(expected, answer) for answer in answers)
    unchanged(model, before)


@pytest.mark.parametrize('name', THREADED)
def test_threads_train_with_the_gradients_of_one(name):
    model = threaded_model(name).eval()  # the statistics of a norm are one for all threads
    parameters = dict(model.named_parameters())
    x = images(model, 2)

    def gradients(_):
        return torch.autograd.grad(model(x).square().sum(), list(parameters.values()))

    expected = gradients(0)
    for answer in run_threads(gradients, times=2):
        for key, a, b in zip(parameters, expected, answer, strict=True):
            assert relative_error(a, b) < 1e-9, key


def test_hooks_pruning_and_weight_norm_are_left_out_of_known_blocks_too():
    changes = {
        'layer1.0.bn2': lambda m: m.register_forward_hook(lambda *_: None),
        'layer2.0.bn2': lambda m: prune.l1_unstructured(m, 'weight', 0.5)}
    model = timm.create_model('resnet18')
    for name, change in changes.items():
        change(model.get_submodule(name))
    assert not set(changes) & set(known_sites(model))
    assert len(known_sites(model)) == 6
    for name in changes:
        with pytest.raises(ValueError, match=f"site '{name}': it has hooks"):
            attach_asr(model, sites=[name])
    model = timm.create_model('vit_tiny_patch16_224', depth=2)
    weight_norm(model.blocks[0].mlp.fc2)
    parametrizations.weight_norm(model.blocks[1].mlp.fc2)
    assert known_sites(model) == ['blocks.0.attn.proj', 'blocks.1.attn.proj']
    model = timm.create_model('repvgg_a0')
    model.stages[0][0].conv_kxk.bn.register_forward_pre_hook(lambda *_: None)
    assert 'stages.0.0' not in known_sites(model)


def test_a_scripted_model_is_refused():
    model = torch.jit.script(timm.create_model('resnet18'))
    for verb in (attach_asr, fold_asr):
        with pytest.raises(TypeError, match='A scripted model cannot be changed'):
            verb(model)


def test_tied_storage_is_refused_by_attach_and_fold():
    for tie in (lambda weight: weight, lambda weight: nn.Parameter(weight.data)):
        model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
        model[2].weight = tie(model[0].weight)
        with pytest.raises(ValueError, match="the site '0': it shares its parameters with '2', which would be scaled"):
            attach_asr(model, sites=['0'])
        assert not has_asr(model)
    attach_asr(other := nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8)), sites=['0'])
    other[2].weight = nn.Parameter(other[0].layer.weight.data)
    before = state(other)
    with pytest.raises(ValueError, match="ASR of the site '0' cannot be folded: it shares its parameters with '2'"):
        fold_asr(other)
    unchanged(other, before)
    flat = torch.randn(16)  # parts of one storage that do not overlap, as FSDP keeps them
    model = nn.Sequential(nn.BatchNorm2d(8), nn.BatchNorm2d(8))
    model[0].weight, model[1].weight = nn.Parameter(flat[:8]), nn.Parameter(flat[8:])
    assert not has_asr(fold_asr(attach_asr(model, sites=['0', '1'])))


@pytest.mark.parametrize(('kwargs', 'sentence'), [
    ({'gate': 'se', 'init': 'N_1e6'}, 'makes channel weights that are zero or not finite'),
    ({'gate': 'scale', 'init': 0, 'preserve': True}, 'zero or so small that dividing by it gives infinite parameters'),
    ({'gate': 'scale', 'init': 1e-40, 'preserve': True}, 'dividing by it gives infinite parameters'),
    ({'gate': 'se', 'rd_ratio': 0}, 'rd_ratio is 0'), ({'gate': 'se', 'rd_ratio': -0.5}, 'rd_ratio is -0.5'),
    ({'sites': []}, 'sites is empty')])
def test_what_would_break_a_model_is_refused(kwargs, sentence):
    model = timm.create_model('resnet18')
    before = state(model)
    with pytest.raises(ValueError, match=sentence):
        attach_asr(model, **kwargs)
    unchanged(model, before)


def one_step(model):
    model.train()(torch.randn(2, 3, 32, 32))
    return model.eval()


@pytest.mark.parametrize(('change', 'preserves', 'classes'), [
    (lambda model: model, False, 3), (lambda model: model, False, 1), (one_step, True, 3), (randomize, True, 3)])
def test_preserving_is_the_default_where_the_model_is_not_fresh(change, preserves, classes):
    model = change(create_model('resnet18', num_classes=classes, last_norm_init=0.5).eval())
    x = torch.randn(2, 3, 32, 32)
    expected = model(x)
    assert (relative_error(expected, attach_asr(clone(model))(x)) < 1e-4) == preserves
    assert relative_error(expected, attach_asr(clone(model), preserve=True)(x)) < 1e-4
    assert relative_error(expected, attach_asr(clone(model), preserve=False)(x)) > 1e-3


def test_a_trained_model_with_a_new_norm_is_preserved():
    model = randomize(timm.create_model('test_vit', num_classes=3, img_size=32)).eval()
    model.head = nn.Sequential(nn.BatchNorm1d(model.num_features, affine=False), model.head).eval()
    expected = model(x := torch.randn(2, 3, 32, 32))
    assert relative_error(expected, attach_asr(model)(x)) < 1e-4
