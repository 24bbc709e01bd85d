"""What freezing reports, and what it refuses."""

import copy
import json
import sys

import pytest
import torch
from freeze_helpers import CIFAR, build, loader

import timm_asr
from timm_asr.figures import plot_frozen


@pytest.mark.parametrize('where', ['images', 'held out', 'weights', 'statistics', 'gate'])
def test_what_is_not_finite_is_refused(where):
    model = build('resnet20_se', **CIFAR)
    x, y = torch.randn(2, 4, 3, 16, 16, dtype=torch.float64)
    if where in ('images', 'held out'):
        (x if where == 'images' else y)[2, 0, 3, 3] = float('nan')
    elif where == 'weights':
        model.layer2[0].conv1.weight.data[0, 0, 0, 0] = float('inf')
    elif where == 'statistics':
        model.bn1.running_var[1] = float('nan')
    else:  # all numbers that go in are finite
        model.layer1[0].se.excite = lambda u: u * torch.inf
    state = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match='not finite'):
        timm_asr.freeze_attention(model, [x], eval_loader=[y])
    assert list(model.state_dict()) == list(state)
    assert all(torch.equal(state[key].nan_to_num(), value.nan_to_num()) for key, value in model.state_dict().items())


def test_report_and_plot(tmp_path, capsys):
    model = build('resnet20_se', **CIFAR)
    x = torch.randn(10, 3, 16, 16, dtype=torch.float64)
    report = timm_asr.freeze_attention(model, loader(x, 5), samples=7, threshold=0.05)
    assert report.images == report.change.images == 7
    text = str(report)
    assert f'{len(report.frozen)} of 4 gates replaced by their mean weights over 7 images' in text
    assert 'layer3.0.se  SE ' in text
    assert 'Compared on 7 images, the same' in text
    assert 'top-1 after' in text
    read = json.loads(json.dumps(report.as_dict()))
    assert [gate['gate'] for gate in read['gates']] == ['layer1.0.se', 'layer1.1.se', 'layer2.0.se', 'layer3.0.se']
    assert read['logit_change_largest'] == report.change.largest
    assert read['parameters_after'] < read['parameters_before']
    pytest.importorskip('matplotlib')
    from PIL import Image
    plot_frozen(report.gates, tmp_path / 'gates.png', 'title')
    assert len(Image.open(tmp_path / 'gates.png').convert('RGB').getcolors(1 << 20)) > 50
    assert capsys.readouterr() == ('', '')


def test_progress_on_a_terminal(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, 'isatty', lambda: True)
    x = torch.randn(4, 3, 16, 16)
    timm_asr.freeze_attention(build('resnet20_se', **CIFAR), [x, x], recalibrate_bn=True)
    shown = capsys.readouterr().err
    assert all(f'{what}: ' in shown for what in ('measuring gates', 'BatchNorm statistics', 'comparing'))
    timm_asr.freeze_attention(build('resnet20_se', **CIFAR), [x, x], progress=False)
    assert not capsys.readouterr().err


X = torch.zeros(2, 3, 16, 16)


@pytest.mark.parametrize(('make', 'batches', 'kwargs', 'error', 'sentence'), [
    ('resnet20', [X], {}, ValueError, 'No channel gate (SE, ECA, ...) is inside this ASRCifarResNet'),
    ('resnet20_sge', [X], {}, ValueError, "'layer1.0.se' (a SGE) is none, since it weighs positions too"),
    ('resnet20_dia_se', [X], {}, ValueError,
     "'layer1.0.unit' (a SharedGate) is none, since the blocks of a stage share"),
    ('resnet20_se', [], {}, ValueError, 'The loader gives no images.'),
    ('resnet20_se', [X[:, :1]], {}, RuntimeError, 'to have 3 channels, but got 1'),
    ('resnet20_se', iter([X]), {}, TypeError, 'The loader is a list_iterator, and the images are read several times'),
    ('resnet20_se', [{'image': X}], {}, TypeError, 'The loader gives batches of type dict'),
    ('resnet20_se', [X], {'threshold': -1}, ValueError, 'threshold is -1; it is a standard deviation, 0 or more.'),
    ('resnet20_se', [X], {'samples': 0}, ValueError, 'samples is 0; it is a number of images, 1 or more.'),
    ('reparameterized', [X], {}, ValueError, 'freeze_attention goes before reparameterize()')])
def test_bad_input(make, batches, kwargs, error, sentence):
    kind = 'resnet20_se' if make == 'reparameterized' else make
    model = build(kind, **CIFAR)
    if kind != make:
        model.eval().reparameterize()
    state = copy.deepcopy(model.state_dict())
    with pytest.raises(error) as caught:
        timm_asr.freeze_attention(model, batches, **kwargs)
    assert sentence in str(caught.value)
    assert '\n' not in str(caught.value)
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())


def test_an_error_on_the_way_leaves_the_model_as_it_was():
    model = build('resnet20_se', **CIFAR)
    state = copy.deepcopy(model.state_dict())

    class Breaks:
        count = 0

        def __iter__(self):
            self.count += 1
            yield torch.randn(2, 3, 16, 16)
            if self.count == 3:
                raise OSError('the disk is gone')

    with pytest.raises(OSError, match='the disk is gone'):
        timm_asr.freeze_attention(model, Breaks(), recalibrate_bn=True)
    assert list(model.state_dict()) == list(state)
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())
