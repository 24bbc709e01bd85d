"""Where following residual additions puts ASR, on blocks small enough to see why; and what is left out."""

import pytest
import timm
import timm.layers as tl
import torch
from torch import nn

from timm_asr import attach_asr
from timm_asr.asr.sites import class_sites, known_sites
from timm_asr.asr.wrapper import ASR

C = 8


def conv(**kwargs):
    return nn.Conv2d(C, C, 3, padding=1, **kwargs)


def network(forward, **layers):
    """Something that timm might have made: it says the size of its images."""
    model = type('Net', (nn.Module,), {'forward': forward, 'pretrained_cfg': {'input_size': (C, 6, 6)}})()
    for name, layer in layers.items():
        setattr(model, name, layer)
    return model


CONV_BN = {'conv': conv, 'bn': lambda: nn.BatchNorm2d(C), 'conv2': conv, 'bn2': lambda: nn.BatchNorm2d(C)}


def two_layers(self, x):
    return self.bn2(self.conv2(self.bn(self.conv(x)).relu()))


# (forward, layers, expected sites)
CASES = {
    'the last norm before the addition': (lambda self, x: x + two_layers(self, x), CONV_BN, ['bn2']),
    'in place': (lambda self, x: two_layers(self, x).add_(x), CONV_BN, ['bn2']),
    'where there is no norm, the convolution': (
        lambda self, x: x + self.conv2(self.bn(self.conv(x)).relu()), CONV_BN, ['conv2']),
    'before an activation': (lambda self, x: x + two_layers(self, x).relu(), CONV_BN, ['bn2']),
    'not the projection beside it': (
        lambda self, x: self.down_bn(self.down(x)) + two_layers(self, x),
        CONV_BN | {'down': lambda: nn.Conv2d(C, C, 1), 'down_bn': lambda: nn.BatchNorm2d(C)}, ['bn2']),
    'before a gate': (
        lambda self, x: x + self.se(two_layers(self, x)),
        CONV_BN | {'se': lambda: tl.SEModule(C, rd_channels=4)}, ['bn2']),
    'before layer scale': (
        lambda self, x: x + self.scale(self.conv(x)), {'conv': conv, 'scale': lambda: tl.LayerScale2d(C)}, ['conv']),
    'layer scale, where nothing else can be scaled': (
        lambda self, x: x + self.scale(self.pool(x)),
        {'pool': lambda: nn.AvgPool2d(3, 1, 1), 'scale': lambda: tl.LayerScale2d(C)}, ['scale']),
    'both ends of a sum': (lambda self, x: x + (self.conv(x) + self.conv2(x.relu())), CONV_BN, ['conv', 'conv2']),
    'both ends of a sum of a stack': (
        lambda self, x: x + torch.stack([self.conv(x), self.conv2(x)]).sum(dim=0), CONV_BN, ['conv', 'conv2']),
    'both parts of a concatenation': (
        lambda self, x: x + torch.cat([self.a(x), self.b(x)], 1),
        {'a': lambda: nn.Conv2d(C, C // 2, 1), 'b': lambda: nn.Conv2d(C, C // 2, 1)}, ['a', 'b']),
    'through a weight-standardised convolution, which would divide a scale out again': (
        lambda self, x: x + self.std(self.bn(self.conv(x)).relu()),
        {'conv': conv, 'bn': lambda: nn.BatchNorm2d(C), 'std': lambda: tl.StdConv2d(C, C, 1)}, ['bn']),
    'a weight-standardised convolution with a gain': (
        lambda self, x: x + self.std(self.conv(x).relu()),
        {'conv': conv, 'std': lambda: tl.ScaledStdConv2d(C, C, 1)}, ['std']),
    'tokens: the channels are the last dimension': (
        lambda self, x: (t := x.flatten(2).transpose(1, 2)) + self.fc(t), {'fc': lambda: nn.Linear(C, C)}, ['fc']),
    'mixed tokens: the layer that mixes them is passed, its channels being tokens': (
        lambda self, x: (t := x.flatten(2).transpose(1, 2)) + self.mix(self.norm(t).transpose(1, 2)).transpose(1, 2),
        {'norm': lambda: nn.LayerNorm(C), 'mix': lambda: nn.Linear(36, 36)}, ['norm']),
    'channels last': (
        lambda self, x: (t := x.permute(0, 2, 3, 1)) + self.fc(t), {'fc': lambda: nn.Linear(C, C)}, ['fc']),
    'windows': (
        lambda self, x: (t := x.permute(0, 2, 3, 1)) + self.fc(
            t.reshape(-1, 2, 3, 2, 3, C).permute(0, 1, 3, 2, 4, 5).reshape(-1, 9, C)
        ).view(-1, 2, 2, 3, 3, C).permute(0, 1, 3, 2, 4, 5).reshape(-1, 6, 6, C),
        {'fc': lambda: nn.Linear(C, C)}, ['fc']),
    'no residual branch: each norm after a convolution': (
        lambda self, x: two_layers(self, x).mean((2, 3)), CONV_BN, ['bn', 'bn2']),
    'nor a norm: each convolution, not the classifier': (
        lambda self, x: self.fc(self.conv2(self.conv(x).relu()).mean((2, 3), keepdim=True)),
        {'conv': conv, 'conv2': conv, 'fc': lambda: nn.Conv2d(C, 3, 1)}, ['conv', 'conv2'])}


@pytest.mark.parametrize('case', CASES)
def test_where_it_goes(case):
    forward, layers, expected = CASES[case]
    model = network(forward, **{name: make() for name, make in layers.items()}).double()
    assert known_sites(model) == expected
    assert all(p.device.type == 'cpu' for p in model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert all(m.training for m in model.modules())
    model(torch.randn(2, C, 6, 6, dtype=torch.float64))


REFUSED = {
    'a norm that has the last word': (
        lambda self, x: x + (y := self.conv(x)) / y.std((2, 3), keepdim=True), {'conv': conv}),
    'a norm without parameters': (
        lambda self, x: x + self.norm(self.conv(x)), {'conv': conv, 'norm': lambda: nn.InstanceNorm2d(C)}),
    'its own normalisation': (
        lambda self, x: x + (y := self.conv(x)) * y.var((2, 3), keepdim=True).rsqrt(), {'conv': conv}),
    'a plain network whose norm has no parameters': (
        lambda self, x: self.norm(self.conv(x)), {'conv': conv, 'norm': lambda: nn.InstanceNorm2d(C)}),
    'a layer that runs twice': (lambda self, x: x + self.conv(self.conv(x)), {'conv': conv}),
    'parameters that somebody else reads': (lambda self, x: x + self.conv(x * self.conv.weight.mean()), {'conv': conv}),
    'parameters that only somebody else reads': (
        lambda self, x: x + torch.nn.functional.conv2d(x, self.conv.weight, self.conv.bias, padding=1), {'conv': conv})}


@pytest.mark.parametrize('case', REFUSED)
def test_what_is_left_out(case):
    forward, layers = REFUSED[case]
    model = network(forward, **{name: make() for name, make in layers.items()})
    with pytest.raises(ValueError, match=r"in a Net: its residual branches end in no layer.*sites=\['layer1"):
        attach_asr(model)
    assert not any(isinstance(m, ASR) for m in model.modules())


def test_tied_weights_and_hooks_are_left_out():
    model = network(lambda self, x: x + self.conv2(self.conv(x).relu()), conv=conv(), conv2=conv())
    model.conv.weight = model.conv2.weight
    with pytest.raises(ValueError, match='its residual branches end in no layer'):
        attach_asr(model)
    model = network(lambda self, x: x + self.conv(x), conv=conv())
    model.conv.register_forward_hook(lambda *_: None)  # which the scaled form would not call
    with pytest.raises(ValueError, match='its residual branches end in no layer'):
        attach_asr(model)


class Block(nn.Module):
    def __init__(self, residual):
        super().__init__()
        self.conv, self.residual = conv(), residual

    def forward(self, x):
        y = self.conv(x.relu())
        return x + y if self.residual else y


def test_blocks_of_a_class_are_treated_alike():
    model = network(lambda self, x: self.b(self.a(x)), a=Block(False), b=Block(True))
    assert known_sites(model) == ['a.conv', 'b.conv']


def test_a_network_that_cannot_be_followed_says_why():
    model = network(lambda self, x: x + self.conv(x[:, :3]), conv=conv())
    with pytest.raises(ValueError, match=r'an image of the size \(8, 6, 6\) could not be followed through it \('):
        attach_asr(model)
    assert all(m.training for m in model.modules())


def test_a_tensor_that_is_no_buffer_is_no_hindrance():
    model = network(lambda self, x: x + self.conv(x) * self.table, conv=conv())
    model.table = torch.ones(C, 1, 1)
    assert known_sites(model) == ['conv']


def test_the_size_of_images_is_the_one_the_model_was_made_for():
    model = timm.create_model('mixer_s32_224', img_size=64, in_chans=2, device='meta')
    assert len(known_sites(model)) == 16
    model = timm.create_model('vit_tiny_patch16_224', img_size=32, depth=2, dynamic_img_size=True)
    assert len(known_sites(model)) == 4


@pytest.mark.parametrize('name', [
    'resnet20', 'resnet83_dia_lstm', 'wrn52_4', 'resnext101_8x32d', 'resnet18_se', 'vit_tiny_patch16_224',
    'repvgg_a0_cifar', 'mobilenetv1_100', 'shufflenetv2_100_cifar', 'vgg19_cifar', 'resnet56_acnet'])
def test_models_of_this_package_are_known_by_their_classes(name):
    """So that building one needs no image to be followed through it."""
    model = timm.create_model(name, device='meta')
    assert class_sites(model) == known_sites(timm.create_model(name))
    assert class_sites(model)
