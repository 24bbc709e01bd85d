"""docs/attention.md: its names, keywords and code."""

import re
from pathlib import Path

import pytest
import timm
import torch
from timm.models import is_model

import timm_asr  # noqa: F401 - registers the models
from timm_asr.gates.table import OPTIONS

DOC = Path(__file__).parents[2] / 'docs' / 'attention.md'
VALUES = {
    'rd_ratio': 0.5, 'dia_act': 'relu', 'dia_cells': 2, 'dia_cell': 'standard', 'dia_stages': (2, 3),
    'dia_shared_norm': True, 'eca_kernel': 5, 'se_bias': False, 'no_norm': True, 'no_skip': True, 'spe_mix': 0.3,
    'spe_reweight': 'a', 'spe_eta': 0.2, 'ras_depth': 3, 'ras_connect': 'relu', 'ras_share': True,
}


@pytest.mark.parametrize('backbone', [
    'resnet18', 'resnet34', 'resnet50', 'resnet101', 'resnet152', 'resnet20', 'resnet32', 'resnet44', 'resnet56',
    'resnet110', 'resnet83', 'resnet164', 'resnet245', 'resnet326', 'resnet407', 'wrn52_4', 'resnext101_8x32d'])
def test_every_name_is_registered(backbone):
    text = DOC.read_text()
    first = re.findall(r'<backbone>_[\w{},]+', text.split('Backbones:')[0])
    names = []
    for pattern in first:
        stem, _, rest = pattern.partition('{')
        names += [stem + end for end in rest.rstrip('}').split(',')] if rest else [pattern]
    assert len(names) == 12
    assert all(is_model(name.replace('<backbone>', backbone)) for name in names)


def test_every_keyword_is_documented_and_works():
    rows = re.findall(r'^\| `(\w+)` \| ([^|]*) \|', DOC.read_text(), re.MULTILINE)
    assert {key for key, _ in rows} == set(VALUES) >= set(OPTIONS)
    for key, where in rows:
        name = re.findall(r'`(\w+)', where)
        name = f'resnet20_{name[0].rstrip("_")}' if name else 'resnet20'
        name = 'resnet20_dia_lstm' if name == 'resnet20_dia' else name
        timm.create_model(name, device='meta', **{key: VALUES[key]})


def test_code_runs(tmp_path, monkeypatch):
    blocks = re.findall(r'```python\n(.*?)```', DOC.read_text(), re.DOTALL)
    assert len(blocks) == 2
    space = {'criterion': lambda logits, target: logits.sum(), 'target': None}
    monkeypatch.chdir(tmp_path)
    space['images'] = torch.randn(2, 3, 32, 32)
    exec(blocks[0], space)
    assert space['loss'].ndim == 0
    pytest.importorskip('sklearn', reason='the extra `analysis` is not installed')
    space['model'] = timm.create_model('resnet20_dia_lstm')
    space['loader'] = [(torch.randn(12, 3, 32, 32), None)]
    exec(blocks[1], space)
    assert (tmp_path / 'map.png').stat().st_size > 10_000
