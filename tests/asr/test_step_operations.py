"""What ASR adds to the operations of a training step: what an accelerator would have to launch."""

import pytest
import timm
import torch
from counting import count_step

import timm_asr

#: Operations of a training step over those of the plain network, as they are today; none may exceed 1.15.
RATIOS = {
    'resnet164_asr_se': 1.04, 'resnet164_asr_ie': 1.03, 'resnet164_asr_srm': 1.04, 'resnet164_asr_eca': 1.02,
    'resnet164_asr_spa': 1.051, 'resnet50_asr_se': 1.14, 'vit_small_asr_se': 1.13, 'vit_small_asr_eca': 1.09}


@pytest.mark.parametrize('name', RATIOS)
def test_a_training_step_takes_hardly_more_operations_than_plain(name):
    size = 224 if name.startswith('vit') else 32
    x = torch.randn(2, 3, size, size, device='meta')
    plain, ours = (count_step(timm.create_model(n, num_classes=10, device='meta'), x).total
                   for n in (timm_asr.plain_architecture(name), name))
    assert ours / plain <= RATIOS[name]
