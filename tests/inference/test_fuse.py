"""What fusing promises: the stock network, the same function, twice the same, and no silent damage."""

import json
import re
import subprocess
import sys

import pytest
import timm
import torch
from helpers import KEYWORD_KINDS, asr_layers, clone, images, kinds, randomize, relative_error, small
from timm.utils import reparameterize_model
from torch import nn

from timm_asr import attach_asr, fold_asr, has_asr, plain_architecture, reparameterize
from timm_asr.asr.wrapper import ASR

ASR_KINDS = [name for name in kinds() if '_asr_' in name] + KEYWORD_KINDS
# Full depth, every kind, up to the deepest.
FULL = [
    'resnet20_asr_se', 'resnet110_asr_ie', 'resnet83_spa_asr_spa', 'resnet164_asr_srm', 'resnet18_asr_eca',
    'resnet50_se_asr_se', 'vit_tiny_asr_spa', 'repvgg_a0_asr_se', 'resnet110_acnet_asr_ie', 'mobilenetv1_100_asr_srm',
    'shufflenetv2_100_asr_spa', 'vgg19_cifar_se_asr_se',
]
DEEPEST = ['resnet407_asr_se', 'resnet152_asr_ie', 'vit_base_asr_eca']


def plain_like(model, name):
    """The plain architecture with the same shrunk arguments, made by the registry."""
    args = {k: v for k, v in model._model_args.items() if not k.startswith('asr')}
    return timm.create_model(plain_architecture(name.partition('+')[0]), **args, device='meta')


@pytest.mark.parametrize('name', ASR_KINDS)
def test_folding_leaves_the_stock_network_and_the_function(name):
    model = randomize(small(name)).eval()
    x = images(model)
    with torch.no_grad():
        expected = model(x)
        alone = fold_asr(clone(model))
        assert relative_error(expected, alone(x)) < 1e-12
        assert fold_asr(alone) is alone
        assert relative_error(expected, alone(x)) < 1e-12

    plain = plain_like(model, name)
    theirs = {k: v.shape for k, v in plain.state_dict().items()}
    assert {k: v.shape for k, v in alone.state_dict().items()} == theirs
    classes = [(key, type(m)) for key, m in plain.named_modules() if key]
    assert [(key, type(m)) for key, m in alone.named_modules() if key] == classes
    assert all(p.requires_grad for p in alone.parameters())

    single = model.float()
    assert relative_error(single(x.float()), fold_asr(clone(single))(x.float())) < 1e-5


@pytest.mark.parametrize('name', kinds() + KEYWORD_KINDS)
def test_inference_form_keeps_the_function(name):
    model = randomize(small(name)).eval()
    x = images(model)
    with torch.no_grad():
        expected = model(x)
        timms = reparameterize_model(model)  # on a copy
        assert relative_error(expected, model(x)) == 0
        assert not has_asr(timms)
        assert relative_error(expected, timms(x)) < 1e-12
        ours = clone(model)
        assert ours.reparameterize() is ours
        assert not has_asr(ours)
        assert relative_error(expected, ours(x)) < 1e-12
        ours.reparameterize()
        assert relative_error(expected, ours(x)) < 1e-12
        ours.reparameterize(fold_bn=True)
        assert relative_error(expected, ours(x)) < 1e-12
        ours.reparameterize(fold_bn=True)
        assert relative_error(expected, ours(x)) < 1e-12


@pytest.mark.slow
@pytest.mark.parametrize('name', FULL + DEEPEST)
def test_full_depth(name):
    model = randomize(timm.create_model(name, num_classes=7)).eval()
    x = images(model, 1)
    with torch.no_grad():
        single = model(x)
        bound = 1e-4 if len(asr_layers(model)) > 66 else 1e-5  # beyond 200 layers
        assert relative_error(single, fold_asr(clone(model))(x)) < bound
        assert relative_error(single, clone(model).reparameterize(fold_bn=True)(x)) < bound
        if name not in DEEPEST:
            double = model.double()
            assert relative_error(double(x.double()), clone(double).reparameterize(fold_bn=True)(x.double())) < 1e-12


