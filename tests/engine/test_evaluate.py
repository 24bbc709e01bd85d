"""Evaluation: metrics of known outputs, each image counted once."""

import pytest
import torch
from timm.data.distributed_sampler import OrderedDistributedSampler
from torch import nn

from timm_asr.engine import validation
from timm_asr.engine.evaluate import evaluate


def test_metrics():
    # Class 2 is never predicted, class 3 never there; precision, recall and F1 of classes 0 and 1 all differ.
    target, guess = [0, 0, 0, 0, 1, 1, 2, 2], [0, 0, 0, 1, 1, 3, 0, 0]
    pairs = torch.tensor([target, guess])
    precision, recall = [3 / 5, 1 / 2, 0, 0], [3 / 4, 1 / 2, 0, 0]
    f1 = [2 * 3 / (4 + 5), 1 / 2, 0, 0]
    for average, weights in (('macro', [1 / 4] * 4), ('weighted', [4 / 8, 2 / 8, 2 / 8, 0])):
        scores = validation.scores(pairs, average)
        for key, values in (('precision', precision), ('recall', recall), ('f1_score', f1)):
            want = 100 * sum(w * v for w, v in zip(weights, values, strict=True))
            assert scores[f'{average}_{key}'] == pytest.approx(want, abs=1e-4)
        assert len(set(scores.values())) == 3
    assert validation.scores(pairs, 'micro') == {
        'micro_precision': 50.0, 'micro_recall': 50.0, 'micro_f1_score': 50.0}
    assert validation.by_class(pairs) == [
        {'class': 0, 'images': 4, 'top1': 75.0}, {'class': 1, 'images': 2, 'top1': 50.0},
        {'class': 2, 'images': 2, 'top1': 0.0}]


def test_the_padding_of_the_last_batch_is_not_counted():
    generator = torch.Generator().manual_seed(3)
    images, target = torch.randn(7, 8, 1, 1, generator=generator), torch.randint(8, (7,), generator=generator)
    data = torch.utils.data.TensorDataset(images, target)

    def evaluated(sampler=None):
        loader = torch.utils.data.DataLoader(data, batch_size=2, sampler=sampler)
        return evaluate(nn.Flatten(), loader, nn.CrossEntropyLoss(), device=torch.device('cpu'))

    whole = evaluated()
    assert whole['count'] == 7
    assert whole['loss'] == pytest.approx(nn.functional.cross_entropy(images.flatten(1), target).item(), rel=1e-6)
    parts = [evaluated(OrderedDistributedSampler(data, num_replicas=4, rank=rank)) for rank in range(4)]
    assert [part['count'] for part in parts] == [2, 2, 2, 1]
    for key in ('loss', 'top1', 'top5'):
        assert sum(part[key] * part['count'] for part in parts) / 7 == pytest.approx(whole[key], rel=1e-6)
