"""A small network with SE, trained on real digits: what the report says against figures worked out without it."""

import copy

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from timm.data import create_loader

import timm_asr
from timm_asr.data import Digits


def digits(split, **kwargs):
    return create_loader(Digits(split), (3, 16, 16), 64, use_prefetcher=False, num_workers=0, **kwargs)


@pytest.fixture(scope='module')
def trained():
    torch.manual_seed(0)
    model = timm.create_model('resnet20_se', layers=(2, 2, 2))
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9, weight_decay=1e-4)
    for _ in range(4):
        for images, labels in digits('train', is_training=True, no_aug=True):
            loss = F.cross_entropy(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model.eval()


@torch.no_grad()
def whole_split(model):
    """All images at once: logits, labels and, of each gate, sigmoid(W2 relu(W1 mean(x) + b1) + b2) in numpy."""
    images, labels = (torch.cat(parts) for parts in zip(*digits('validation'), strict=True))
    inputs = {}
    handles = [
        module.register_forward_pre_hook(lambda m, args, name=name: inputs.update({name: args[0].numpy()}))
        for name, module in model.named_modules() if name.endswith('.se')]
    logits = model(images)
    for handle in handles:
        handle.remove()
    weights = {}
    for name, x in inputs.items():
        gate = model.get_submodule(name)
        w1, b1, w2, b2 = (p.detach().numpy().astype(np.float64).squeeze() for p in (
            gate.fc1.weight, gate.fc1.bias, gate.fc2.weight, gate.fc2.bias))
        hidden = np.maximum(x.astype(np.float64).mean((2, 3)) @ np.atleast_2d(w1).T + b1, 0)
        weights[name] = 1 / (1 + np.exp(-(hidden @ w2.reshape(len(b2), -1).T + b2)))
    return logits, labels, weights


@pytest.mark.parametrize('recalibrate', [False, True])
def test_a_trained_network(trained, recalibrate):
    before, labels, weights = whole_split(trained)
    frozen = copy.deepcopy(trained)
    report = timm_asr.freeze_attention(frozen, digits('validation'), recalibrate_bn=recalibrate)

    assert [gate.name for gate in report.gates] == list(weights)
    for gate in report.gates:
        v = weights[gate.name]
        assert np.allclose(gate.mean, v.mean(0), atol=1e-5)
        assert np.allclose(gate.std, v.std(0), atol=1e-5)
        assert gate.frozen
    assert max(gate.mean_std for gate in report.gates) > 0.01

    plain = timm.create_model('resnet20', layers=(2, 2, 2)).eval()
    plain.load_state_dict(frozen.state_dict(), strict=True)
    after, _, _ = whole_split(plain)
    right = [100 * (y.argmax(1) == labels).float().mean().item() for y in (before, after)]
    assert report.change.top1 == pytest.approx(right)
    assert right[0] > 80
    assert right[1] > 50
    assert report.change.mean == pytest.approx((after - before).abs().mean().item(), rel=1e-3)
    assert report.change.largest == pytest.approx((after - before).abs().max().item(), rel=1e-3)
    assert report.change.same_top1 == pytest.approx(
        100 * (after.argmax(1) == before.argmax(1)).float().mean().item())
    assert report.images == report.change.labelled == 359
    if not recalibrate:  # the plain network with each branch weighed by the mean, step by step
        literal = copy.deepcopy(trained)
        for name, v in weights.items():
            mean = torch.from_numpy(v.mean(0)).float().view(1, -1, 1, 1)
            literal.get_submodule(name).forward = lambda x, mean=mean: x * mean
        with torch.no_grad():
            expected = literal(torch.cat([images for images, _ in digits('validation')]))
        assert torch.allclose(after, expected, atol=1e-3)


def test_a_threshold_keeps_the_accuracy(trained):
    """Leaving the gates that vary most moves the logits less than freezing all."""
    def freeze(**kwargs):
        return timm_asr.freeze_attention(copy.deepcopy(trained), digits('train'), samples=320, **kwargs)

    stds = sorted(gate.mean_std for gate in freeze().gates)
    moved = [freeze(threshold=threshold).change.mean for threshold in (stds[0] * 0.99, stds[2], stds[-1])]
    assert moved[0] == 0
    assert moved[0] < moved[1] < moved[2]
