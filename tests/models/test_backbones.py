"""The ASR paper's other backbones: what is stock, what is merged, where ASR and gates stand."""

import pytest
import timm
import torch
import torchvision
from helpers import asr_layers, asr_sites, clone, images, randomize, relative_error, same_gradients, small
from timm.layers import BatchNormAct2d, convert_sync_batchnorm, freeze_batch_norm_2d
from timm.models.byobnet import RepVggBlock
from timm.utils import reparameterize_model
from torch import nn

import timm_asr
from timm_asr import fold_asr, has_asr
from timm_asr.asr.timm_blocks import NormActASR
from timm_asr.asr.wrapper import wrap
from timm_asr.gates.se import SE
from timm_asr.gates.table import asr_gate
from timm_asr.models.asr_acnet import ACBlock


def shapes(model):
    return {key: tensor.shape for key, tensor in model.state_dict().items()}


@pytest.mark.parametrize('name', [
    'repvgg_a0', 'repvgg_a0_cifar', 'resnet56_acnet', 'mobilenetv1_100', 'mobilenetv1_100_cifar', 'shufflenetv2_100',
    'shufflenetv2_100_cifar', 'vgg19_cifar'])
def test_a_gate_and_a_vector_in_every_block(name):
    model = small(f'{name}_se_asr_se', asr_depth=2, asr_init='N_0.3', asr_learnable=False)
    gates = [m for key, m in model.named_modules() if type(m) is SE and '.vectors.' not in key]
    assert len(gates) == len(asr_layers(model)) > 0
    for asr in asr_layers(model):
        assert len(asr.vectors) == 2
        assert not any(vector.psi.requires_grad or len(vector.psi.unique()) == 1 for vector in asr.vectors)


# RepVGG

@pytest.mark.parametrize('name', ['repvgg_a0', 'repvgg_b3'])
def test_repvgg_is_timms_and_so_are_its_checkpoints(name):
    stock = timm.create_model(name, device='meta')
    ours = timm.create_model(f'{name}_asr_se', device='meta')
    vectors = asr_sites(ours)
    assert vectors == ['stem'] + [f'stages.{i}.{j}' for i, stage in enumerate(stock.stages) for j in range(len(stage))]
    own = {key.replace('.layer.', '.'): shape for key, shape in shapes(ours).items() if '.vectors.' not in key}
    assert own == shapes(stock)


@pytest.mark.parametrize('verb', [lambda m: m.reparameterize(), lambda m: m.reparameterize(fold_bn=True),
                                  reparameterize_model, lambda m: reparameterize_model(fold_asr(m)).reparameterize()])
@pytest.mark.parametrize('name', ['repvgg_a0_cifar_ie_asr_ie', 'resnet56_acnet_asr_se'])
def test_a_block_becomes_one_convolution(name, verb):
    model = randomize(small(name, asr_depth=2)).eval()
    x = images(model)
    expected = model(x)
    changed = verb(clone(model))
    assert relative_error(expected, changed(x)) < 1e-12
    assert not has_asr(changed)
    norms = [key for key, m in changed.named_modules() if isinstance(m, nn.BatchNorm2d)]
    assert not [key for key in norms if 'downsample' not in key]
    kernels = [m.kernel_size for m in changed.modules() if isinstance(m, nn.Conv2d) and m.in_channels > 1]
    assert set(kernels) <= {(3, 3), (1, 1)}
    if name.startswith('repvgg'):
        assert len([k for k in kernels if k == (3, 3)]) == len([m for m in model.modules() if type(m) is RepVggBlock])


# ACNet

@pytest.mark.parametrize('stride', [1, 2])
@pytest.mark.parametrize('size', [6, 7])
def test_an_asymmetric_block_is_one_convolution(stride, size):
    block = randomize(ACBlock(5, 8, stride, dtype=torch.float64)).eval()
    x = torch.randn(2, 5, size, size, dtype=torch.float64)
    merged = block.fuse()
    assert type(merged) is nn.Conv2d
    assert merged.kernel_size == (3, 3)
    assert relative_error(block(x), merged(x)) < 1e-12
    bn = block.conv_3x3.bn
    square = block.conv_3x3.conv.weight * (bn.weight / (bn.running_var + bn.eps).sqrt())[:, None, None, None]
    corners = (merged.weight - square)[:, :, [0, 0, 2, 2], [0, 2, 0, 2]]
    assert corners.abs().max() < 1e-12  # they come from the square kernel alone


