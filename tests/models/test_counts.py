"""Parameters in millions as the papers print them, to the two decimals printed."""

import pytest
import timm
from torch import nn

from timm_asr import reparameterize
from timm_asr.gates.dia_lstm import SharedLSTM

R164, WRN, NEXT = 'resnet164', 'wrn52_4', 'resnext101_8x32d'
# Model, keywords, and what is printed for CIFAR-10 and CIFAR-100; None where nothing is. docs/readings.md has the
# figures that no reading meets.
PRINTED = {
    # ASR paper, Tables 1 and 3
    'resnet83': ({}, 0.87, 0.89), R164: ({}, 1.70, 1.73), 'resnet245': ({}, 2.54, 2.56), 'resnet326': ({}, 3.37, 3.40),
    f'{R164}_cbam': ({}, 1.90, 1.93), f'{R164}_eca': ({}, 1.70, 1.73), f'{R164}_srm': ({}, 1.74, 1.76),
    f'{R164}_ie': ({}, 1.72, 1.74), f'{R164}_spa': ({}, 3.83, 3.86),
    # DIA paper, Table 4
    f'{R164}_dia_lstm': ({}, 1.92, 1.95), f'{R164}_dia_lstm_light': ({}, 1.73, 1.75), WRN: ({}, 12.05, 12.07),
    f'{WRN}_se': ({}, 12.40, 12.42), f'{WRN}_eca': ({}, 12.05, 12.07), f'{WRN}_cbam': ({}, 12.14, 12.16),
    f'{WRN}_srm': ({}, 12.06, 12.09), f'{WRN}_spa': ({}, 13.00, 13.02), f'{WRN}_dia_lstm': ({}, 12.28, 12.30),
    f'{WRN}_dia_lstm_light': ({}, 12.08, 12.11), NEXT: ({}, 32.09, 32.14),
    f'{NEXT}_se': ({'se_bias': False}, 33.98, 34.03), f'{NEXT}_se with biases': ({}, 34.00, 34.04),
    f'{NEXT}_eca': ({}, 32.09, 32.14), f'{NEXT}_cbam': ({}, None, 32.61), f'{NEXT}_srm': ({}, 32.13, 32.18),
    f'{NEXT}_spa': ({}, None, 52.95), f'{NEXT}_dia_lstm': ({}, 32.96, 33.01),
    f'{NEXT}_dia_lstm_light': ({}, 32.19, 32.24), f'{R164}_sem': ({}, 1.95, 1.97),
    'resnet83_sem': ({}, 0.99, 1.01),  # RAS paper, Table 1
    f'{WRN}_sem': ({}, 12.42, 12.44), f'{NEXT}_sem': ({}, None, 34.09), f'{R164}_spem': ({}, 1.74, 1.76),
    f'{WRN}_spem': ({}, 12.06, 12.09), f'{NEXT}_spem': ({}, 32.13, 32.18),
    # Tables 10, 11, 12, 13
    f'{R164}_dia_lstm r=1': ({'rd_ratio': 1.0}, None, 2.59), f'{R164}_dia_lstm r=8': ({'rd_ratio': 1 / 8}, None, 1.84),
    f'{R164}_dia_lstm r=16': ({'rd_ratio': 1 / 16}, None, 1.78), 'resnet83_dia_lstm': ({}, 1.09, 1.11),
    'resnet245_dia_lstm': ({}, None, 2.78), 'resnet407_dia_lstm': ({}, None, 4.45), 'resnet83_se': ({}, 0.97, 0.99),
    f'{R164}_se': ({}, 1.91, 1.93), 'resnet245_se': ({}, None, 2.87), 'resnet407_se': ({}, None, 4.74),
    f'{R164}_dia_lstm 3 cells': ({'dia_cells': 3}, None, 3.33),
    f'{R164}_dia_lstm tanh': ({'dia_act': 'tanh'}, None, 1.95),
    f'{R164}_dia_lstm without stage 1': ({'dia_stages': (2, 3)}, None, 1.94),
    f'{R164}_dia_lstm without stage 2': ({'dia_stages': (1, 3)}, None, 1.90),
    f'{R164}_dia_lstm without stage 3': ({'dia_stages': (1, 2)}, None, 1.78),
    # Table 14
    **{f'resnet{d} no norm': ({'no_norm': True}, None, n)
       for d, n in ((83, 0.88), (164, 1.70), (245, 2.53), (326, 3.35))},
    **{f'resnet{d}_se no norm': ({'no_norm': True}, None, n)
       for d, n in ((83, 0.98), (164, 1.91), (245, 2.83), (326, 3.75))},
    **{f'resnet{d}_dia_lstm no norm': ({'no_norm': True, 'rd_ratio': 1 / 16}, None, n)
       for d, n in ((83, 0.94), (164, 1.76), (245, 2.58), (326, 3.41))},
    f'{R164}_sge': ({}, 1.71, 1.73),  # SPENet paper, Table 1
    'resnet83_cbam': ({}, 0.97, 0.99), 'resnet83_eca': ({}, 0.87, 0.89),
    # RAS paper, Table 1, and those figures of Table 3 that count no BatchNorm, as with k = 1
    'resnet83_ras': ({}, 0.89, 0.91), f'{R164}_ras': ({}, 1.74, 1.76),
    **{f'{R164}_ras_{g} k=1': ({'ras_depth': 1}, None, n) for g, n in (('eca', 1.73), ('se', 1.93), ('spa', 3.86))},
    # SPENet paper, Tables 2 and 4
    'resnet83_spe': ({}, 0.89, 0.91), f'{R164}_spe': ({}, 1.74, 1.76), 'resnet245_spe': ({}, 2.59, 2.61),
    'resnet326_spe': ({}, 3.44, 3.46), f'{R164}_spe a': ({'spe_reweight': 'a'}, 1.75, 1.78),
    **{f'{R164}_spe {r}': ({'spe_reweight': r}, 1.74, 1.76) for r in 'bcdefg'},
    f'{R164}_spe none': ({'spe_reweight': 'none'}, 1.72, 1.74)}


