"""Regions are pooled from the nearest level, whatever the strides."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torchvision.ops import MultiScaleRoIAlign, roi_align

from timm_asr.detection import TimmPyramid, create_detector
from timm_asr.detection.create import region_pool

SIZE = 512


def boxes():
    corners = torch.rand(200, 2, generator=torch.Generator().manual_seed(0)) * SIZE / 2
    sides = torch.logspace(0.5, math.log10(SIZE / 2), 200)
    return torch.cat([corners, corners + sides[:, None]], 1)


def maps(strides):
    generator = torch.Generator().manual_seed(1)
    return {str(n): torch.rand(1, 3, SIZE // s, SIZE // s, generator=generator) for n, s in enumerate(strides)}


def test_the_usual_strides_are_pooled_as_torchvision_does():
    features = maps((4, 8, 16, 32))
    theirs = MultiScaleRoIAlign(list(features), 7, 2)
    ours = region_pool((4, 8, 16, 32), 7)
    what = features, [boxes()], [(SIZE, SIZE)]
    assert torch.equal(ours(*what), theirs(*what))


@pytest.mark.parametrize(('strides', 'levels'), [
    ((8, 32), {30: 0, 150: 0, 300: 0, 500: 1}),  # 300 belongs to the stride 16, between both: the finer has it
    ((4, 16), {30: 0, 150: 0, 300: 1, 500: 1}),
    ((14,), {30: 0, 500: 0}),
])
def test_other_strides(strides, levels):
    features, pool = maps(strides), region_pool(strides, 2)
    for side, level in levels.items():
        box = torch.tensor([[4.0, 4, 4 + side, 4 + side]])
        wanted = roi_align(features[str(level)], [box], 2, 1 / strides[level], 2)
        assert torch.equal(pool(features, [box], [(SIZE, SIZE)]), wanted)


class Body(nn.Module):
    feature_info = SimpleNamespace(reduction=lambda: [2, 4, 8], channels=lambda: [1, 2, 3])

    def forward(self, x):
        return [x.new_ones(1, c, 32 // s, 32 // s) for c, s in zip((1, 2, 3), (2, 4, 8), strict=True)]


def test_strides_in_any_order():
    pyramid = TimmPyramid(Body(), (8, 2, 4, 8), 16)
    assert pyramid.strides == (2, 4, 8)
    assert [m.shape[-1] for m in pyramid(torch.rand(1, 3, 32, 32)).values()] == [16, 8, 4]


def test_a_detector_pools_at_its_strides():
    detector = create_detector('maskrcnn', 'resnet20', 3, fpn_channels=8, strides=(4, 1), size_divisible=8)
    for pool in (detector.roi_heads.box_roi_pool, detector.roi_heads.mask_roi_pool):
        assert pool.scales == [1, 1 / 4]
    assert detector.transform.size_divisible == 8
