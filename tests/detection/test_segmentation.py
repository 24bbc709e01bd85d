"""segmentation_models.pytorch over this package's encoders: folded or made ready, they give the same masks."""

import copy

import pytest
import torch
from helpers import asr_layers, randomize, relative_error
from torch import nn

import timm_asr

smp = pytest.importorskip('segmentation_models_pytorch', reason='the extra `segmentation` is not installed')

DECODERS = {
    'Unet': {'decoder_channels': (32, 16, 16, 8, 8)}, 'FPN': {'decoder_pyramid_channels': 32,
                                                              'decoder_segmentation_channels': 32},
    'DeepLabV3Plus': {'decoder_channels': 16}}


def build(kind, encoder, seed=0):
    torch.manual_seed(seed)
    model = getattr(smp, kind)(f'tu-{encoder}', encoder_weights=None, classes=3, **DECODERS[kind])
    return randomize(model.double(), seed).eval()


@torch.no_grad()
def masks(model):
    return model(torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1), dtype=torch.float64))


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
