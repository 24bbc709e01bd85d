"""Feature integration: attention over a real loader, Algorithm 1 against its own statement, the heat map."""

import pytest
import timm
import torch
from helpers import randomize
from timm.data import create_loader

from timm_asr.analysis import measure_stripes
from timm_asr.analysis.feature_integration import collect_attention, feature_integration
from timm_asr.data import Digits

sklearn_ensemble = pytest.importorskip('sklearn.ensemble', reason='the extra `analysis` is not installed')


def loader(batch_size=16):
    return create_loader(Digits('validation'), (3, 16, 16), batch_size, use_prefetcher=False, num_workers=0)


def small(name, **kwargs):
    return randomize(timm.create_model(name, layers=(3, 2, 4), channels=(8, 8, 16), **kwargs))


@pytest.mark.parametrize('name', ['resnet20_dia_lstm', 'resnet20_dia_srm', 'resnet20_se', 'wrn52_4_dia_lstm_light'])
def test_attention_of_units_and_of_gates_in_the_blocks(name):
    model = small(name).train()
    attention = collect_attention(model, loader(), samples=40)
    assert {key: tuple(v.shape) for key, v in attention.items()} == {
        'layer1': (40, 3, 8), 'layer2': (40, 2, 8), 'layer3': (40, 4, 16)}
    assert model.training
    images = torch.cat([batch for _, (batch, _) in zip(range(3), loader(), strict=False)])[:40]
    own = {gate.name: gate.kept[1] for gate in measure_stripes(model, [images], keep=40).gates}
    expected = own[f'layer3.2.{"se" if name == "resnet20_se" else "own"}']
    assert torch.allclose(attention['layer3'][:, 2], expected, atol=1e-6)  # SE in training is one operation


def test_algorithm_1():
    h = torch.rand(60, 4, 3)
    ours = feature_integration(h, trees=12, seed=3)
    assert torch.isnan(ours[torch.ones(4, 4, dtype=torch.bool).triu()]).all()
    for j in range(1, 4):
        forest = sklearn_ensemble.RandomForestRegressor(n_estimators=12, random_state=3)
        gini = forest.fit(h[:, :j].reshape(60, j * 3).numpy(), h[:, j].numpy()).feature_importances_
        res = []
        total = 0.0
        for k in range(j * 3):
            total += gini[k]
            if k % 3 == 2:
                res.append(total)
                total = 0.0
        assert torch.allclose(ours[j, :j], torch.tensor(res, dtype=torch.float64) / max(res))
        assert ours[j, :j].max() == 1


@pytest.mark.parametrize('channels', [None, 2, 1])
def test_it_finds_the_block_that_matters(channels):
    h = torch.rand(200, 5, 4)
    h[:, 3] = h[:, 1] ** 2
    h[:, 4] = 0.5 * h[:, 0] + 0.01 * h[:, 4]
    importance = feature_integration(h, trees=10, channels=channels)
    assert importance[3, :3].argmax() == 1
    assert importance[4, :4].argmax() == 0
    assert importance[3, [0, 2]].max() < 0.2
    assert torch.equal(importance.nan_to_num(), feature_integration(h, trees=10, channels=channels).nan_to_num())


def test_stages_of_timm():
    """SE of EfficientNet stands on expanded channels, which the first block of a stage has fewer of."""
    expected = {
        'efficientnet_b0': {'blocks.0': 1, **{f'blocks.{n} without its first 1': blocks for n, blocks in enumerate(
            (1, 1, 2, 2, 3), 1)}, 'blocks.6': 1},
        'regnety_002': {f's{n}': blocks for n, blocks in enumerate((1, 1, 4, 7), 1)}}
    for name, stages in expected.items():
        attention = collect_attention(timm.create_model(name, num_classes=5), [torch.randn(3, 3, 64, 64)])
        assert {stage: weights.shape[1] for stage, weights in attention.items()} == stages


def test_what_it_cannot_learn_from():
    with pytest.raises(ValueError, match='1 samples of 3 blocks tell nothing'):
        feature_integration(torch.rand(1, 3, 4))
    with pytest.raises(ValueError, match='is called by several blocks'):
        collect_attention(small('resnet20_dia_cbam'), loader(), samples=4)
