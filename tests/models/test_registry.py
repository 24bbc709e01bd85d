"""Every registered name, from its own entrypoint."""

import pickle

import pytest
import timm
import torch
from helpers import KEYWORD_KINDS, images, kinds, names_of_one_depth, randomize, relative_error, small, zoo_names
from timm.data import resolve_model_data_config
from timm.models import is_model, list_models, model_entrypoint
from timm.optim import param_groups_weight_decay

import timm_asr
from timm_asr import attach_asr, fold_asr
from timm_asr.asr.sites import known_sites
from timm_asr.models.registry import Backbone, list_variants, register_backbones, variant_of

NAMES = zoo_names()
#: Shrunk, names that differ in depth alone are one network.
ONCE = {*names_of_one_depth(), *KEYWORD_KINDS}
#: Backbones, whether their plain network is registered here, and the ends that every one of their names may have.
FOLDABLE = ('se', 'ie', 'srm', 'eca', 'spa')
PAPER = [end for g in FOLDABLE for end in (f'_{g}', f'_asr_{g}', f'_{g}_asr_{g}')]
MORE = ['_cbam', '_sge', '_spe', '_ras', '_ras_se', '_asr_spe', '_dia_se', '_dia_lstm', '_dia_lstm_light']
PROMISED = {
    **dict.fromkeys([f'resnet{d}' for d in (20, 32, 44, 56, 110, 83, 164, 245, 326, 407)], (True, PAPER + MORE)),
    **dict.fromkeys(['wrn52_4', 'resnext101_8x32d'], (True, PAPER + MORE)),
    **dict.fromkeys([f'resnet{d}' for d in (18, 34, 50, 101, 152)], (False, PAPER + MORE)),
    **dict.fromkeys(['vit_tiny', 'vit_small', 'vit_base', 'vit_base_384'], (False, [f'_asr_{g}' for g in FOLDABLE])),
    **dict.fromkeys(['repvgg_a0', 'repvgg_b3', 'mobilenetv1_100'], (False, PAPER)),
    **dict.fromkeys(['repvgg_a0_cifar', 'repvgg_b3_cifar', 'resnet56_acnet', 'resnet110_acnet', 'vgg19_cifar',
                     'mobilenetv1_100_cifar', 'shufflenetv2_100', 'shufflenetv2_100_cifar'], (True, PAPER))}


def test_the_zoo_has_every_promised_name():
    assert {variant.backbone.name for variant in list_variants()} >= PROMISED.keys()
    assert not {f'{name}{end}' for name, (_, ends) in PROMISED.items() for end in ends} - set(NAMES)
    assert {name for name in PROMISED if name in NAMES} == {name for name, (ours, _) in PROMISED.items() if ours}
    for name in PROMISED:
        stock = {'vit_base_384': 'vit_base_patch16_384'}.get(name, f'{name}_patch16_224' if 'vit' in name else name)
        assert timm_asr.plain_architecture(f'{name}_asr_se') == stock
        assert is_model(stock)


def test_names_of_a_network_have_the_same_images():
    """Or a comparison by name would measure the crop too."""
    for variant in list_variants():
        if variant.backbone.stock:
            model, stock = (timm.create_model(name, device='meta') for name in (variant.name, variant.backbone.stock))
            for test in (False, True):
                assert resolve_model_data_config(model, use_test_size=test) == resolve_model_data_config(
                    stock, use_test_size=test), variant.name


def test_timm_finds_them():
    assert 'resnet50_asr_se' in list_models('*asr*')
    assert is_model('vit_small_asr_eca')
    assert 'resnet164' in list_models(module='asr_cifar')
    assert not set(NAMES) & set(list_models(module='resnet'))
    assert model_entrypoint('resnet164_se_asr_se').__doc__
    pickle.loads(pickle.dumps(model_entrypoint('resnet164_asr_se')))


def test_a_name_is_known_by_its_parts():
    variant = variant_of('resnet50_se_asr_se.some_tag')
    assert (variant.backbone.name, variant.gate, variant.asr, variant.dia) == ('resnet50', 'se', 'se', '')
    assert (variant.without('asr'), variant.without('gate')) == ('resnet50_se', 'resnet50_asr_se')
    assert variant.without('asr', 'gate') == 'resnet50'
    assert variant_of('resnet83_dia_lstm_light').dia == 'lstm_light'
    assert variant_of('resnet83_ras_se').gate == 'ras_se'
    assert variant_of('vit_base_384_asr_se').without('asr') == 'vit_base_patch16_384'
    assert variant_of('resnet50') is None
    assert {name: variant_of(name).name for name in NAMES} == {name: name for name in NAMES}


