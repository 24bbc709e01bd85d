"""What fusing promises: the stock network, the same function, twice the same, and no silent damage."""

import copy

import huggingface_hub
import pytest
import timm
import torch
from helpers import KEYWORD_KINDS, asr_layers, clone, images, kinds, randomize, relative_error, small
from timm.layers import freeze_batch_norm_2d
from timm.utils import reparameterize_model
from torch import nn

from timm_asr import attach_asr, fold_asr, has_asr, plain_architecture, reparameterize
from timm_asr.asr import wrapper

ASR_KINDS = [name for name in kinds() if '_asr_' in name] + KEYWORD_KINDS
# Full depth, every kind, up to the deepest.
FULL = ['resnet18_asr_eca', 'vit_tiny_asr_spa', 'repvgg_a0_asr_se', 'resnet110_acnet_asr_ie', 'mobilenetv1_100_asr_srm',
        'resnet164_se', 'resnet164_ras', 'resnet164_spe', 'resnet164_dia_lstm']
DEEPEST = 'resnet407_asr_se'


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

    shrunk = {k: v for k, v in model._model_args.items() if not k.startswith('asr')}
    plain = timm.create_model(plain_architecture(name.partition('+')[0]), **shrunk, device='meta')
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
        for fold_bn in (False, False, True, True):  # each once more
            assert ours.reparameterize(fold_bn=fold_bn) is ours
            assert not has_asr(ours)
            assert relative_error(expected, ours(x)) < 1e-12


@pytest.mark.slow
@pytest.mark.parametrize('name', [*FULL, DEEPEST])
def test_full_depth(name):
    model = randomize(timm.create_model(name, num_classes=7)).eval()
    x = images(model, 1)
    with torch.no_grad():
        single, found = model(x), clone(model).reparameterize(fold_bn=True)(x)
        bound = 1e-4 if len(asr_layers(model)) > 66 else 1e-5  # beyond 200 layers
        if '_asr_' in name:
            assert relative_error(single, fold_asr(clone(model))(x)) < bound
            assert relative_error(single, found) < bound
        if name != DEEPEST:
            model, x = model.double(), x.double()
            expected = model(x)
            # Activations may grow until a gate's own rounding shows: then the literal model is as far off.
            assert relative_error(expected, found) < max(bound, 2 * relative_error(expected, single))
            assert relative_error(expected, model.reparameterize(fold_bn=True)(x)) < 1e-12


@pytest.mark.parametrize('name', ['mobilenetv3_small_050', 'repvgg_a0', 'test_convnext', 'test_efficientnet'])
def test_fold_bn_on_other_timm_models(name):
    model = randomize(timm.create_model(name, num_classes=3, dtype=torch.float64)).eval()
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        expected = model(x)
        assert relative_error(expected, reparameterize(model, fold_bn=True)(x)) < 1e-12


@pytest.mark.parametrize('name', ['mobilenetv3_small_050', 'resnet18'])
def test_fold_bn_takes_frozen_norms_in_training_mode_too(name):
    model = freeze_batch_norm_2d(randomize(timm.create_model(name, num_classes=3, dtype=torch.float64)).eval())
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        expected = model(x)
        folded = reparameterize(model.train(), fold_bn=True)
        assert not [m for m in folded.modules() if 'Frozen' in type(m).__name__]
        assert relative_error(expected, folded.eval()(x)) < 1e-12


@pytest.mark.parametrize('name', ['repvgg_a0_asr_se', 'mobileone_s0'])
def test_branches_that_end_in_frozen_norms_are_merged(name):
    model = freeze_batch_norm_2d(randomize(timm.create_model(name, num_classes=3, dtype=torch.float64)).eval())
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        assert relative_error(model(x), reparameterize(clone(model))(x)) < 1e-12


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


@pytest.mark.parametrize(('name', 'fold_bn', 'sentence'), [
    ('resnet20_asr_se', True, r"fold_bn=True would change.*BatchNorm 'bn1' is in training mode.*eval\(\)"),
    ('repvgg_a0', False, r'Merging the branches of RepVggBlock in training mode.*model.eval\(\)'),
    *((name, False, r"inference form of 'layer1.*would change.*in training mode; call model.eval")
      for name in ('resnet20_se', 'resnet83_dia_lstm', 'resnet20_ras_asr_ras'))])
def test_in_training_mode_it_is_refused_and_nothing_changes(name, fold_bn, sentence):
    model = timm.create_model(name, num_classes=3).train()
    state = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=sentence):
        reparameterize(model, fold_bn=fold_bn)
    assert list(model.state_dict()) == list(state)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), state.values(), strict=True))


def test_folding_in_training_mode_keeps_gradients_of_the_rest():
    model = randomize(small('resnet20_asr_se')).train()
    x = images(model)
    folded = fold_asr(clone(model))
    assert folded.training
    assert relative_error(model(x), folded(x)) < 1e-12
    folded(x).sum().backward()
    assert all(p.grad is not None for p in folded.parameters())


def test_inside_data_parallel_and_compiled_wrappers():
    model = randomize(small('resnet20_asr_se')).eval()
    x = images(model)
    expected = model(x)
    for wrapped in (nn.DataParallel(clone(model)), torch.compile(clone(model), backend='eager')):
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


def test_a_network_runs_where_folding_ended_in_the_middle(monkeypatch):
    model = randomize(small('resnet20_asr_se')).eval()
    expected, calls = model(x := images(model)), iter((wrapper.scale_,))
    with monkeypatch.context() as patch:
        patch.setattr(wrapper, 'scale_', lambda *args: next(calls)(*args))
        with pytest.raises(StopIteration):
            fold_asr(model)
    assert len(asr_layers(model)) == 3
    assert relative_error(expected, model(x)) < 1e-12


def test_weights_in_several_files(tmp_path):
    model, other = (small('resnet20_asr_se', layers=(1, 1, 1)) for _ in range(2))
    huggingface_hub.save_torch_model(model, str(tmp_path), max_shard_size=1)  # one tensor in each
    huggingface_hub.load_torch_model(other, tmp_path)
    assert all(torch.equal(tensor, other.state_dict()[key]) for key, tensor in model.state_dict().items())


def test_a_fused_checkpoint_does_not_fit_a_trainable_model():
    trainable, fused = small('resnet18_asr_se'), fold_asr(small('resnet18_asr_se'))
    for strict in (True, False):
        with pytest.raises(RuntimeError, match=r"folded or plain checkpoint \('layer1.0.bn2.weight'\) and the model"):
            trainable.load_state_dict(fused.state_dict(), strict=strict)
        with pytest.raises(RuntimeError, match=r'trainable checkpoint with ASR vectors') as error:
            fused.load_state_dict(trainable.state_dict(), strict=strict)
        assert str(error.value).count('with ASR vectors') == 1  # once, not for every layer
        for own, kwargs in ({'asr_depth': 2}, {}), ({}, {'asr': 'ie'}):
            with pytest.raises(RuntimeError, match='come from another gate or asr_depth'):
                small('resnet18_asr_se', **kwargs).load_state_dict(
                    small('resnet18_asr_se', **own).state_dict(), strict=strict)
    wrapped = nn.DataParallel(small('vit_tiny_asr_se'))
    state = {f'module.{k}': v for k, v in fold_asr(small('vit_tiny_asr_se')).state_dict().items()}
    with pytest.raises(RuntimeError, match='folded or plain checkpoint'):
        wrapped.load_state_dict(state)
