"""The initial weight of the last norms: on every residual model, with and without ASR, in train.py too."""

import pytest
import timm
import torch
import yaml
from helpers import asr_layers
from train_helpers import make_images, run

import timm_asr
from timm_asr.asr.sites import known_sites
from timm_asr.asr.wrapper import ASR


def start_of(model, name):
    """The one weight that a norm starts with in all channels."""
    layer = model.get_submodule(name)
    weight = (layer.layer if isinstance(layer, ASR) else layer).weight
    assert weight.unique().numel() == 1
    return weight[0].item()


@pytest.mark.parametrize('value', [0.27, 0])
@pytest.mark.parametrize('name', [
    'resnet20_asr_se', 'resnet83_se', 'resnet18_asr_se', 'wrn52_4_dia_lstm', 'mobilenetv1_100_cifar',
    'shufflenetv2_100_cifar_asr_ie', 'vgg19_cifar'])
def test_our_models_by_keyword(name, value):
    torch.manual_seed(1)
    plain = timm.create_model(name)
    torch.manual_seed(1)
    model = timm.create_model(name, last_norm_init=value)
    sites = known_sites(plain)
    assert sites
    assert {start_of(model, site) for site in sites} == {torch.tensor(value, dtype=torch.float32).item()}
    for key, tensor in plain.state_dict().items():
        if not key.startswith(tuple(f'{site}.' for site in sites)):
            assert torch.equal(tensor, model.state_dict()[key]), key


@pytest.mark.parametrize('name', ['resnet18', 'regnetx_002', 'test_efficientnet', 'resnet20_se'])
@pytest.mark.parametrize('asr', [None, 'se'])
def test_any_model_by_one_call(name, asr):
    model = timm_asr.create_model(name, asr=asr, last_norm_init=0.5)
    layers = known_sites(model)
    assert len(layers) >= 2
    assert {start_of(model, site) for site in layers} == {0.5}
    assert len(asr_layers(model)) == (len(layers) if asr else 0)
    # zero_init_last is the same by another name
    zero = timm_asr.create_model(name, asr=asr, last_norm_init=0)
    assert {start_of(zero, site) for site in layers} == {0}


def test_sites_that_are_named():
    model = timm_asr.create_model('resnet18', asr='se', asr_sites='layer4.*.bn1', last_norm_init=0.5)
    assert {start_of(model, f'layer4.{n}.bn1') for n in (0, 1)} == {0.5}
    assert start_of(model, 'layer1.0.bn2') == 0  # timm's own


@pytest.mark.parametrize('name', ['repvgg_a0_cifar', 'mobileone_s0'])
def test_parallel_branches_start_alike(name):
    model = timm_asr.create_model(name, last_norm_init=0.5)
    for site in known_sites(model):
        norms = [m for m in model.get_submodule(site).modules() if isinstance(m, torch.nn.BatchNorm2d)]
        assert len(norms) >= 2
        assert all(torch.all(norm.weight == 0.5) for norm in norms)


def test_a_sum_of_three_branches_starts_at_the_value():
    """So that it is ASR with a constant v."""
    torch.manual_seed(1)
    plain = timm.create_model('resnet56_acnet').double()
    torch.manual_seed(1)
    half = timm_asr.create_model('resnet56_acnet', last_norm_init=0.5).double()
    x = torch.randn(2, 16, 8, 8, dtype=torch.float64)
    block, scaled = (model.layer1[0].conv2.train() for model in (plain, half))
    torch.testing.assert_close(scaled(x), block(x) / 2, rtol=1e-6, atol=0)  # 0.5 / 3 was rounded to float32
    torch.testing.assert_close(half.layer1[0].conv1(x), plain.layer1[0].conv1(x))


@pytest.mark.parametrize(('name', 'kwargs', 'error', 'sentence'), [
    ('vit_tiny_patch16_224', {}, TypeError, "the site 'blocks.0.attn.proj' of this VisionTransformer ends in a Linear"),
    ('wrn52_4', {}, TypeError, "'layer1.0.conv2' .* ends in a Conv2d, which is none"),
    ('caformer_s18', {}, TypeError, 'ends in a'),
    ('resnet20', {'pretrained': True}, TypeError, 'loaded weights bring their own'),
    ('resnet20', {'last_norm_init': float('nan')}, ValueError, 'last_norm_init is nan; it takes a finite number')])
def test_what_is_refused(name, kwargs, error, sentence):
    with pytest.raises(error, match=sentence):
        timm_asr.create_model(name, **{'last_norm_init': 0.5, **kwargs})


def test_it_stays_out_of_what_is_exported(tmp_path):
    model = timm.create_model('resnet20_asr_se', last_norm_init=0.5).eval()
    folder = timm_asr.save_fused(model, tmp_path / 'fused', keep_trainable=True)
    assert 'last_norm_init' not in (folder / 'config.json').read_text()
    timm_asr.load_trainable(folder)


def test_train_and_resume(tmp_path):
    images = make_images(tmp_path / 'images')
    words = ['--model', 'resnet20', '--num-classes', 3, '--img-size', 16, '-b', 6, '--workers', 0, '--no-progress',
             '--data-dir', images, '--no-fuse', '--output', tmp_path]
    assert run([*words, '--last-norm-init', 0.5, '--lr', 1e-30, '--warmup-epochs', 0, '--epochs', 1,
                '--experiment', 'first'], tmp_path / 'log').code == 0
    last = tmp_path / 'first' / 'last.pth.tar'
    content = torch.load(last, weights_only=True)
    assert torch.all(content['state_dict']['layer1.0.bn2.weight'] == 0.5)
    assert torch.all(content['state_dict']['layer1.0.bn1.weight'] == 1)
    assert yaml.safe_load((tmp_path / 'first' / 'args.yaml').read_text())['last_norm_init'] == 0.5
    result = run([*words, '--resume', last, '--epochs', 2, '--experiment', 'second'], tmp_path / 'log')
    assert result.code == 0, result.text
    for more, sentence in ((['--model', 'wrn52_4'], 'last_norm_init sets the weight of norms'),
                           (['--initial-checkpoint', last], '--initial-checkpoint brings its own weights')):
        result = run([*words, *more, '--last-norm-init', 0.5, '--epochs', 1], tmp_path / 'log')
        assert result.code == 2
        assert sentence in result.text
