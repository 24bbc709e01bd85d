"""The section 'Export' of docs/hub.md: its commands and its code run as they stand, and name every option."""

import re
from pathlib import Path

import pytest
import timm
from export_helpers import digits_model, nudged, our_checkpoint

from timm_asr.engine.commands.export import main
from timm_asr.engine.commands.export_options import EXPORT_OPTIONS
from timm_asr.export.provenance import provenance

DOCS = (Path(__file__).parents[2] / 'docs' / 'hub.md').read_text()
SECTION = re.search(r'^## Export\n(.*?)(?=^## )', DOCS, re.DOTALL | re.MULTILINE)[1]


def blocks(language):
    return re.findall(rf'```{language}\n(.*?)```', SECTION, re.DOTALL)


@pytest.mark.slow
@pytest.mark.filterwarnings('ignore::DeprecationWarning')
def test_the_documentation_runs(tmp_path, monkeypatch, capsys):
    pytest.importorskip('onnxruntime')
    monkeypatch.chdir(tmp_path)
    Path('run').mkdir()
    for name in ('model_best', 'last'):
        our_checkpoint(Path('run') / f'{name}.pth.tar', digits_model(), nudged(digits_model()))
    for line in blocks('sh')[0].splitlines():
        assert main([*line.removeprefix('python -m timm_asr export ').split(), '-j', '0']) == 0
    code, = blocks('python')
    exec(code, {})
    assert {p.name for p in tmp_path.iterdir()} == {
        'run', 'resnet20_fused', 'resnet20_averaged', 'resnet20.onnx', 'resnet20.pt2', 'resnet18_fused',
        'resnet18.onnx', 'resnet18.pt2'}
    assert type(timm.create_model('local-dir:resnet18_fused', pretrained=True)) is timm.models.ResNet


def test_every_option_and_every_key_is_documented():
    said = set(re.findall(r'--[a-z][a-z-]+', SECTION))
    flags = {option.name for option in EXPORT_OPTIONS if option.name.startswith('--')}
    assert flags == said
    keys = set(provenance({})) - {'format', 'package'}
    assert {key for key in keys if f'`{key}`' not in SECTION} == set()
