"""Checkpoints of the papers' authors: written from lists of names and shapes, and run literally by those names."""

import pytest
import timm
import torch
import torch.nn.functional as F
from helpers import relative_error
from timm.models import load_checkpoint
from train_helpers import make_images

import timm_asr
from timm_asr.engine.commands import export, validate
from timm_asr.models.authors import our_names

CLASSES = 7
BLOCKS = 2
NORM = ('running_mean', 'running_var', 'weight', 'bias')


def norm(name, channels):
    return {f'{name}.num_batches_tracked': (), **{f'{name}.{end}': (channels,) for end in NORM}}


def conv(name, out, into, size=1):
    return {f'{name}.weight': (out, into, size, size)}


def linear(name, out, into):
    return {f'{name}.weight': (out, into), f'{name}.bias': (out,)}


def excitation(name, channels):
    return {**linear(f'{name}.fc1', channels // 16, channels), **linear(f'{name}.fc2', channels, channels // 16)}


def lstm(name, channels):
    return {key: shape for w in ('w_ih', 'w_hh') for key, shape in {
        **linear(f'{name}.lstm.{w}.0.seq.0', channels // 4, channels),
        **linear(f'{name}.lstm.{w}.0.seq.2', 4 * channels, channels // 4)}.items()}


def resnet(kind):
    """Names and shapes of the bottleneck ResNets in zhongshsh/ASR, zhongshsh/RAM and gbup-group/DIANet."""
    names = {**conv('conv1', 16, 3, 3), **norm('bn1', 16), **linear('fc', CLASSES, 256)}
    width = 16
    for stage, planes in enumerate((16, 32, 64), 1):
        out = 4 * planes
        for n in range(BLOCKS):
            block = f'layer{stage}.ModuleList.{n}' if kind == 'dia' else f'layer{stage}.{n}'
            names |= {**conv(f'{block}.conv1', planes, width), **norm(f'{block}.bn1', planes),
                      **conv(f'{block}.conv2', planes, planes, 3), **norm(f'{block}.bn2', planes),
                      **conv(f'{block}.conv3', out, planes)}
            if 'asr' in kind:
                names |= {**norm(f'{block}.bn3.bn', out), **norm(f'{block}.bn3.fused_bn', out),
                          f'{block}.bn3.vector': (1, out, 1, 1), **excitation(f'{block}.bn3.attention_module', out)}
            else:
                names |= norm(f'{block}.bn3', out)
            if kind.startswith('se'):
                names |= excitation(f'{block}.attention_module', out)
            if kind == 'ram':
                names |= {**norm(f'{block}.bn4', out), f'{block}.w': (1, out, 1, 1), f'{block}.b': (1, out, 1, 1)}
            if n == 0:
                names |= {**conv(f'{block}.downsample.0', out, width), **norm(f'{block}.downsample.1', out)}
            width = out
        names |= lstm(f'layer{stage}', out) if kind == 'dia' else {}
    return names


def wide():
    """Of the wide ResNet in gbup-group/DIANet."""
    names = {**conv('conv1', 16, 3, 3), **norm('bn1', 256), **linear('fc', CLASSES, 256)}
    width = 16
    for stage, planes in enumerate((64, 128, 256), 1):
        for n in range(BLOCKS):
            block = f'block{stage}.ModuleList.{n}'
            names |= {**norm(f'{block}.bn1', width), **conv(f'{block}.conv1', planes, width, 3),
                      **norm(f'{block}.bn2', planes), **conv(f'{block}.conv2', planes, planes, 3),
                      **norm(f'{block}.bn_additional', planes)}
            names |= conv(f'{block}.convShortcut', planes, width) if n == 0 else {}
            width = planes
        names |= lstm(f'block{stage}', planes)
    return names


def resnext():
    """Of the ResNeXt in gbup-group/DIANet."""
    names = {**conv('conv_1_3x3', 32, 3, 3), **norm('bn_1', 32), **linear('classifier', CLASSES, 512)}
    width = 32
    for stage, out in enumerate((128, 256, 512), 1):
        for n in range(BLOCKS):
            block = f'stage_{stage}.ModuleList.{n}'
            names |= {**conv(f'{block}.conv_reduce', 2 * out, width), **norm(f'{block}.bn_reduce', 2 * out),
                      f'{block}.conv_conv.weight': (2 * out, out // 4, 3, 3), **norm(f'{block}.bn', 2 * out),
                      **conv(f'{block}.conv_expand', out, 2 * out), **norm(f'{block}.bn_expand', out)}
            if n == 0:
                names |= {**conv(f'{block}.shortcut.shortcut_conv', out, width),
                          **norm(f'{block}.shortcut.shortcut_bn', out)}
            width = out
        names |= lstm(f'stage_{stage}', out)
    return names


class Theirs:
    """What their code computes, from tensors by their names."""

    def __init__(self, state):
        self.state = {key: tensor.double() for key, tensor in state.items()}

    def conv(self, x, name, stride=1):
        weight = self.state[f'{name}.weight']
        return F.conv2d(x, weight, None, stride, weight.shape[-1] // 2, groups=x.shape[1] // weight.shape[1])

    def norm(self, x, name):
        return F.batch_norm(x, *(self.state[f'{name}.{end}'] for end in NORM))

    def linear(self, u, name):
        return F.linear(u, self.state[f'{name}.weight'], self.state[f'{name}.bias'])

    def excite(self, x, name):
        hidden = F.relu(self.linear(x.mean((2, 3)), f'{name}.fc1'))
        return self.linear(hidden, f'{name}.fc2').sigmoid()[:, :, None, None]

    def cell(self, u, h, c, name):
        gates = sum(self.linear(F.relu(self.linear(v, f'{name}.lstm.{w}.0.seq.0')), f'{name}.lstm.{w}.0.seq.2')
                    for v, w in ((u, 'w_ih'), (h, 'w_hh')))
        i, f, g, o = gates.chunk(4, 1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        return o.sigmoid() * c.sigmoid(), c

    def stages(self, x, name, block, relu=True):
        """Stages of blocks, with one LSTM each where there is one."""
        for stage in (1, 2, 3):
            h = c = None
            shared = f'{name}{stage}.lstm.w_ih.0.seq.0.weight' in self.state
            for n in range(BLOCKS):
                at = f'{name}{stage}.ModuleList.{n}' if shared else f'{name}{stage}.{n}'
                a, shortcut = block(x, at, 2 if stage > 1 and n == 0 else 1)
                if shared:
                    u = a.mean((2, 3))
                    h, c = self.cell(u, *((torch.zeros_like(u),) * 2 if h is None else (h, c)), f'{name}{stage}')
                    a = a * h[:, :, None, None]
                x = F.relu(a + shortcut) if relu else a + shortcut
        return x

    def bottleneck(self, x, at, stride):
        a = F.relu(self.norm(self.conv(x, f'{at}.conv1'), f'{at}.bn1'))
        a = F.relu(self.norm(self.conv(a, f'{at}.conv2', stride), f'{at}.bn2'))
        a = self.conv(a, f'{at}.conv3')
        if f'{at}.bn3.vector' in self.state:
            a = self.norm(a, f'{at}.bn3.bn')
            a = a * self.excite(self.state[f'{at}.bn3.vector'], f'{at}.bn3.attention_module')
        else:
            a = self.norm(a, f'{at}.bn3')
        if f'{at}.attention_module.fc1.weight' in self.state:
            a = a * self.excite(a, f'{at}.attention_module')
        if f'{at}.w' in self.state:
            w, b = self.state[f'{at}.w'], self.state[f'{at}.b']
            u = self.norm(a.mean((2, 3), keepdim=True) * w + b, f'{at}.bn4')
            a = a * (u * w + b).sigmoid()
        if f'{at}.downsample.0.weight' in self.state:
            x = self.norm(self.conv(x, f'{at}.downsample.0', stride), f'{at}.downsample.1')
        return a, x

    def wide(self, x, at, stride):
        a = F.relu(self.norm(x, f'{at}.bn1'))
        if f'{at}.convShortcut.weight' in self.state:
            x = self.conv(a, f'{at}.convShortcut', stride)
        a = F.relu(self.norm(self.conv(a, f'{at}.conv1', stride), f'{at}.bn2'))
        return self.norm(self.conv(a, f'{at}.conv2'), f'{at}.bn_additional'), x

    def resnext(self, x, at, stride):
        a = F.relu(self.norm(self.conv(x, f'{at}.conv_reduce'), f'{at}.bn_reduce'))
        a = F.relu(self.norm(self.conv(a, f'{at}.conv_conv', stride), f'{at}.bn'))
        if f'{at}.shortcut.shortcut_conv.weight' in self.state:
            x = self.norm(self.conv(x, f'{at}.shortcut.shortcut_conv', stride), f'{at}.shortcut.shortcut_bn')
        return self.norm(self.conv(a, f'{at}.conv_expand'), f'{at}.bn_expand'), x

    def __call__(self, x):
        if 'conv_1_3x3.weight' in self.state:
            x = F.relu(self.norm(self.conv(x, 'conv_1_3x3'), 'bn_1'))
            return self.linear(self.stages(x, 'stage_', self.resnext).mean((2, 3)), 'classifier')
        x = self.conv(x, 'conv1')
        if 'block1.ModuleList.0.conv1.weight' in self.state:
            x = F.relu(self.norm(self.stages(x, 'block', self.wide, relu=False), 'bn1'))
        else:
            x = self.stages(F.relu(self.norm(x, 'bn1')), 'layer', self.bottleneck)
        return self.linear(x.mean((2, 3)), 'fc')


def draw(shapes):
    torch.manual_seed(3)
    state = {}
    for key, shape in shapes.items():
        if key.endswith('tracked'):
            state[key] = torch.tensor(5)
        elif key.endswith('running_var') or (len(shape) == 1 and key.endswith('weight')):
            state[key] = torch.rand(shape) * 0.8 + 0.6
        else:
            fan = torch.Size(shape[1:]).numel() if len(shape) > 1 and shape[0] > 1 else 10
            state[key] = torch.randn(shape) * (2 / fan) ** 0.5
    return state


CASES = {
    'resnet164': resnet('plain'), 'resnet164_se': resnet('se'), 'resnet164_asr_se': resnet('asr'),
    'resnet164_se_asr_se': resnet('se_asr'), 'resnet83_ras': resnet('ram'), 'resnet164_dia_lstm': resnet('dia'),
    'wrn52_4_dia_lstm': wide(), 'resnext101_8x32d_dia_lstm': resnext()}


@pytest.fixture
def file(request, tmp_path):
    state = draw(CASES[request.param])
    path = tmp_path / 'model_best.pth.tar'
    torch.save({
        'epoch': 164, 'state_dict': {f'module.{key}': tensor for key, tensor in state.items()},
        'acc': torch.tensor(70.), 'best_acc': torch.tensor(74.),
        'optimizer': {'state': {}, 'param_groups': [{'lr': 0.001}]}}, path)
    return request.param, state, path


@pytest.mark.parametrize('file', CASES, indirect=True)
def test_timm_loads_them_and_the_logits_are_theirs(file):
    name, state, path = file
    model = timm.create_model(name, layers=(BLOCKS,) * 3, num_classes=CLASSES, checkpoint_path=path).double().eval()
    x = torch.randn(3, 3, 32, 32, dtype=torch.float64)
    expected = Theirs(state)(x)
    assert relative_error(expected, model(x)) < 1e-6
    plain = timm_asr.fold_asr(model)
    assert relative_error(expected, plain(x)) < 1e-6
    assert relative_error(expected, plain.reparameterize(fold_bn=True)(x)) < 1e-6


@pytest.mark.parametrize('file', ['resnet164_asr_se'], indirect=True)
def test_other_ways_in(file, tmp_path):
    name, state, path = file
    kwargs = {'layers': (BLOCKS,) * 3, 'num_classes': CLASSES}
    model = timm.create_model(name, **kwargs)
    load_checkpoint(model, str(path))
    overlay = timm.create_model(name, pretrained=True, **kwargs, pretrained_cfg_overlay={
        'file': str(path), 'num_classes': CLASSES})
    assert all(torch.equal(a, b) for a, b in zip(
        model.state_dict().values(), overlay.state_dict().values(), strict=True))
    # what is ours already is left alone, and a model of another kind is told so
    own = model.state_dict()
    assert our_names(own) is own
    with pytest.raises(RuntimeError, match='Unexpected key'):
        timm.create_model('resnet164_ras', **kwargs, checkpoint_path=path)
    # the commands, which find the number of classes in the file
    images = make_images(tmp_path / 'images', CLASSES, 1, 1, 32)
    words = ['--model', name, '--model-kwargs', f'layers=({BLOCKS},{BLOCKS},{BLOCKS})']
    validate.main([*words, '--checkpoint', str(path), '--data-dir', str(images), '--workers', '0', '--device', 'cpu'])
    export.main([str(path), *words, '--output', str(tmp_path / 'folder')])
    x = torch.randn(3, 3, 32, 32)
    folded = timm.create_model(f'local-dir:{tmp_path / "folder"}', pretrained=True).eval()
    assert relative_error(Theirs(state)(x.double()).float(), folded(x)) < 1e-5


@pytest.mark.parametrize(('name', 'depth'), [
    ('resnet83_ras', 9), ('resnet164_ras', 18), ('resnet245_ras', 27), ('resnet164_se_asr_se', 18),
    ('wrn52_4_dia_lstm', 8), ('resnext101_8x32d_dia_lstm', 11)])
def test_every_depth_of_theirs(name, depth, monkeypatch):
    monkeypatch.setattr(f'{__name__}.BLOCKS', depth)
    shapes = (wide() if 'wrn' in name else resnext() if 'next' in name
              else resnet('ram' if 'ras' in name else 'se_asr'))
    model = timm.create_model(name, num_classes=CLASSES, device='meta')
    theirs = our_names({key: torch.empty(shape, device='meta') for key, shape in shapes.items()})
    assert {key: t.shape for key, t in theirs.items()} == {key: t.shape for key, t in model.state_dict().items()}
