"""One call leaves alone what it is not about: the random state, PyTorch's switches, other threads, later models."""

import threading

import pytest
import timm
import torch
from helpers import small
from torch import nn
from torch._subclasses import FakeTensor, FakeTensorMode

import timm_asr
from timm_asr.gates import fused
from timm_asr.gates.precision import without_tf32


def save(model, folder):
    timm_asr.save_fused(model, folder, keep_trainable=True)


def freeze(model, folder):
    timm_asr.freeze_attention(model, [torch.randn(4, 3, 32, 32, generator=torch.Generator())])


def merge(model, folder):
    timm_asr.reparameterize(model)


@pytest.mark.parametrize(('name', 'act'), [
    ('resnet20_asr_se', save), ('seresnet18', freeze), ('resnet56_acnet_asr_se', merge),
    ('repvgg_a0_cifar_asr_se', merge)])
def test_the_random_state(name, act, tmp_path):
    model = (timm.create_model(name) if name == 'seresnet18' else small(name, dtype=None)).eval()
    before = torch.get_rng_state()
    act(model, tmp_path / 'folder')
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize('name', [
    'resnet20_asr_se', 'resnet56_acnet_asr_se', 'vit_tiny_asr_eca', 'repvgg_a0_cifar_se_asr_se',
    'mobilenetv1_100_cifar_asr_ie', 'shufflenetv2_100_cifar_srm_asr_srm', 'vgg19_cifar_asr_eca'])
def test_how_the_next_caller_takes_features(name):
    """timm's builder writes into the options that it is given."""
    more = {'depth': 4} if name.startswith('vit') else {}
    before = small(name, features_only=True, **more)
    small(name, features_only=True, feature_cls='getter', out_indices=(1,), **more)
    after = small(name, features_only=True, **more)
    assert type(after) is type(before)
    assert after.feature_info.channels() == before.feature_info.channels()


def test_the_switches_of_precision():
    """Two threads are inside, and the one that came first leaves first."""
    matmul = torch.backends.cuda.matmul
    before, first, second = matmul.allow_tf32, without_tf32(), without_tf32()
    matmul.allow_tf32 = True
    try:
        first.__enter__()
        second.__enter__()
        first.__exit__(None, None, None)
        assert matmul.fp32_precision == 'ieee' if hasattr(matmul, 'fp32_precision') else not matmul.allow_tf32
        second.__exit__(None, None, None)
        assert matmul.allow_tf32
    finally:
        matmul.allow_tf32 = before


def test_modules_that_run_in_another_thread_meanwhile():
    """torch.fx changes ``nn.Module.__call__`` while it traces."""
    served, x = nn.Sequential(nn.Linear(4, 4), nn.ReLU()), torch.zeros(1, 4)
    expected, errors, calls, done = served(x), [], [0], threading.Event()

    def serve():
        while not done.is_set():
            try:
                assert torch.equal(served(x), expected)
                calls[0] += 1
            except Exception as error:
                errors.append(error)

    thread, call = threading.Thread(target=serve), nn.Module.__call__
    models = [small('resnet20_se').eval() for _ in range(3)]
    thread.start()
    traced = [threading.Thread(target=timm_asr.reparameterize, args=(model,), kwargs={'fold_bn': True})
              for model in models[1:]]
    for each in traced:
        each.start()
    timm_asr.reparameterize(models[0], fold_bn=True)
    for each in traced:
        each.join()
    done.set()
    thread.join()
    assert not errors
    assert calls[0]
    assert nn.Module.__call__ is call
    for model in models:
        assert not any(isinstance(m, nn.BatchNorm2d) for m in model.layer1.modules())


def test_a_model_that_runs_after_one_on_tensors_without_content():
    fused._zeros_and_ones.cache_clear()
    x = torch.randn(2, 3, 32, 32)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        small('resnet20_ie', dtype=torch.float32)(mode.from_tensor(x))
    y = small('resnet20_ie', dtype=torch.float32)(x)
    assert not isinstance(y, FakeTensor)
    assert y.isfinite().all()