@pytest.mark.parametrize('name', NAMES + KEYWORD_KINDS)
def test_registered_model(name):
    """Every parameter gets a finite gradient, psi no weight decay, and the configuration names what is there."""
    model = small(name, **({} if name in ONCE else {'device': 'meta'})).train()
    if name in ONCE:
        output = model(images(model, 3))
        assert output.shape == (3, 5)
        (output.square().sum() + timm_asr.auxiliary_loss(model)).backward()
        assert not [key for key, p in model.named_parameters() if p.grad is None or not torch.isfinite(p.grad).all()]

    groups = param_groups_weight_decay(model, weight_decay=0.1)
    decayed = {id(p) for g in groups if g['weight_decay'] for p in g['params']}
    psi = [p for key, p in model.named_parameters() if key.endswith('.psi')]
    assert not decayed & {id(p) for p in psi}
    name, _, keyword = name.partition('+')
    assert bool(psi) == bool('_asr_' in name or keyword)

    cfg = model.default_cfg
    assert resolve_model_data_config(model)['mean'] == cfg['mean']
    assert cfg['architecture'] == name
    first = cfg['first_conv'] if isinstance(cfg['first_conv'], tuple) else (cfg['first_conv'],)
    if not keyword:  # a keyword may put ASR around the stem, which the configuration of a name cannot foresee
        assert {f'{key}.weight' for key in first} <= set(model.state_dict())
    assert f'{cfg["classifier"]}.weight' in model.state_dict()
    assert is_model(timm_asr.plain_architecture(name))


def test_an_unknown_keyword_is_refused():
    for name in kinds():
        with pytest.raises(TypeError):
            small(name, device='meta', no_such_argument=1)


@pytest.mark.parametrize(('kwargs', 'check'), [
    ({'asr_init': 0.5}, lambda m: (m.layer1[0].bn2.vectors[0].psi == 0.5).all()),
    ({'rd_ratio': 0.5}, lambda m: m.layer1[0].bn2.vectors[0].gate.fc1.out_channels == 8),
    ({'drop_path_rate': 0.2}, lambda m: m.layer3[0].drop_path.drop_prob > 0),
    ({'drop_rate': 0.2}, lambda m: m.drop_rate == 0.2)])
def test_keywords(kwargs, check):
    assert check(timm.create_model('resnet20_asr_se', **kwargs))


@pytest.mark.parametrize(('name', 'kwargs', 'sentence'), [
    ('resnet20_se', {'asr_depth': 2}, 'asr_depth is for models with ASR'),
    ('resnet20_se', {'asr_constant': True}, 'asr_constant is for models with ASR'),
    ('resnet20', {'rd_ratio': 0.5}, 'rd_ratio is for models with a gate or with ASR'),
    ('resnet20_asr_eca', {'rd_ratio': 0.5}, "'eca' has no hidden layer"),
    ('resnet18_asr_se', {'norm_layer': 'iebn'}, 'a model has asr or iebn'),
    *(('resnet20', {'no_norm': True, **more}, 'no_norm removes the norms that asr and last_norm_init scale')
      for more in ({'last_norm_init': 0.5}, {'asr': 'se'}))])
def test_keywords_without_meaning_are_refused(name, kwargs, sentence):
    with pytest.raises(TypeError, match=sentence):
        timm.create_model(name, **kwargs)


def test_a_plain_name_takes_asr_by_keyword():
    models = [timm.create_model(name, asr_depth=2, **asr)
              for name, asr in (('resnet20', {'asr': 'ie'}), ('resnet20_asr_ie', {}))]
    assert list(models[0].state_dict()) == list(models[1].state_dict())


def test_a_taken_name_is_not_overwritten():
    with pytest.raises(RuntimeError, match="'resnet164' is registered already"):
        register_backbones('timm_asr.models.asr_cifar', Backbone('resnet164', '', torch.nn.Module, {}))


@pytest.mark.parametrize('name', [name for name in kinds() if name.endswith('_asr_se') and '_se_' not in name])
def test_hooks_and_shared_modules(name):
    """A layer with a hook is no site; a block that stands in two places gets one vector, and folds."""
    model = fold_asr(small(name)).eval()
    sites = known_sites(model)
    hook = model.get_submodule(sites[0]).register_forward_hook(lambda *_: None)
    left = known_sites(model)
    assert sites[0] not in left
    assert 0 < len(sites) - len(left) <= 2  # a transformer's block has two
    hook.remove()
    assert known_sites(model) == sites

    blocks = list(dict.fromkeys(site if model.get_submodule(site)._modules else site.rpartition('.')[0].removesuffix(
        '.attn').removesuffix('.mlp').removesuffix('.branch2') for site in sites))
    kind = {block: [(k, t.shape) for k, t in model.get_submodule(block).state_dict().items()] for block in blocks}
    pair = next(((a, b) for a in blocks for b in blocks if a != b and kind[a] == kind[b]), None)
    if pair:
        model.set_submodule(pair[1], model.get_submodule(pair[0]))
    before = {key: (id(t), t.clone()) for key, t in model.named_parameters(remove_duplicate=False)}
    shared = known_sites(model)
    after = dict(model.named_parameters(remove_duplicate=False))
    assert all(id(after[key]) == identity and torch.equal(after[key], t) for key, (identity, t) in before.items())
    assert len({model.get_submodule(site) for site in shared}) < len(sites) or not pair
    randomize(attach_asr(model, 'ie', depth=2))
    x = images(model)
    expected = model(x)
    assert relative_error(expected, fold_asr(model)(x)) < 1e-12


def test_random_states_are_random():
    """The helper that other tests rely on leaves no parameter or statistic at its initial value."""
    initial, moved = small('resnet20_srm_asr_srm'), randomize(small('resnet20_srm_asr_srm'))
    for (key, a), b in zip(initial.state_dict().items(), moved.state_dict().values(), strict=True):
        assert key.endswith('num_batches_tracked') or (a != b).all(), key
