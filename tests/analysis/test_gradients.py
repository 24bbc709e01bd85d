"""Gradients at the ends of stages, against autograd on the whole batch."""

import pytest
import timm
import torch
import torch.nn.functional as F
from freeze_helpers import CIFAR

from timm_asr.analysis.gradients import StageGradients, stage_gradients


@pytest.mark.parametrize('training', [True, False])
def test_by_hand(training):
    model = timm.create_model('resnet20_dia_lstm', no_skip=True, **CIFAR)
    x, labels = torch.randn(6, 3, 16, 16), torch.arange(6) % 5
    state = {key: value.clone() for key, value in model.state_dict().items()}
    found = stage_gradients(model, [(x[:4], labels[:4]), (x[4:], labels[4:])], training=training)
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())
    assert [stage.stage for stage in found] == ['layer1', 'layer2', 'layer3']
    outputs, gradients = {}, {name: [] for name in ('layer1', 'layer2', 'layer3')}
    for name in gradients:
        model.get_submodule(name).register_forward_hook(lambda m, i, o, name=name: outputs.update({name: o}))
    model.train(training)
    for part, target in ((x[:4], labels[:4]), (x[4:], labels[4:])):
        loss = F.cross_entropy(model(part), target, reduction='sum')
        for name, gradient in zip(outputs, torch.autograd.grad(loss, list(outputs.values())), strict=True):
            gradients[name].append(gradient.abs().flatten())
    for stage in found:
        values = torch.cat(gradients[stage.stage])
        assert stage.values.count == len(values) == stage.counts.sum()
        assert stage.mean == pytest.approx(values.mean().item(), rel=1e-4)
        assert stage.std == pytest.approx(values.std(correction=0).item(), rel=1e-3)
        assert stage.quantile(0.5) == pytest.approx(values.median().item(), rel=0.3)


def test_zeros_and_giants_are_counted():
    stage = StageGradients('s')
    stage.update(torch.tensor([0.0, 1e-30, 1e9, -1.0]))
    assert stage.counts.sum() == 4
    assert stage.counts[0] == 2
    assert stage.counts[-1] == 1


def test_labels_are_needed():
    with pytest.raises(ValueError, match='no labels, and the gradient is that of a loss'):
        stage_gradients(timm.create_model('resnet20', **CIFAR), [torch.randn(2, 3, 16, 16)])