def test_on_plain_networks_both_verbs_do_the_same():
    for name in ('resnet18_asr_se', 'resnet20_asr_srm', 'vit_tiny_asr_eca'):
        model = randomize(small(name)).eval()
        folded, final = fold_asr(clone(model)), clone(model).reparameterize()
        for (key, a), (other, b) in zip(folded.state_dict().items(), final.state_dict().items(), strict=True):
            assert key == other
            assert torch.equal(a, b)


def test_fold_bn_leaves_no_norm_after_a_convolution():
    model = randomize(small('resnet20_asr_se')).eval().reparameterize(fold_bn=True)
    assert not [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert model.layer1[0].conv1.bias is not None


@pytest.mark.parametrize('name', ['mobilenetv3_small_050', 'repvgg_a0', 'test_convnext', 'test_efficientnet'])
def test_fold_bn_on_other_timm_models(name):
    model = randomize(timm.create_model(name, num_classes=3, dtype=torch.float64)).eval()
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        expected = model(x)
        assert relative_error(expected, reparameterize(model, fold_bn=True)(x)) < 1e-12


@pytest.mark.parametrize('name', ['levit_128s', 'tiny_vit_5m_224', 'resnet20_ras_se', 'resnet83_dia_lstm'])
def test_the_inference_form_keeps_the_dtype(name):
    model = randomize(timm.create_model(name, num_classes=3)).eval()
    size = model.default_cfg['input_size'][-1]
    x = torch.randn(1, 3, size, size)
    for dtype, bound in ((torch.float64, 1e-12), (torch.bfloat16, 0.1)):
        form = reparameterize(clone(model).to(dtype), fold_bn=True)
        assert {t.dtype for t in form.state_dict().values() if t.is_floating_point()} == {dtype}
        with torch.no_grad():
            assert relative_error(clone(model).to(dtype)(x.to(dtype)), form(x.to(dtype))) < bound
    assert torch.get_default_dtype() == torch.float32


def test_in_training_mode_fold_bn_is_refused_and_nothing_changes():
    model = small('resnet20_asr_se').train()
    keys = list(model.state_dict())
    with pytest.raises(ValueError, match=r"fold_bn=True would change.*BatchNorm 'bn1' is in training mode.*eval\(\)"):
        model.reparameterize(fold_bn=True)
    assert list(model.state_dict()) == keys


def test_in_training_mode_merging_branches_is_refused():
    model = timm.create_model('repvgg_a0', num_classes=3).train()
    with pytest.raises(ValueError, match=r'Merging the branches of RepVggBlock in training mode.*model.eval\(\)'):
        reparameterize(model)


def test_folding_in_training_mode_keeps_gradients_of_the_rest():
    model = randomize(small('resnet20_asr_se')).train()
    x = images(model)
    folded = fold_asr(clone(model))
    assert folded.training
    assert relative_error(model(x), folded(x)) < 1e-12
    folded(x).sum().backward()
    assert all(p.grad is not None for p in folded.parameters())


class Detector(nn.Module):
    """A network of ours inside something that is not."""

    def __init__(self, body):
        super().__init__()
        self.stages = nn.ModuleDict({'body': body})
        self.head = nn.Conv2d(8, 8, 1)

    def forward(self, x):
        return [self.head(f[:, :8]) for f in self.stages['body'](x)]


@pytest.mark.parametrize('name', ['resnet18_asr_se', 'resnet20_se_asr_se', 'vit_tiny_asr_eca'])
def test_a_network_inside_another(name):
    more = {'out_indices': 2} if name.startswith('vit') else {}
    model = randomize(Detector(small(name, features_only=True, **more)).double()).eval()
    size = 16 if name.startswith('resnet20') else 32 if name.startswith('vit') else 64
    x = torch.randn(1, 3, size, size, dtype=torch.float64)
    expected = model(x)
    keys = list(model.stages['body'].state_dict())
    assert any('psi' in k for k in keys)
    reparameterize(model, fold_bn=True)
    assert not has_asr(model)
    assert all(relative_error(a, b) < 1e-12 for a, b in zip(expected, model(x), strict=True))


def test_inside_data_parallel_and_compiled_wrappers():
    model = randomize(small('resnet20_asr_se')).eval()
    x = images(model)
    expected = model(x)
    for wrap in (nn.DataParallel, torch.compile):
        kwargs = {'backend': 'eager'} if wrap is torch.compile else {}
        wrapped = wrap(clone(model), **kwargs)
        assert relative_error(expected, wrapped(x)) < 1e-12
        assert reparameterize(wrapped, fold_bn=True) is wrapped
        assert not has_asr(wrapped)
        assert relative_error(expected, wrapped(x)) < 1e-12


def test_repvgg_is_folded_before_its_branches_are_merged():
    model = randomize(timm.create_model('repvgg_a0', num_classes=3, dtype=torch.float64)).eval()
    attach_asr(model, 'se', sites=['stages.*.*.conv_kxk.bn', 'stages.*.*.conv_1x1.bn'])
    x = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    expected = model(x)
    assert relative_error(expected, reparameterize(clone(model))(x)) < 1e-12
    stock = set(timm.create_model('repvgg_a0', num_classes=3, device='meta').state_dict())
    assert set(fold_asr(model).state_dict()) == stock


def test_a_fused_checkpoint_does_not_fit_a_trainable_model():
    trainable, fused = small('resnet18_asr_se'), fold_asr(small('resnet18_asr_se'))
    for strict in (True, False):
        with pytest.raises(RuntimeError, match=r"folded or plain checkpoint \('layer1.0.bn2.weight'\) and the model"):
            trainable.load_state_dict(fused.state_dict(), strict=strict)
        with pytest.raises(RuntimeError, match=r'trainable checkpoint with ASR vectors'):
            fused.load_state_dict(trainable.state_dict(), strict=strict)
    wrapped = nn.DataParallel(small('vit_tiny_asr_se'))
    state = {f'module.{k}': v for k, v in fold_asr(small('vit_tiny_asr_se')).state_dict().items()}
    with pytest.raises(RuntimeError, match='folded or plain checkpoint'):
        wrapped.load_state_dict(state)
    with pytest.raises(RuntimeError, match='with ASR vectors') as error:
        fused.load_state_dict(trainable.state_dict())
    assert len(re.findall('with ASR vectors', str(error.value))) == 1  # once, not for every layer


def test_checkpoints_of_the_same_kind_load():
    model, other = randomize(small('resnet18_asr_se')), small('resnet18_asr_se')
    other.load_state_dict(model.state_dict())
    fold_asr(other).load_state_dict(fold_asr(model).state_dict())
    partial = {k: v for k, v in model.state_dict().items() if k.startswith('fc')}
    small('resnet18_asr_se').load_state_dict(partial, strict=False)


FRESH = """
import json, sys, torch, timm
report = {}
for name, plain, args in json.loads(sys.argv[1]):
    x, logits, state = torch.load(f'{sys.argv[2]}/{name}.pt', weights_only=True)
    model = timm.create_model(plain, **args)
    model.load_state_dict(state, strict=True)
    with torch.no_grad():
        y = model.eval()(x)
    report[name] = ((y - logits).abs().max() / logits.abs().max()).item()
assert 'timm_asr' not in sys.modules
print(json.dumps(report))
"""


@pytest.mark.slow
def test_stock_timm_in_a_fresh_process_gives_the_same_logits(tmp_path):
    jobs = []
    for name in ('resnet18_asr_se', 'resnet34_asr_spa', 'resnet50_asr_srm', 'vit_tiny_asr_se', 'vit_small_asr_eca',
                 'repvgg_a0_asr_se', 'mobilenetv1_100_asr_srm'):
        model = randomize(timm.create_model(name, num_classes=11)).eval()
        x = images(model, 1)
        with torch.no_grad():
            logits = model(x)
        torch.save((x, logits, fold_asr(model).state_dict()), tmp_path / f'{name}.pt')
        jobs.append((name, plain_architecture(name), {'num_classes': 11}))
    out = subprocess.run(
        [sys.executable, '-c', FRESH, json.dumps(jobs), str(tmp_path)], check=True, capture_output=True, text=True)
    report = json.loads(out.stdout.splitlines()[-1])
    assert len(report) == len(jobs)
    assert max(report.values()) < 1e-5


def test_asr_layer_alone():
    bn = nn.BatchNorm2d(8)
    model = attach_asr(nn.Sequential(bn), sites=['0'])
    asr = model[0]
    assert isinstance(asr, ASR)
    assert fold_asr(asr) is bn
    assert reparameterize_model(model, inplace=True)[0] is bn