def test_asr_scales_the_sum_of_an_asymmetric_block():
    model = randomize(small('resnet56_acnet_asr_se')).train()
    assert asr_sites(model) == ['layer1.0.conv2', 'layer1.1.conv2', 'layer2.0.conv2', 'layer3.0.conv2']
    asr = model.layer1[0].conv2
    x = torch.randn(3, 16, 5, 5, dtype=torch.float64)
    expected = clone(asr.layer)(x) * asr.attention_vector().view(1, -1, 1, 1)
    assert relative_error(expected, asr(x)) < 1e-12


def test_an_acnet_is_a_resnet_with_more_branches():
    """Merged, its kernels are a ResNet's again, under the same names."""
    assert (timm.create_model('resnet56_acnet').conv1.conv_1x3.bn.weight == 1 / 3).all()
    plain, stock, gated, stock_gated = (
        timm.create_model(name, layers=(2, 1, 1)).eval().reparameterize(fold_bn=True)
        for name in ('resnet56_acnet', 'resnet56', 'resnet56_acnet_se', 'resnet56_se'))
    assert shapes(plain) == shapes(stock)
    assert [type(m) for m in gated.modules()][1:] == [type(m) for m in stock_gated.modules()][1:]


def test_a_frozen_block_merges_and_a_branch_starts_at_zero():
    block = freeze_batch_norm_2d(ACBlock(3, 4))
    assert block.eval().fuse().bias.shape == (4,)
    zero = timm.create_model('resnet56_acnet', layers=(1, 1, 1), zero_init_last=True)
    assert (zero.layer2[0].conv2.conv_3x1.bn.weight == 0).all()


# MobileNet v1

def test_mobilenet_is_timms_and_so_are_its_checkpoints():
    stock = timm.create_model('mobilenetv1_100', device='meta')
    ours = timm.create_model('mobilenetv1_100_asr_se')
    assert asr_sites(ours) == [f'blocks.{i}.{j}.bn2' for i, stage in enumerate(stock.blocks) for j in range(len(stage))]
    assert shapes(fold_asr(ours)) == shapes(stock)
    assert shapes(timm.create_model('mobilenetv1_100_cifar', num_classes=1000, device='meta')) == shapes(stock)
    assert timm.create_model('mobilenetv1_100_cifar_se', rd_ratio=1 / 8).blocks[1][0].se.fc1.out_channels == 8


@pytest.mark.parametrize('training', [False, True])
def test_a_scripted_norm_with_activation_has_values_gradients_and_statistics(training):
    eager = randomize(wrap(BatchNormAct2d(8).double(), asr_gate('se'), depth=2)).train(training)
    assert type(eager) is NormActASR
    scripted = torch.jit.script(clone(eager))
    x = torch.randn(4, 8, 5, 5, dtype=torch.float64)
    a, b = eager(x), scripted(x)
    assert relative_error(a, b) < 1e-12
    a.square().sum().backward()
    b.square().sum().backward()
    same_gradients(eager, scripted)
    for (key, p), q in zip(eager.named_buffers(), scripted.buffers(), strict=True):
        assert torch.equal(p, q), key


@pytest.mark.parametrize('change', [freeze_batch_norm_2d, convert_sync_batchnorm])
def test_what_a_norm_with_activation_became_is_not_scripted_silently(change):
    asr = change(wrap(BatchNormAct2d(8), asr_gate('se')))
    with pytest.raises(TypeError, match='cannot be scripted'):
        torch.jit.script(asr)


# ShuffleNetV2

