"""save_fused: a folder that timm loads by name, with stock timm alone where timm has the architecture."""

import json
import subprocess
import sys

import pytest
import timm
import torch
from helpers import clone, images, randomize, relative_error, small
from safetensors.torch import load_file
from torch import nn

from timm_asr import attach_asr, has_asr, save_fused
from timm_asr.engine.errors import BadInput

FRESH = """
import json, sys, torch, timm
for line in json.loads(sys.argv[1]):
    if line['ours']:
        import timm_asr
    else:
        assert 'timm_asr' not in sys.modules
    model = timm.create_model(f"local-dir:{line['folder']}", pretrained=True).eval()
    x, logits = torch.load(f"{line['folder']}/check.pt", weights_only=True)
    error = ((model(x) - logits).abs().max() / logits.abs().max()).item()
    assert error < 1e-5, (line, error)
    assert line['ours'] == type(model).__module__.startswith('timm_asr'), type(model)
print('loaded', len(json.loads(sys.argv[1])))
"""


def test_a_fresh_process_loads_what_was_saved(tmp_path):
    cases = [
        ('resnet18_asr_se', {'num_classes': 7, 'asr_depth': 2, 'rd_ratio': 0.25}, False),
        ('resnet18_asr_srm', {'in_chans': 1, 'global_pool': 'max'}, False),
        ('vit_tiny_asr_eca', {'num_classes': 3, 'img_size': 64}, False),
        ('resnet20_asr_se', {}, True),
        ('resnet20_se_asr_se', {'rd_ratio': 0.5, 'num_classes': 100}, True),
    ]
    lines = []
    for name, kwargs, ours in cases:
        model = randomize(timm.create_model(name, **kwargs)).eval()
        x = images(model, 2)
        folder = save_fused(model, tmp_path / name)
        assert has_asr(model)  # the model itself is left as it was
        assert sorted(p.name for p in folder.iterdir()) == ['config.json', 'model.safetensors']
        with torch.no_grad():
            torch.save((x, model(x)), folder / 'check.pt')
        lines.append({'folder': str(folder), 'ours': ours})
    out = subprocess.run([sys.executable, '-c', FRESH, json.dumps(lines)], capture_output=True, text=True)
    assert out.returncode == 0, out.stderr
    assert f'loaded {len(cases)}' in out.stdout


def test_config_names_the_stock_architecture_and_nothing_foreign(tmp_path):
    model = timm.create_model('resnet18_asr_se', num_classes=7, asr_depth=2, asr_init=0.3, rd_ratio=0.5)
    config = json.loads((save_fused(model, tmp_path) / 'config.json').read_text())
    assert config['architecture'] == 'resnet18'
    assert config['num_classes'] == 7
    assert not {k for k in config['model_args'] if k.startswith(('asr', 'rd_'))}
    assert not {'license', 'paper_ids', 'hf_hub_id', 'url'} & set(config['pretrained_cfg'])
    assert config['pretrained_cfg']['tag'] == 'asr_se'  # its own, not the stock one
    assert config['pretrained_cfg']['mean'] == list(model.default_cfg['mean'])


def test_wrappers_layouts_and_precisions(tmp_path):
    model = randomize(small('resnet20_asr_se')).float().eval()
    x = images(model)
    expected = model(x)
    for i, wrapped in enumerate([
            nn.DataParallel(clone(model)),
            torch.compile(clone(model), backend='eager'),
            clone(model).to(memory_format=torch.channels_last),
    ]):
        folder = save_fused(wrapped, tmp_path / str(i))
        loaded = timm.create_model(f'local-dir:{folder}', pretrained=True).eval()
        assert relative_error(expected, loaded(x)) < 1e-5
    half = clone(model).bfloat16()
    folder = save_fused(half, tmp_path / 'half')  # folded in float32, so that it rounds once
    loaded = timm.create_model(f'local-dir:{folder}', pretrained=True).eval()
    assert relative_error(half.float()(x), loaded(x)) < 1e-5


def test_attached_to_a_stock_model(tmp_path):
    model = attach_asr(timm.create_model('resnet18', num_classes=3), 'ie')
    folder = save_fused(model, tmp_path)
    assert json.loads((folder / 'config.json').read_text())['architecture'] == 'resnet18'
    assert not has_asr(timm.create_model(f'local-dir:{folder}', pretrained=True))


def test_saving_again_replaces_the_files_only_when_told(tmp_path):
    first, second = (randomize(timm.create_model('resnet20_asr_se'), seed) for seed in (1, 2))
    save_fused(first, tmp_path)
    save_fused(first, tmp_path)  # the same once more loses nothing
    with pytest.raises(BadInput, match='has another model.safetensors already'):
        save_fused(second, tmp_path)
    assert torch.equal(load_file(tmp_path / 'model.safetensors')['fc.bias'], first.fc.bias)
    save_fused(second, tmp_path, overwrite=True)
    assert torch.equal(load_file(tmp_path / 'model.safetensors')['fc.bias'], second.fc.bias)
    modes = {p.name: p.stat().st_mode for p in tmp_path.iterdir()}
    assert modes['model.safetensors'] == modes['config.json']  # readable by whoever reads the folder


@pytest.mark.parametrize(('make', 'sentence'), [
    (lambda: nn.Linear(3, 3), 'This Linear cannot be saved by name: save_fused takes whole models'),
    (lambda: timm.create_model('resnet20_asr_se', features_only=True), 'cannot be saved by name'),
])
def test_what_has_no_name_is_refused(tmp_path, make, sentence):
    with pytest.raises(ValueError, match=sentence):
        save_fused(make(), tmp_path / 'folder')
    assert not (tmp_path / 'folder').exists()


def test_weights_that_do_not_fit_the_stock_architecture_are_refused(tmp_path):
    model = timm.create_model('resnet20_asr_se')
    model.layer3[0].conv1 = nn.Conv2d(32, 8, 3)
    with pytest.raises(ValueError, match=r"do not fit 'resnet20': 'layer3.0.conv1.weight' is \(8, 32, 3, 3\)"):
        save_fused(model, tmp_path / 'folder')
    assert not (tmp_path / 'folder').exists()
