"""segmentation_models.pytorch over this package's encoders: trained a few steps, made ready, the same masks."""

import copy
import json

import pytest
import torch
import torch.nn.functional as F
from detection_helpers import make_coco
from helpers import asr_layers, randomize, relative_error
from PIL import Image
from timm.layers import freeze_batch_norm_2d
from torch import nn
from torchvision.ops.misc import FrozenBatchNorm2d
from torchvision.transforms.functional import to_tensor

import timm_asr
from timm_asr.inference.block import InferenceBlock

smp = pytest.importorskip('segmentation_models_pytorch', reason='the extra `segmentation` is not installed')

DECODERS = {
    'Unet': {'decoder_channels': (32, 16, 16, 8, 8)}, 'FPN': {'decoder_pyramid_channels': 32,
                                                              'decoder_segmentation_channels': 32},
    'DeepLabV3Plus': {'decoder_channels': 16}}


def build(kind, encoder, seed=0):
    torch.manual_seed(seed)
    model = getattr(smp, kind)(f'tu-{encoder}', encoder_weights=None, classes=3, **DECODERS[kind])
    return randomize(model.double(), seed).eval()


def images():
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@torch.no_grad()
def masks(model):
    return model(images())


@pytest.mark.parametrize('kind', list(DECODERS))
def test_made_ready_it_gives_the_same_masks(kind):
    model = build(kind, 'resnet18_asr_se')
    before = masks(model)
    assert len(asr_layers(model)) == 8
    plain = build(kind, 'resnet18', seed=5)
    plain.load_state_dict(timm_asr.fold_asr(copy.deepcopy(model)).state_dict(), strict=True)
    assert relative_error(before, masks(plain)) < 1e-12
    ready = timm_asr.reparameterize(copy.deepcopy(model))
    assert not timm_asr.has_asr(ready)
    assert relative_error(before, masks(ready)) < 1e-12
    assert relative_error(before, masks(timm_asr.reparameterize(model, fold_bn=True))) < 1e-10
    assert not any(isinstance(m, nn.BatchNorm2d) for m in model.encoder.modules())


def test_gates_in_the_blocks():
    model = build('Unet', 'resnet18_se')
    before = masks(model)
    frozen = copy.deepcopy(model)
    ready = timm_asr.reparameterize(model)
    assert sum(isinstance(m, InferenceBlock) for m in ready.modules()) == 8
    assert relative_error(before, masks(ready)) < 1e-12
    report = timm_asr.freeze_attention(frozen, [images()])
    assert len(report.frozen) == 8
    build('Unet', 'resnet18', seed=5).load_state_dict(frozen.state_dict(), strict=True)


def test_frozen_norms_keep_the_attention():
    model = freeze_batch_norm_2d(build('Unet', 'resnet18_asr_eca'))
    sites = asr_layers(model)
    assert len(sites) == 8
    assert all(type(site.layer) is FrozenBatchNorm2d for site in sites)
    before = masks(model)
    model.train()(images()).square().mean().backward()
    assert all(site.vectors[0].psi.grad.abs().sum() > 0 for site in sites)
    assert relative_error(before, masks(timm_asr.reparameterize(model.eval()))) < 1e-12
    assert not timm_asr.has_asr(model)


def test_trained_a_few_steps(tmp_path):
    """Digits against background, on the images of the small COCO set."""
    folder, file = make_coco(tmp_path, count=5)
    content = json.loads(file.read_text())
    batch, wanted = [], torch.zeros(4, 64, 64, dtype=torch.long)
    for n, image in enumerate(content['images'][:4]):
        batch.append(to_tensor(Image.open(folder / image['file_name']))[:, :, :64])
        for annotation in content['annotations']:
            if annotation['image_id'] == image['id']:
                x, y, w, h = annotation['bbox']
                wanted[n, y:y + h, x:x + w] = annotation['category_id']
    x = torch.stack(batch)
    model = smp.Unet('tu-resnet18_asr_se', encoder_weights=None, classes=4, **DECODERS['Unet'])
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3)
    psi = [site.vectors[0].psi.clone() for site in asr_layers(model)]
    losses = []
    for _ in range(12):
        loss = F.cross_entropy(model(x), wanted)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
    assert all(not torch.equal(a, site.vectors[0].psi) for a, site in zip(psi, asr_layers(model), strict=True))
    model.eval()
    with torch.no_grad():
        before = model(x)
        after = timm_asr.reparameterize(model)(x)
    assert relative_error(before, after) < 1e-5
    assert (before.argmax(1) == after.argmax(1)).float().mean() > 0.999