def test_shufflenet_is_torchvisions_and_so_are_its_checkpoints():
    stock = randomize(torchvision.models.shufflenet_v2_x1_0()).eval()
    ours = timm.create_model('shufflenetv2_100').eval()
    ours.load_state_dict(stock.state_dict(), strict=True)
    assert ours.pretrained_cfg['url'] == torchvision.models.ShuffleNet_V2_X1_0_Weights.DEFAULT.url
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert relative_error(stock(x), ours(x)) < 1e-6
    torchvision.models.shufflenet_v2_x1_0().load_state_dict(
        fold_asr(timm.create_model('shufflenetv2_100_asr_se')).state_dict(), strict=True)
    assert shapes(timm.create_model('shufflenetv2_100_cifar', num_classes=1000, device='meta')) == shapes(stock)
    model = timm_asr.attach_asr(stock)
    assert asr_sites(model) == asr_sites(timm.create_model('shufflenetv2_100_asr_se'))
    assert asr_sites(model)[:2] == ['stage2.0.branch2.6', 'stage2.1.branch2.6']
    assert len(asr_sites(model)) == 4 + 8 + 4


def test_a_gate_of_shufflenet_ends_the_second_branch():
    gated = timm.create_model('shufflenetv2_100_cifar_ie', dtype=torch.float64)
    assert [name for name, _ in gated.stage2[0].branch2.named_children()][-1] == '8'
    plain = {key for key in gated.state_dict() if '.branch2.8.' not in key}
    assert plain == set(timm.create_model('shufflenetv2_100_cifar', device='meta').state_dict())
    assert gated.stage2[0].branch2[8].weight.dtype == torch.float64


# VGG

def test_vgg19_for_small_images():
    model = timm.create_model('vgg19_cifar_asr_se')
    assert asr_sites(model) == [f'stages.{i}.{j + bool(i)}.bn' for i, n in enumerate((2, 2, 4, 4, 4)) for j in range(n)]
    assert len([m for m in fold_asr(model).modules() if isinstance(m, nn.Conv2d)]) == 16
    assert f'{sum(p.numel() for p in model.parameters()) / 1e6:.2f}' == '20.04'  # docs/readings.md
    features = model.eval().forward_features(torch.randn(1, 3, 32, 32))
    assert features.shape[1:] == (512, 2, 2)
    assert torch.equal(model.forward_head(features, pre_logits=True), nn.MaxPool2d(2)(features).flatten(1))
    assert model(torch.randn(1, 3, 96, 96)).shape == (1, 10)
    assert timm.create_model('vgg19_cifar', num_classes=100, device='meta').fc.out_features == 100


@pytest.mark.parametrize('name', [
    'vgg19_cifar_asr_se', 'shufflenetv2_100_srm_asr_srm', 'shufflenetv2_100_cifar_ie', 'resnet20_asr_se'])
def test_intermediates_and_pruning(name):
    model = small(name).eval()
    x = images(model)
    whole = model.forward_intermediates(x, intermediates_only=True)
    channels = [info['num_chs'] for info in model.feature_info]
    assert [f.shape[1] for f in whole] == channels
    assert [x.shape[-1] // f.shape[-1] for f in whole] == [info['reduction'] for info in model.feature_info]
    last, some = model.forward_intermediates(x, indices=[0, 2])
    assert torch.equal(last, model.forward_features(x))
    assert torch.equal(some[1], whole[2])
    early, _ = model.forward_intermediates(x, indices=[1], stop_early=True)
    assert torch.equal(early, whole[1])
    kept = clone(model)
    kept.prune_intermediate_layers([len(whole) - 1], prune_head=False)
    assert torch.equal(kept(x), model(x))
    kept.set_grad_checkpointing()
    kept.train().forward_intermediates(x)[0].sum().backward()
    assert model.prune_intermediate_layers([0, 1]) == [0, 1]
    assert torch.equal(whole[1], model(x))
    assert model.num_features == channels[1]
    model.set_grad_checkpointing()
    assert torch.equal(whole[1], model.train().eval()(x))
    with pytest.raises(ValueError, match="output_fmt='NLC' is not supported"):
        model.forward_intermediates(x, output_fmt='NLC')
