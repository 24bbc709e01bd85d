"""The one comparison of two models' outputs."""

import math

import pytest
import torch
from torch import nn

from timm_asr.inference.compare import Comparison, close, relative_difference, same_function


def test_figures_by_hand():
    before = torch.tensor([[4.0, 1, 0, 0, 0, 0], [0, 2, 1, 0, 0, 0], [0, 0, 3, 2.5, 0, 0]])
    after = before.clone()
    after[2, 3] = 3.2  # a near tie that flips: both logits may be off by 0.1 * 3
    after[1] = torch.tensor([0, -1, 1.0, 0.9, 0.8, 0.7])  # a clear prediction that changes
    found = Comparison(allowed=0.1)
    found.update(before[:1], after[:1], torch.tensor([0]))
    found.update(before[1:], after[1:], torch.tensor([1, 2]))
    assert (found.images, found.labelled, found.flipped) == (3, 3, 1)
    assert (found.largest_logit, found.largest, found.relative) == (4, 3, 0.75)
    assert found.mean == pytest.approx((after - before).abs().mean().item())
    assert found.same_top1 == pytest.approx(100 / 3)
    assert found.top1 == pytest.approx((100, 100 / 3))
    assert found.top5 == pytest.approx((100, 200 / 3))
    assert not found.same


def test_no_labels_and_no_logits_like_these():
    found = Comparison()
    x = torch.randn(2, 3)
    found.update(x, x)
    assert (found.top1, found.top5, found.same, found.same_top1) == (None, None, True, 100)
    with pytest.raises(ValueError, match=r'the output is \(2, 1\) where it was \(2, 3\)'):
        found.update(x, x[:, :1])


def test_a_nan_is_no_agreement():
    x = torch.ones(2, 3)
    found = Comparison(allowed=1.0)
    found.update(x, x * math.nan)
    found.update(x, x)
    assert found.largest == math.inf
    assert not found.same
    assert relative_difference(x, x * math.nan) == math.inf
    assert not close(x, x * math.nan)
    assert not close(x, x[:1])
    assert close(x, x + 1e-5)


class Cancels(nn.Module):
    def forward(self, x):
        return x + 1e5 - 1e5


def test_same_function_asks_float64_where_float32_is_not_enough():
    assert 1e-4 < same_function(Cancels(), nn.Identity(), torch.randn(2, 4)) < 0.1
    model, other = nn.Linear(4, 3), nn.Linear(4, 3)
    other.load_state_dict(model.state_dict())
    images = torch.randn(2, 4)
    assert same_function(model, other, images) == 0
    with torch.no_grad():
        other.bias += 1
    with pytest.raises(ValueError, match='is not the same function: its logits differ by'):
        same_function(model, other, images)
    with pytest.raises(ValueError, match='The model returns a tuple'):
        same_function(lambda x: (x,), other, images)
