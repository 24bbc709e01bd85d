"""--decay-all and --site-lr: what is decayed, and how fast the layers that ASR scales learn."""

import argparse

import pytest
import timm
import torch
from helpers import asr_layers, images, randomize, relative_error, small

from timm_asr import fold_asr
from timm_asr.asr.sites import known_sites
from timm_asr.engine.build import make_optimizer
from timm_asr.errors import BadInput


def optimizer(model, **changes):
    options = {'opt': 'sgd', 'lr': 0.1, 'weight_decay': 0.0, 'momentum': 0.9, 'decay_all': False, 'psi_lr': None,
               'site_lr': None, 'layer_decay': None, 'sched': 'cosine', 'opt_kwargs': {'nesterov': False}}
    return make_optimizer(model, argparse.Namespace(**options | changes))


def test_every_parameter_is_decayed():
    model = timm.create_model('vit_tiny_patch16_224', img_size=32)
    decayed = [p for group in optimizer(model, weight_decay=0.1, decay_all=True).param_groups if group['weight_decay']
               for p in group['params']]
    assert len(decayed) == len(list(model.parameters()))
    assert any(group['weight_decay'] == 0 for group in optimizer(model, weight_decay=0.1).param_groups)


@pytest.mark.parametrize('decay_all', [False, True])
def test_sites_learn_at_their_own_rate(decay_all):
    for name in ('resnet20', 'resnet20_asr_se', 'vit_tiny_asr_se'):
        model = small(name)
        layers = [layer.layer for layer in asr_layers(model)] or [
            model.get_submodule(site) for site in known_sites(model)]
        expected = {id(p) for layer in layers for p in layer.parameters()}
        found = optimizer(model, weight_decay=0.1, site_lr=0.25, decay_all=decay_all)
        scaled = {id(p) for group in found.param_groups if group.get('lr_scale') == 0.25 for p in group['params']}
        assert scaled == expected
        free = {id(p) for group in found.param_groups if not group['weight_decay'] for p in group['params']}
        named = getattr(model, 'no_weight_decay', set)()
        assert free == (set() if decay_all else {
            id(p) for key, p in model.named_parameters() if p.ndim < 2 or key in named})
        assert sum(len(group['params']) for group in found.param_groups) == len(list(model.parameters()))
    with pytest.raises(BadInput, match='layer-decay'):
        optimizer(model, site_lr=0.25, layer_decay=0.9)
    with pytest.raises(BadInput, match='--sched none'):
        optimizer(model, site_lr=0.25, sched='none')


def test_psi_learns_at_its_own_rate():
    model = small('resnet20_asr_se')
    found = optimizer(model, psi_lr=10.0, site_lr=0.25)
    rates = {id(p): group.get('lr_scale', 1) for group in found.param_groups for p in group['params']}
    for name, parameter in model.named_parameters():
        assert rates[id(parameter)] == (10 if name.endswith('psi') else 0.25 if '.layer.' in name else 1), name


def train(model, batches, **options):
    found = optimizer(model, **options)
    for group in found.param_groups:  # as timm's schedules do
        group['lr'] *= group.get('lr_scale', 1)
    for image, label in batches:
        found.zero_grad()
        torch.nn.functional.cross_entropy(model(image), label).backward()
        found.step()
    return model


def test_constant_asr_is_a_plain_network_whose_norms_start_at_v_and_learn_v_squared_times_as_fast():
    """SGD with momentum, no decay: w' = v w, so that the gradient of w is v times that of w', and its step v^2."""
    v = 0.4
    model = randomize(small('resnet20', asr='scale', asr_init=v, asr_constant=True))
    for layer in asr_layers(model):
        torch.nn.init.constant_(layer.vectors[0].psi, v)  # which is random now, as all else
    plain = small('resnet20')
    plain.load_state_dict({key.replace('.layer.', '.'): value for key, value in model.state_dict().items()
                           if '.vectors.' not in key})
    with torch.no_grad():
        for site in known_sites(plain):
            for parameter in plain.get_submodule(site).parameters():
                parameter.mul_(v)
    assert relative_error(plain.train()(x := images(plain, 4)), model.train()(x)) < 1e-12
    batches = [(images(model, 4), torch.randint(5, (4,))) for _ in range(6)]
    train(model, batches)
    train(plain, batches, site_lr=v ** 2)
    folded = fold_asr(model).state_dict()
    for key, value in plain.state_dict().items():
        torch.testing.assert_close(value, folded[key], rtol=1e-10, atol=1e-12, msg=key)