def trainable(model):
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def count(name, classes=100, **kwargs):
    return trainable(timm.create_model(name, num_classes=classes, device='meta', **kwargs))


@pytest.mark.parametrize('row', PRINTED)
def test_printed_counts(row):
    kwargs, *printed = PRINTED[row]
    for classes, figure in zip((10, 100), printed, strict=True):
        if figure is not None:
            assert f'{count(row.split()[0], classes, **kwargs) / 1e6:.2f}' == f'{figure:.2f}'


def test_counts_of_asr_table_2():
    printed = {'resnet34': 22, 'resnet50': 26, 'resnet101': 45, 'vit_small_patch16_224': 22}
    assert {name: round(count(name, 1000) / 1e6) for name in printed} == printed


@pytest.mark.parametrize(('gate', 'kwargs'), [
    *[('se', {'rd_ratio': 1 / r}) for r in (4, 8, 16, 32)], *[('eca', {'eca_kernel': k}) for k in (5, 7, 9)],
    ('spa', {}), ('ie', {})])
@pytest.mark.parametrize(('depth', 'blocks'), [(164, 18), (83, 9)])
def test_sharing_cuts_a_gate_to_one_copy_a_stage(depth, blocks, gate, kwargs):
    plain = count(f'resnet{depth}')
    standing = count(f'resnet{depth}_{gate}', **kwargs) - plain
    shared = count(f'resnet{depth}', dia=gate, **kwargs) - plain
    assert standing == blocks * shared
    assert f'{100 * (1 - shared / standing):.1f}' == {18: '94.4', 9: '88.9'}[blocks]


def test_sharing_srm_leaves_each_block_its_norm():
    plain = count('resnet164')
    saved = 1 - (count('resnet164_dia_srm') - plain) / (count('resnet164_srm') - plain)
    assert 0.4 < saved < 0.5  # the paper says about 40 %; half of SRM's parameters are the norm's
    assert count('resnet164_dia_srm', dia_shared_norm=True) - plain == (count('resnet164_srm') - plain) / 18


def test_units_have_the_papers_formulas():
    for n in (64, 128, 256):
        def size(n=n, **kwargs):
            return sum(p.numel() for p in SharedLSTM(n, device='meta', **kwargs).parameters() if p.ndim > 1)

        assert size() == 10 * n * n // 4  # DIA paper, section 7.2, which leaves biases out
        assert size(cell='standard') == 8 * n * n
        assert size(cell='light') == n * n // 4


@pytest.mark.parametrize(('gate', 'printed'), [('spa', 52.90), ('sem', 34.04), ('cbam', 32.56)])
def test_on_resnext_some_counts_are_printed_cut_off(gate, printed):
    assert printed <= count(f'resnext101_8x32d_{gate}', 10) / 1e6 < printed + 0.01


@pytest.mark.parametrize(('name', 'printed'), [('mobilenetv1_100_cifar', '4.2'), ('shufflenetv2_100', '2.3')])
def test_imagenet_counts(name, printed):
    """Table 8 of the MobileNet paper, and Table 8 of the ShuffleNetV2 paper."""
    assert f'{count(name, 1000) / 1e6:.1f}' == printed


@pytest.mark.parametrize(('name', 'printed'), [('repvgg_a0', '8.31'), ('repvgg_b3', '110.96')])
def test_repvgg_once_merged(name, printed):
    """Table 4 of the RepVGG paper; it prints 8.30 for A0, whose 8,309,384 are cut off, not rounded."""
    model = timm.create_model(f'{name}_cifar', num_classes=1000).eval()
    assert f'{trainable(reparameterize(model)) / 1e6:.2f}' == printed


def test_an_asymmetric_block_has_fifteen_parameters_for_nine():
    plain = timm.create_model('resnet56', device='meta')
    square = [m for m in plain.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]
    more = sum(m.weight.numel() for m in square) * 6 // 9 + 2 * sum(2 * m.out_channels for m in square)
    assert count('resnet56_acnet', 10) == trainable(plain) + more
    assert f'{count("resnet56_acnet", 10) / 1e6:.2f}' == '1.43'  # docs/models.md
