"""Grad-CAM: against its definition, CNNs, transformers, averages."""

import pytest
import timm
import torch
import torch.nn.functional as F

from timm_asr.analysis.gradcam import average_cam, grad_cam, look_layer

pytest.importorskip('pytorch_grad_cam', reason='the extra `gradcam` is not installed')


def by_hand(features, logits, targets, size):
    """ReLU(sum_c mean(d logit / d a_c) a_c), stretched to 0 to 1 in the size of the images."""
    gradient, = torch.autograd.grad(logits.gather(1, targets[:, None]).sum(), features)
    cam = (gradient.mean((2, 3), keepdim=True) * features).sum(1, keepdim=True).relu()
    return F.interpolate(cam, size, mode='bilinear')[:, 0].detach()


def test_its_definition():
    model = timm.create_model('resnet20_se', num_classes=5)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    x, targets = torch.randn(5, 3, 32, 32), torch.arange(5)
    maps, scores = grad_cam(model, x, targets)
    assert model.training
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    seen = []
    model.layer3.register_forward_hook(lambda m, i, o: seen.append(o))
    logits = model.eval()(x)
    assert torch.allclose(scores, logits.softmax(1)[torch.arange(5), targets], atol=1e-6)
    expected = by_hand(seen[0], logits, targets, (32, 32))
    assert maps.shape == expected.shape
    assert maps.min() >= 0
    assert maps.max() <= 1
    assert (expected.std((1, 2)) > 0).sum() > 1
    for found, wanted in zip(maps, expected, strict=True):
        if wanted.std() == 0:  # nothing speaks for this class
            assert found.std() == 0
            continue
        assert torch.corrcoef(torch.stack([found.flatten(), wanted.flatten()]))[0, 1] > 0.999
    predicted = grad_cam(model, x)
    assert torch.allclose(predicted[1], logits.softmax(1).amax(1), atol=1e-6)


@pytest.mark.parametrize(('name', 'size', 'layer'), [
    ('resnet20_dia_lstm', 32, 'layer3'), ('efficientnet_b0', 64, 'blocks.6'), ('repvgg_a0_asr_se', 64, 'final_conv'),
    ('vit_tiny_patch16_224', 224, 'blocks.11.norm1'), ('swin_tiny_patch4_window7_224', 224, 'layers.3')])
def test_layers_of_many_networks(name, size, layer):
    model = timm.create_model(name, num_classes=3)
    assert look_layer(model) == layer
    maps, scores = grad_cam(model, torch.randn(2, 3, size, size), torch.tensor([0, 1]))
    assert maps.shape == (2, size, size)
    assert maps.isfinite().all()
    assert maps.std() > 0
    assert ((scores > 0) & (scores < 1)).all()


def test_tokens_stand_where_their_patches_are():
    """A transformer whose one bright patch alone reaches the classifier is said to look there."""
    model = timm.create_model('vit_tiny_patch16_224', num_classes=2, img_size=(64, 96), global_pool='avg').eval()
    x = torch.zeros(1, 3, 64, 96)
    x[:, :, 16:32, 64:80] = 50.0
    seen = {}
    model.blocks[11].norm1.register_forward_hook(lambda m, i, o: (o.retain_grad(), seen.update(o=o))[1])
    model(x)[0, 0].backward()
    o = seen['o']
    cam = ((o.grad[:, 1:].mean(1, keepdim=True) * o[:, 1:]).sum(2)).relu().view(4, 6).detach()
    maps, _ = grad_cam(model, x, torch.tensor([0]))
    small = F.adaptive_avg_pool2d(maps[:, None], (4, 6))[0, 0]
    assert torch.corrcoef(torch.stack([small.flatten(), cam.flatten()]))[0, 1] > 0.9


def test_the_average():
    model = timm.create_model('resnet20', num_classes=5)
    x, labels = torch.randn(6, 3, 32, 32), torch.arange(6) % 5
    maps, scores = grad_cam(model, x[:5], labels[:5])
    found = average_cam(model, list(zip(x.split(4), labels.split(4), strict=True)), samples=5)
    assert found.images == 5
    assert torch.allclose(found.map, maps.mean(0), atol=1e-5)
    assert torch.allclose(found.image, x[:5].mean(0), atol=1e-6)
    assert found.score == pytest.approx(scores.mean().item(), abs=1e-6)


def test_errors():
    model = timm.create_model('resnet20', num_classes=5)
    with pytest.raises(ValueError, match="has no module 'layer9'"):
        grad_cam(model, torch.randn(1, 3, 32, 32), layer='layer9')
    with pytest.raises(ValueError, match='no feature_info that names its stages; name a layer'):
        grad_cam(torch.nn.Sequential(torch.nn.Conv2d(3, 2, 3)), torch.randn(1, 3, 8, 8))
