"""The tables of keywords: every keyword that a gate or a unit has is in one of them, and works where they say."""

import re

import pytest
import timm
from pages import ROOT

from timm_asr.gates.table import gate_options

PAGES = ('models', 'asr', 'dia', 'spe', 'ras')
VALUES = {
    'asr': ('resnet20', 'eca'), 'gate': ('resnet20', 'cbam'), 'asr_depth': ('resnet20_asr_se', 2),
    'asr_init': ('resnet20_asr_se', 'N_0.1'), 'asr_learnable': ('resnet20_asr_se', False),
    'asr_constant': ('resnet20_asr_se', True), 'asr_gain': ('resnet20_asr_se', 2.0), 'norm_layer': ('resnet20', 'iebn'),
    'last_norm_init': ('resnet20', 0.5), 'rd_ratio': ('resnet20_dia_lstm', 0.5), 'eca_kernel': ('resnet20_eca', 5),
    'se_bias': ('resnet20_se', False), 'se_pool': ('resnet20_se', 'max'), 'se_depth': ('resnet20_se', 2),
    'dia_act': ('resnet20_dia_lstm', 'relu'), 'dia_cells': ('resnet20_dia_lstm', 2),
    'dia_cell': ('resnet20_dia_lstm', 'standard'), 'dia_stages': ('resnet20_dia_se', (2, 3)),
    'dia_shared_norm': ('resnet20_dia_srm', True), 'no_norm': ('resnet20', True), 'no_skip': ('resnet20', True),
    'spe_mix': ('resnet20_spe', 0.3), 'spe_reweight': ('resnet20_spe', 'a'), 'spe_eta': ('resnet20_spe', 0.2),
    'ras_depth': ('resnet20_ras', 3), 'ras_connect': ('resnet20_ras_se', 'relu'), 'ras_share': ('resnet20_ras', True)}


def test_every_keyword_is_in_a_table():
    text = '\n'.join((ROOT / 'docs' / f'{page}.md').read_text() for page in PAGES)
    documented = re.findall(r'^\| `(\w+)` \| ', ''.join(re.findall(r'^\| keyword.*?\n\n', text, re.M | re.S)), re.M)
    assert set(documented) == set(VALUES) >= set(gate_options())


@pytest.mark.parametrize('keyword', VALUES)
def test_it_works_where_it_is_said_to(keyword):
    name, value = VALUES[keyword]
    timm.create_model(name, device='meta', **{keyword: value})
    wrong = 'resnet20_sge' if keyword.startswith('asr_') else 'vit_tiny_asr_ie'
    if keyword not in ('asr', 'gate', 'norm_layer', 'last_norm_init', 'no_norm', 'no_skip'):
        with pytest.raises((TypeError, ValueError), match=keyword):
            timm.create_model(wrong, device='meta', **{keyword: value})


@pytest.mark.parametrize('backbone', [
    'resnet18', 'resnet34', 'resnet50', 'resnet101', 'resnet152', 'resnet20', 'resnet32', 'resnet44', 'resnet56',
    'resnet110', 'resnet83', 'resnet164', 'resnet245', 'resnet326', 'resnet407', 'wrn52_4', 'resnext101_8x32d'])
def test_every_name_of_shared_and_recurrent_attention_is_registered(backbone):
    ends = ['dia_se', 'dia_eca', 'dia_cbam', 'dia_srm', 'dia_spa', 'dia_lstm', 'dia_lstm_light', 'spe', 'ras',
            'ras_se', 'ras_eca', 'ras_spa']
    text = (ROOT / 'docs' / 'dia.md').read_text() + (ROOT / 'docs' / 'ras.md').read_text()
    for end in ends:
        assert timm.is_model(f'{backbone}_{end}')
        assert f'_{end}`' in text or end == 'spe'
